"""A wrapped model generates, and serves a pipeline, as the plain one does."""

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from .tiny import bert, gpt2, llama, lm_batch, t5, train, word_tokenizer, wrap


GENERATORS = {
    "gpt2": (gpt2, lm_batch(2)),
    "llama": (llama, lm_batch(2)),
    "t5": (t5, {"input_ids": lm_batch(2)["input_ids"], "labels": lm_batch(2)["labels"]}),
}


def trained(make, batch):
    """A model that has trained for a few steps, and a plain one with the same weights."""
    model, plain = wrap(make(), batch), make()
    train(model, batch, lr=0.5)
    plain.load_state_dict(model.state_dict())
    return model, plain


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("kind", GENERATORS)
def test_it_generates_the_tokens_of_the_plain_model(kind, options):
    make, batch = GENERATORS[kind]
    model, plain = trained(make, batch)
    ids = batch["input_ids"]
    tokens = []
    for each in (model, plain, model.base_model):
        torch.manual_seed(0)
        mask = torch.ones_like(ids)
        tokens.append(each.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, eos_token_id=-1, **options))
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_pipeline_answers_as_with_the_plain_model(task):
    make, batch, options = {
        "text-classification": (bert, lm_batch(2) | {"labels": torch.tensor([0, 1])}, {"top_k": None}),
        "text-generation": (llama, lm_batch(2), {"do_sample": False, "max_new_tokens": 6}),
    }[task]
    model, plain = trained(make, batch)
    texts = ["w1 w2 w3", "w7 w8"]
    answers = [pipeline(task, model=each, tokenizer=word_tokenizer())(texts, **options) for each in (model, plain)]
    assert answers[0] == answers[1]


def test_a_pipeline_of_images_answers_as_with_the_plain_model():
    def vit():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes))

    model, plain = trained(vit, {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])})
    images = [Image.new("RGB", (20, 20), color) for color in ("red", "green")]
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    answers = [
        pipeline("image-classification", model=each, image_processor=processor)(images) for each in (model, plain)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 2
