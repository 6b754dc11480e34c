import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.config import CONFIG_NAME
from hf_trady.history import HISTORY_NAME
from hf_trady.saving import WEIGHTS_NAME
from hf_trady.selection import RANKING_NAME
from hf_trady.training.checkpoints import SEAL_NAME, STAGING, _rotate, flaw, last_whole_checkpoint, seal

from ..tiny import Rows, bert, copy_of_state, different_keys, gpt2, inputs_of, lm_batch, token_batch
from .runs import TASKS, image_rows, make_trainer


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


def saving_run(path: Path, **kwargs):
    trainer = make_trainer(path, **{"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 1} | kwargs)
    trainer.train()
    return trainer


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_the_one_before_it_taken(tmp_path, caplog):
    saving_run(tmp_path)
    last = tmp_path / "checkpoint-3"
    names = sorted(path.name for path in last.iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", WEIGHTS_NAME} < {*names}
    pristine = tmp_path / "pristine"
    shutil.copytree(last, pristine)
    for name in names:
        for damage in (truncate, flip_a_bit, Path.unlink):
            if name == HISTORY_NAME or (name, damage) == (SEAL_NAME, Path.unlink):
                continue  # what no resume needs; as a plain Trainer would have written it
            damage(last / name)
            caplog.clear()
            assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2"), (name, damage)
            (message,) = caplog.messages
            assert message.startswith(f"Skipping '{last}', which is damaged: ") and "\n" not in message
            shutil.copy(pristine / name, last / name)
    assert last_whole_checkpoint(tmp_path) == str(last)
    truncate(last / "optimizer.pt")
    resumed = make_trainer(tmp_path, num_train_epochs=1, save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)  # which writes it anew
    assert flaw(last) is None and not (tmp_path / STAGING).exists()
    for path in tmp_path.glob("checkpoint-*"):
        (path / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint to resume from in"):
        resumed.train(resume_from_checkpoint=True)


def test_half_a_checkpoint_of_a_plain_trainer_is_none(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_whole_checkpoint(tmp_path) is None and last_whole_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"half":')
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_a_seal_that_reaches_outside_the_checkpoint_is_refused(tmp_path):
    (tmp_path / "secret").write_text("")
    (tmp_path / "checkpoint-1").mkdir()
    for name in ("../secret", str(tmp_path / "secret")):
        (tmp_path / "checkpoint-1" / SEAL_NAME).write_text(json.dumps({"files": {name: [0, 0]}}))
        assert "lies outside" in flaw(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("replaces", [False, True])
def test_a_checkpoint_that_was_complete_but_for_its_name_gets_it(replaces, tmp_path):
    staged = tmp_path / STAGING / "checkpoint-2"
    staged.mkdir(parents=True)
    (staged / "trainer_state.json").write_text("{}")
    seal(staged)
    if replaces:  # killed between the two renames
        (tmp_path / STAGING / "replaced-checkpoint-2").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / STAGING).exists()
    half = tmp_path / STAGING / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "trainer_state.json").write_text("{}")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path):
    kwargs = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "eval_dataset": image_rows(4)}
    trainer = saving_run(tmp_path, save_total_limit=1, **kwargs)
    best = Path(trainer.state.best_model_checkpoint)
    assert best == tmp_path / f"checkpoint-{trainer.state.best_global_step}" and flaw(best) is None
    saved = [json.loads((path / "trainer_state.json").read_text()) for path in tmp_path.glob("checkpoint-*")]
    assert 1 <= len(saved) <= 2 and all(state["best_model_checkpoint"] == str(best) for state in saved)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("other", [{"memory_budget": 0.5}, {"seed": 3}, {"strategy": "static_full_random"}])
def test_another_config_is_refused_by_what_differs(plain, other, tmp_path):
    def trainer(**fields):
        config = TraDyConfig(**{"memory_budget": 0.3, "strategy": "dynamic_full_random"} | fields)
        model = TraDyModel(bert(), config, inputs_of(token_batch()))
        return make_trainer(tmp_path, "bert", model=model, plain=plain, save_strategy="steps", save_steps=2)

    trainer().train()
    with pytest.raises(ValueError, match=f"another config .*{next(iter(other))}=.* there, .* here"):
        trainer(**other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_parts_of_processes_that_cannot_be_written_are_told_in_one_line(tmp_path, monkeypatch):
    """`torch.distributed.checkpoint` raises what is no Exception."""
    trainer = make_trainer(tmp_path, num_train_epochs=1, save_strategy="steps", save_steps=2)
    (tmp_path / "file").write_text("")

    def save(directory):
        torch.distributed.checkpoint.save({"a": torch.ones(2)}, checkpoint_id=tmp_path / "file" / "part", no_dist=True)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", save)
    with pytest.raises(OSError, match=f"can't write '{tmp_path / 'checkpoint-2'}' \\(Not a directory\\)$") as failed:
        trainer.train()
    assert isinstance(failed.value.__cause__, torch.distributed.checkpoint.CheckpointException)
    assert not (tmp_path / STAGING).exists()


def test_a_machine_with_a_disk_of_its_own_keeps_nothing_unfinished(tmp_path, monkeypatch):
    """Its processes write their random states there, but it is another machine that completes the checkpoint."""
    trainer = make_trainer(tmp_path, num_train_epochs=1, save_strategy="steps", save_steps=1)
    wrote = []
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda args: False))
    save = trainer._save_rng_state
    monkeypatch.setattr(trainer, "_save_rng_state", lambda path: (save(path), wrote.extend(Path(path).iterdir())))
    trainer.train()
    assert len(wrote) == 3 and all(STAGING in path.parts for path in wrote)
    assert not (tmp_path / STAGING).exists() and not any(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_that_a_plain_trainer_was_killed_in_is_refused(tmp_path, monkeypatch):
    late, save = [], TraDyModel.save_training_state

    def save_before_the_config(model, directory):
        late.append((directory / CONFIG_NAME).exists())
        save(model, directory)

    monkeypatch.setattr(TraDyModel, "save_training_state", save_before_the_config)

    def trainer():
        model = TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random"), inputs_of(token_batch()))
        return make_trainer(tmp_path, "bert", model=model, plain=True, save_strategy="steps", save_steps=2)

    trainer().train()
    assert late == [False] * 3
    (tmp_path / "checkpoint-4" / CONFIG_NAME).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-4' has no {CONFIG_NAME}.*the one before it") as caught:
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "\n" not in str(caught.value)
    trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("limit, kept", [(1, {2, 4}), (3, {1, 2, 4})])
def test_the_checkpoint_just_written_and_the_best_one_outlive_others_with_a_higher_number(limit, kept, tmp_path):
    """All are as old, as far as the file system tells, so that a rotation goes by their numbers."""
    for step in (1, 2, 4, 8, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (1, 2, 4):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    _rotate(tmp_path, limit, tmp_path / "checkpoint-4", str(tmp_path / "checkpoint-2"))
    assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == kept


def test_a_damaged_checkpoint_that_a_resume_passed_over_does_not_cost_the_next_one(tmp_path):
    saving_run(tmp_path)
    truncate(tmp_path / "checkpoint-3" / "optimizer.pt")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-9")
    kwargs = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    make_trainer(tmp_path, **kwargs).train(resume_from_checkpoint=True)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
