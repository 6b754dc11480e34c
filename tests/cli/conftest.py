import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ..tiny_files import save_bert, write_reviews


@pytest.fixture(scope="session")
def image_run(tmp_path_factory) -> list[str]:
    """Arguments that fine-tune a tiny timm network, from local weights, on a folder of red and blue images."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")[::2]):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(0, 80, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 * channel] += 150
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), root / "weights.pth")
    return [
        *("--model_name_or_path", "test_efficientnet", "--checkpoint_path", str(root / "weights.pth")),
        *("--dataset_name", str(root / "photos"), "--image_size", "32", "--per_device_train_batch_size", "8"),
        *("--num_train_epochs", "5", "--learning_rate", "1e-2", "--disable_tqdm", "True"),
        *("--memory_budget", "0.2", "--dataloader_pin_memory", "False"),
    ]


@pytest.fixture(scope="session")
def text_run(tmp_path_factory) -> list[str]:
    """Arguments that fine-tune a tiny BERT, saved locally, on a CSV file of good and bad reviews."""
    root = tmp_path_factory.mktemp("texts")
    bert, reviews = save_bert(root / "bert"), write_reviews(root / "reviews.csv")
    return [
        *("--model_name_or_path", str(bert), "--dataset_name", str(reviews)),
        *("--num_train_epochs", "6", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8"),
        *("--memory_budget", "0.2", "--max_seq_length", "16", "--disable_tqdm", "True"),
        *("--dataloader_pin_memory", "False"),
    ]
