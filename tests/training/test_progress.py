"""The table of a run shows what was logged, row by row."""

import re

import numpy as np
import pytest
from transformers import ProgressCallback, Trainer

from hf_trady import TraDyConfig, TraDyModel
from hf_trady.training.progress import COLUMNS, use_epoch_table

from ..tiny import bert, token_batch
from .runs import TASKS, arguments, make_trainer, token_dataset


SPARSITY = ("act. sparsity", "weight sparsity", "FLOPs saved", "budget used", "channels", "layers")


def accuracy(prediction) -> dict:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def shown(trainer, capsys) -> list[dict[str, str]]:
    """Train, and read the rows of the table that this prints: everything on the standard output."""
    use_epoch_table(trainer)
    capsys.readouterr()
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) <= 1  # the columns are aligned
    table = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert table[0] == list(COLUMNS)
    return [dict(zip(COLUMNS, row, strict=True)) for row in table[1:]]


def logged(trainer) -> list[dict[str, str]]:
    """The rows that the log of a run makes: of each evaluation, with the latest loss and sparsity before it."""
    rows, loss, draw = [], None, None
    for entry in trainer.state.log_history:
        loss = entry.get("loss", loss)
        draw = entry if "trady/budget" in entry else draw
        if "eval_loss" in entry:
            row = dict.fromkeys(COLUMNS, "-")
            row |= {"epoch": f"{entry['epoch']:.2f}", "eval loss": f"{entry['eval_loss']:.4f}"}
            if loss is not None:
                row["loss"] = f"{loss:.4f}"
            if "eval_accuracy" in entry:
                row["accuracy"] = f"{100 * entry['eval_accuracy']:.2f}%"
            if draw is not None:
                used = draw["trady/units"] / draw["trady/budget"]
                shares = [draw["trady/activation_sparsity"], draw["trady/weight_sparsity"], draw["trady/flops_saved"]]
                row |= zip(SPARSITY[:4], [f"{100 * share:.2f}%" for share in (*shares, used)], strict=True)
                row |= {"channels": f"{draw['trady/active_channels']:,}", "layers": str(draw["trady/active_layers"])}
            rows.append(row)
    return rows


EPOCHS = {"eval_strategy": "epoch", "logging_strategy": "epoch"}
RUNS = {
    "epochs": (3, {}, EPOCHS),
    "redraws-between": (3, {"resample_every": 2}, EPOCHS),
    "evaluations-between": (9, {}, {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 2}),
    "before-training": (4, {}, EPOCHS | {"eval_on_start": True}),
    "nothing-logged": (3, {}, {"eval_strategy": "epoch"}),
}


@pytest.mark.parametrize("task", ["conv", "bert"])
@pytest.mark.parametrize("count, config, kwargs", RUNS.values(), ids=RUNS)
def test_each_evaluation_is_a_row_of_what_was_logged_of_its_epoch(task, count, config, kwargs, tmp_path, capsys):
    trainer = make_trainer(
        tmp_path,
        task,
        config=config,
        eval_dataset=TASKS[task][1](7),
        compute_metrics=accuracy,
        num_train_epochs=3,
        disable_tqdm=False,
        **({"logging_strategy": "steps"} if "logging_steps" in kwargs else {}),
        **kwargs,
    )
    rows = shown(trainer, capsys)
    assert rows == logged(trainer)
    assert len(rows) == count and len({row["weight sparsity"] for row in rows}) > 1
    dashes = {name for row in rows[1:] for name, cell in row.items() if cell == "-"}
    assert dashes == (set() if "logging_strategy" in kwargs or "logging_steps" in kwargs else {"loss"})


def test_what_a_run_does_not_log_is_a_dash(tmp_path, capsys):
    data = token_dataset(7)
    args = arguments(tmp_path, disable_tqdm=False, **EPOCHS)
    plain = Trainer(bert(), args, train_dataset=data, eval_dataset=data)
    rows = shown(plain, capsys)
    assert rows == logged(plain) and len(rows) == 2
    for row in rows:
        assert {name for name, cell in row.items() if cell == "-"} == {"accuracy", *SPARSITY}


def test_a_plain_trainer_with_the_callback_shows_the_same_table(tmp_path, capsys):
    tables = []
    for plain in (False, True):
        model = TraDyModel(bert(), TraDyConfig(0.3, "dynamic_full_random"), token_batch(1))
        trainer = make_trainer(
            tmp_path, "bert", model=model, plain=plain, eval_dataset=token_dataset(7), disable_tqdm=False, **EPOCHS
        )
        tables.append(shown(trainer, capsys))
    assert tables[0] == tables[1] and len(tables[0]) == 2 and tables[0][0]["channels"] != "-"


def test_an_evaluation_outside_training_is_no_row(tmp_path, capsys):
    trainer = make_trainer(tmp_path, eval_dataset=TASKS["conv"][1](7), disable_tqdm=False, **EPOCHS)
    assert len(shown(trainer, capsys)) == 2
    trainer.evaluate()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_only_a_progress_bar_that_is_shown_becomes_a_table_and_only_once(disable_tqdm, tmp_path, capsys):
    trainer = make_trainer(tmp_path, eval_dataset=TASKS["conv"][1](7), disable_tqdm=disable_tqdm, **EPOCHS)
    bars = [
        type(callback) for callback in trainer.callback_handler.callbacks if isinstance(callback, ProgressCallback)
    ]
    assert bars == ([] if disable_tqdm else [ProgressCallback])
    use_epoch_table(trainer)
    if disable_tqdm:
        use_epoch_table(trainer)
        trainer.train()
        assert "act. sparsity" not in capsys.readouterr().out
    else:
        assert len(shown(trainer, capsys)) == 2
