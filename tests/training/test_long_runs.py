"""Thousands of redraws leave nothing behind, drift nowhere, and end where they did the day before."""

import gc
import hashlib
import json
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from hf_trady import TraDyModel
from hf_trady.layers import read_channels

from ..tiny import conv_net, copy_of_state, image_batch, loss_of, wrap
from .runs import make_trainer


pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parents[1] / "data" / "long_run.json"
DRAWS = 3000
BATCH = image_batch(4, 8)


def hash_of(tensors) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def machine() -> str:
    """What the last bit of a sum depends on."""
    return f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, 1 thread"


def left_behind(model: TraDyModel) -> dict[str, int]:
    """Counts of what could pile up."""
    model.active.attach()  # views as a forward gets them
    gc.collect()
    process = psutil.Process()
    hooks = [value for module in model.modules() for name, value in vars(module).items() if "hooks" in name]
    return {
        "objects": len(gc.get_objects()),
        "tensors": sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "hooks": sum(map(len, hooks)),
        "graph": max(graph_depth(view) for view in views(model)),
        "bytes": process.memory_info().rss,
    }


def views(model: TraDyModel) -> list[Tensor]:
    return [module.active_view for module in model.modules() if getattr(module, "active_view", None) is not None]


def graph_depth(tensor: Tensor) -> int:
    depth, node = 0, tensor.grad_fn
    while node is not None:
        depth, node = depth + 1, node.next_functions[0][0] if node.next_functions else None
    return depth


def refuse_drift(model: TraDyModel) -> None:
    """The weights of the layers hold, bit for bit, what the flat Parameter does."""
    model.state_dict()  # writes back
    for names, flat in zip(model.active.groups, model.active.flat, strict=True):
        start = 0
        for name in names:
            index = model.active.selection.get(name, torch.tensor([], dtype=torch.int64))
            values = read_channels(model.active.layers[name][0], index).flatten()
            assert torch.equal(flat[start : start + len(values)], values), name
            start += len(values)
        assert not flat[start:].any()  # the part that no channel fills


def test_thousands_of_redraws_leave_nothing_behind_and_end_as_the_day_before():
    model = wrap(conv_net(), BATCH[0], 0.2, optimizer_state="carry", norm_mode="train").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)
    counts, start, draws = [], copy_of_state(model), hashlib.sha256()
    for draw in range(DRAWS):
        model.resample(draw, optimizer)
        draws.update(hash_of(sorted(model.active_channels().items())).encode())
        loss_of(model, BATCH).backward()
        optimizer.step()
        optimizer.zero_grad()
        if draw % 200 == 0:
            refuse_drift(model)
        if draw in (DRAWS // 4, DRAWS - 1):
            counts.append(left_behind(model))
    end = copy_of_state(model)
    assert all(torch.isfinite(value).all() for value in end.values())
    assert all(not torch.equal(start[f"{row.name}.weight"], end[f"{row.name}.weight"]) for row in model.pool)
    early, late = counts
    grown = {name: late[name] - early[name] for name in early}
    assert grown.pop("bytes") < 2**20 and grown.pop("objects") <= 5, counts
    assert max(grown.values()) <= 0, counts
    known = json.loads(FIXTURE.read_text())
    assert draws.hexdigest() == known["draws"]
    found = hash_of(sorted(end.items()))
    if machine() not in known["weights"]:
        pytest.skip(
            f"the weights are not known on this machine; add {json.dumps({machine(): found})} to {FIXTURE.name}"
        )
    assert found == known["weights"][machine()]


def test_a_long_run_of_a_trainer_piles_up_no_files_hooks_or_threads(tmp_path):
    def files() -> set[str]:
        return {path.name for path in tmp_path.rglob("*") if path.is_file()}

    counts = []
    for epochs in (20, 100):
        kwargs = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": 2, "num_train_epochs": epochs}
        trainer = make_trainer(tmp_path, config={"resample_every": 1, "optimizer_state": "carry"}, **kwargs)
        trainer.train(resume_from_checkpoint=epochs > 20)
        refuse_drift(trainer.model)
        counts.append(left_behind(trainer.model) | {"names": len(files())})
        assert len(list(tmp_path.glob("checkpoint-*"))) == 2
        history = tmp_path / "trady_history.json"
        assert history.stat().st_size < 20_000 + 200 * trainer.state.global_step
    early, late = counts
    assert trainer.state.global_step == 300 and len(trainer._redraws.history.draws) == 300
    assert {late[name] - early[name] for name in ("files", "threads", "hooks", "graph", "names")} == {0}, counts
