from transformers import BertForSequenceClassification

from hf_trady import TraDyConfig, TraDyModel

from ..tiny import bert, copy_of_state, different_keys
from .runs import make_trainer


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
