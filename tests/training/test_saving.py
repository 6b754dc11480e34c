from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from hf_trady import TraDyConfig, TraDyModel

from ..tiny import bert, copy_of_state, different_keys
from .runs import make_trainer, token_dataset


def test_weights_of_the_base_model_beside_a_run_stay(tmp_path):
    bert().save_pretrained(tmp_path)
    before, mode = (tmp_path / "model.safetensors").read_bytes(), tmp_path.stat().st_mode
    base = BertForSequenceClassification.from_pretrained(tmp_path)
    trainer = make_trainer(tmp_path, "bert", model=TraDyModel(base, TraDyConfig(0.3, "dynamic_full_random")))
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    trainer.save_model(tmp_path / "other")
    (tmp_path / "plain").mkdir()
    assert tmp_path.stat().st_mode == mode
    assert (tmp_path / "other").stat().st_mode == (tmp_path / "plain").stat().st_mode
    loaded = TraDyModel.from_pretrained(tmp_path)
    assert not different_keys(copy_of_state(trainer.model), copy_of_state(loaded))


WRITES = {
    "config.json": "transformers.PreTrainedConfig.to_json_file",
    "training_args.bin": "torch.save",
    "model.safetensors": "safetensors.torch.save_file",
}


@pytest.mark.parametrize("name", WRITES)
def test_a_file_that_a_trainer_cannot_write_is_the_one_that_was_there(name, tmp_path, monkeypatch):
    kwargs = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_dataset": token_dataset(4)}
    trainer = make_trainer(tmp_path / "run", "bert", load_best_model_at_end=True, **kwargs)
    trainer.train()
    trainer.save_model(tmp_path / "out")
    before = (tmp_path / "out" / name).read_bytes()

    def half(value, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WRITES[name], half)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == before
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("_")]
