import pytest
import torch
from transformers import Trainer

from hf_trady import TraDyConfig, TraDyModel

from ..tiny import ConvNet, Rows, bert, conv_net, copy_of_state, different_keys, gpt2, image_batch, lm_batch
from .runs import TASKS, arguments, image_rows, make_trainer


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_label_smoothing_gives_the_loss_of_a_plain_trainer(kind, tmp_path):
    make, batch = {"bert": (bert, TASKS["bert"][1](4)), "gpt2": (gpt2, Rows(lm_batch(4)))}[kind]
    expected = Trainer(make(), arguments(tmp_path, label_smoothing_factor=0.3), eval_dataset=batch).evaluate()
    for plain in (False, True):
        model = TraDyModel(make(), TraDyConfig(0.3, "dynamic_full_random"))
        kwargs = {"eval_dataset": batch, "label_smoothing_factor": 0.3}
        actual = make_trainer(tmp_path, "bert", model=model, plain=plain, **kwargs).evaluate()
        assert actual["eval_loss"] == pytest.approx(expected["eval_loss"])


class Loose(ConvNet):
    """Takes any keyword, and does nothing with it."""

    def forward(self, x, **kwargs):
        return super().forward(x)


# Not a BERT classifier: its loss takes num_items_in_batch and ignores it, under any Trainer.
@pytest.mark.parametrize("task", ["gpt2", "wrapper", "conv", "loose"])
def test_two_micro_batches_step_like_the_batch_of_both(task, tmp_path):
    make = {"gpt2": gpt2, "loose": lambda: Loose().eval()}.get(task) or TASKS[task][0]
    data = Rows(lm_batch(12)) if task == "gpt2" else TASKS["conv" if task == "loose" else task][1]()
    ends, start = [], copy_of_state(make())
    for size, accumulation in ((6, 1), (3, 2)):
        net = make()
        net.load_state_dict(start)
        trainer = make_trainer(
            tmp_path,
            model=TraDyModel(net, TraDyConfig(0.3, "dynamic_full_random")),
            train_dataset=data,
            optim="sgd",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        ends.append(copy_of_state(trainer.model))
    assert different_keys(start, ends[0])
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-5)


def test_a_raw_model_takes_the_loss_that_it_is_given_and_smoothed_labels(tmp_path):
    net, (images, labels) = conv_net(), image_batch(8, 16)
    with torch.no_grad():
        logits = net(images)
    for kwargs, loss in (
        ({}, torch.nn.CrossEntropyLoss()),
        ({"label_smoothing_factor": 0.2}, torch.nn.CrossEntropyLoss(label_smoothing=0.2)),
        ({"compute_loss_func": lambda logits, labels, **_: logits.square().mean()}, lambda x, _: x.square().mean()),
    ):
        trainer = make_trainer(tmp_path, "conv", eval_dataset=image_rows(8), **kwargs)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss(logits, labels).item(), rel=1e-5)
