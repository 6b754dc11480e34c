"""What each draw trained is on disk: whole, once, and the same after a resume."""

import json

import pytest

from hf_trady import CostTable, TraDyConfig, TraDyModel
from hf_trady.history import HISTORY_NAME, DrawHistory

from ..tiny import bert, token_batch
from .runs import drawn_channels, make_trainer


def trained(path, resume=None, **kwargs):
    """A Trainer that has trained three epochs of three steps, saving every step unless `kwargs` say otherwise."""
    kwargs = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1} | kwargs
    trainer = make_trainer(path, **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ready_bert(**config) -> TraDyModel:
    return TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random", **config), token_batch(1))


def read(path) -> DrawHistory:
    return DrawHistory.from_pretrained(path)


def same(one: DrawHistory, other: DrawHistory) -> bool:
    return one.draws == other.draws and (one.costs, one.pool, one.units) == (other.costs, other.pool, other.units)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("every", ["epoch", 2])
def test_every_draw_is_there_with_what_it_trained_and_what_was_trained_by_then(plain, every, tmp_path):
    model = ready_bert(resample_every=every)
    trained(tmp_path, task="bert", model=model, plain=plain, save_strategy="epoch")
    history = read(tmp_path)
    assert list(history.draws) == list(range(3 if every == "epoch" else 5))
    assert history.costs == model.costs and history.pool == tuple(row.name for row in model.pool)
    assert history.units == model.budget and history.config == model.trady_config
    for number, record in history.draws.items():
        assert record.active == {name: len(index) for name, index in model.draw(number).items()}
        so_far = drawn_channels(model, range(number + 1))
        assert record.touched == {name: int(mask.sum()) for name, mask in so_far.items() if mask.any()}
    assert [record.step for record in history.draws.values()] == ([3, 6, 9] if every == "epoch" else [2, 4, 6, 8, 9])
    assert history.draws[max(history.draws)].trained_parameters == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("config", [{}, {"resample_every": 2}, {"strategy": "static_full_random"}])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_resume_goes_on_with_it_and_has_no_draw_twice(config, elsewhere, tmp_path):
    trained(tmp_path / "whole", config=config)
    whole = read(tmp_path / "whole")
    for step in (1, 3, 4, 8):
        output = tmp_path / (f"resumed-{step}" if elsewhere else "whole")
        trained(output, str(tmp_path / "whole" / f"checkpoint-{step}"), config=config)
        assert same(read(output), whole)
        assert read(output).info["started"] == whole.info["started"]


def test_a_plain_trainer_resumes_it_too(tmp_path):
    def run(*resume, **kwargs):
        trained(tmp_path, *resume, task="bert", model=ready_bert(), plain=True, **kwargs)

    run()
    whole = read(tmp_path)
    run(str(tmp_path / "checkpoint-4"), num_train_epochs=2)
    assert list(read(tmp_path).draws) == [0, 1]  # that of the third epoch is of another run now
    run(str(tmp_path / "checkpoint-4"))
    assert same(read(tmp_path), whole)


def test_what_a_checkpoint_holds_is_what_had_been_trained_when_it_was_written(tmp_path):
    whole = trained(tmp_path)
    for step in range(1, 10):
        draws = read(tmp_path / f"checkpoint-{step}").draws
        assert list(draws) == list(range(-(-step // 3))) and draws[max(draws)].step == step
    assert list(read(tmp_path).draws) == [0, 1, 2] and read(tmp_path).draws == whole._redraws.history.draws


def test_a_run_that_saves_nothing_writes_nothing_until_it_is_asked_to(tmp_path):
    trainer = trained(tmp_path / "run", save_strategy="no")
    assert not (tmp_path / "run" / HISTORY_NAME).exists()
    trainer.save_model(str(tmp_path / "saved"))
    assert len(read(tmp_path / "saved").draws) == 3
    trainer.train()  # a new run of the same model
    trainer.save_model(str(tmp_path / "saved"))
    assert len(read(tmp_path / "saved").draws) == 3


def test_a_damaged_one_stops_neither_training_nor_resume(tmp_path, caplog):
    trained(tmp_path)
    whole = read(tmp_path)
    for place in (tmp_path, tmp_path / "checkpoint-4"):
        (place / HISTORY_NAME).write_text('{"draws": [{}]')
    with pytest.raises(ValueError, match="is not a history of draws") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    trained(tmp_path, str(tmp_path / "checkpoint-4"))
    assert {1: whole.draws[1], 2: whole.draws[2]} == read(tmp_path).draws  # what was touched before is known


def test_it_is_small_and_comes_back_as_it_was(tmp_path):
    trained(tmp_path, config={"resample_every": 1}, num_train_epochs=30, save_strategy="epoch", save_total_limit=1)
    file = tmp_path / HISTORY_NAME
    values = json.loads(file.read_text())
    assert len(values["draws"]) == 90 and file.stat().st_size < 25_000
    assert read(tmp_path).to_dict() == values
    assert CostTable.from_dict(values["costs"]).to_dict() == values["costs"]
    assert DrawHistory.from_pretrained(tmp_path / "nowhere") is None
