import pytest
from safetensors.torch import load_file

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.saving import WEIGHTS_NAME
from hf_trady.selection import RANKING_NAME

from ..tiny import Rows, copy_of_state, different_keys, gpt2, lm_batch
from .runs import TASKS, make_trainer


@pytest.mark.parametrize("task", ["conv", "bert", "gpt2"])
def test_the_best_weights_come_back_bit_for_bit(task, tmp_path):
    model, data = None, None
    if task == "gpt2":  # tied weights
        data = Rows(lm_batch(12))
        model = TraDyModel(gpt2(), TraDyConfig(0.3, "dynamic_full_random"))
    losses = iter([3.0, 1.0, 2.0])
    states = []

    def metrics(prediction):
        states.append(copy_of_state(trainer.model))
        return {"score": next(losses)}

    trainer = make_trainer(
        tmp_path,
        "bert" if task == "gpt2" else task,
        model=model,
        num_train_epochs=3,
        eval_dataset=data or TASKS[task][1](6),
        **({"train_dataset": data} if data else {}),
        compute_metrics=metrics,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=False,
    )
    trainer.train()
    assert different_keys(states[0], states[1]) and different_keys(states[2], states[1])
    assert different_keys(copy_of_state(trainer.model), states[1]) == []
    assert all((path / "model.safetensors").is_file() for path in tmp_path.glob("checkpoint-*"))
    trainer.save_model(tmp_path / "best")
    base = gpt2() if task == "gpt2" else TASKS[task][0]()
    assert different_keys(copy_of_state(TraDyModel.from_pretrained(tmp_path / "best", base)), states[1]) == []


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_are_small_and_load_with_from_pretrained(task, tmp_path):
    trainer = make_trainer(tmp_path, task, save_strategy="steps", save_steps=2, config={"strategy": "trady"})
    trainer.train()
    trainer.save_model()
    end = copy_of_state(trainer.model)
    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for path in (tmp_path, *checkpoints):
        assert {WEIGHTS_NAME, RANKING_NAME, "trady_config.json", "training_args.bin"} <= {
            p.name for p in path.iterdir()
        }
        assert not (path / "model.safetensors").exists() and not (path / "pytorch_model.bin").exists()
    for path in (tmp_path, checkpoints[-1]):
        restored = TraDyModel.from_pretrained(path, TASKS[task][0]())
        assert different_keys(copy_of_state(restored), end) == []
        assert restored.layer_ranking == trainer.model.layer_ranking
    assert f"{trainer.model._heads[0]}.weight" in {
        key.removeprefix("tensor.") for key in load_file(tmp_path / WEIGHTS_NAME)
    }
