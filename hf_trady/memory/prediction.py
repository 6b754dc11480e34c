"""What one training step takes in memory, predicted by running it on fake tensors."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from ..fake import NeedsValues, fake_copy, fake_inputs, fake_mode, running, unpacked_sequences
from .graph import op_of_storage
from .storages import Storage, StorageLog


KINDS = ("inputs", "channels", "optimizer", "gradients", "activations", "masks", "transients")
"""What bytes are for: the batch; the trained channels' own copy; optimizer state; gradients of Parameters; what the
forward leaves for backward, apart from elements of one byte or less (masks); and everything that comes and goes."""

PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class StepSetup:
    """What a training step does besides the model.

    Attributes:
        optimizer_cls: Optimizer class.
        optimizer_kwargs: Its arguments besides the parameters.
        loss: Output of the model -> scalar loss; see `default_loss`.
        autocast_dtype: Run the forward under autocast to this dtype.
        accumulates: Gradients of earlier micro-batches are there when the forward starts.
        reserve: Share of a budget in bytes to leave for what no prediction sees: workspaces, what libraries take once.
        num_draws: Draws of the run, where channels that trained stay beside quantized weights: room for all of them.
    """

    optimizer_cls: type[torch.optim.Optimizer] = torch.optim.AdamW
    optimizer_kwargs: Mapping[str, Any] | None = None
    loss: Callable[[Any], Tensor] | None = None
    autocast_dtype: torch.dtype | None = None
    accumulates: bool = False
    reserve: float = 0.0
    num_draws: int = 1


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step in its steady state (optimizer state is there when it starts), in bytes.

    Everything is counted that is there beside the weights and buffers of the plain model, the batch included. What an
    operation allocates and frees by itself (a convolution's workspace) is not seen.

    Attributes:
        peak: Most bytes at any one time.
        at_peak: By kind, the bytes at that time; they sum up to `peak`.
        weights: Bytes of the model's own weights and buffers, which are not in `peak`.
        kept: Bytes of activations and masks at the end of the forward.
        layers: Module name -> bytes of `kept` that were saved in it; each storage counts once.
        ops: Operation -> bytes of `kept` that autograd holds for it; functions written in Python by their full name.
        order: Names of the modules in the order of their first call.
        timeline: By kind, the bytes after each operation.
        ends: By phase, the number of operations after which it ends.
        names: By operation, the module whose forward it belongs to, or "".
    """

    peak: int
    at_peak: dict[str, int]
    weights: int
    kept: int
    layers: dict[str, int]
    ops: dict[str, int]
    order: list[str]
    timeline: dict[str, list[int]]
    ends: dict[str, int]
    names: list[str]

    def to_dict(self) -> dict:
        """A JSON-serializable dict."""
        return asdict(self)


def predict_step(model: nn.Module, example_inputs: Any, setup: StepSetup | None = None) -> StepMemory:
    """Predict the memory of one training step of `model`, which is neither run nor changed.

    Args:
        model: Any module with trainable parameters, in the mode (train or eval) in which it will be trained. Tensors
            on the meta device are taken to be on the CPU.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs.
        setup: Optimizer, loss, precision.

    Raises:
        ValueError: If the model or the optimizer can't run on fake tensors, as its control flow depends on values, or
            nothing trains.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
        >>> step = predict_step(net, torch.zeros(16, 8))
        >>> step.weights, step.at_peak["inputs"], step.at_peak["optimizer"]
        (160, 512, 328)
    """
    mode = fake_mode()
    return run_step(fake_copy(model, mode), fake_inputs(example_inputs, mode), mode, setup or StepSetup())


def run_step(
    model: nn.Module,
    inputs: tuple[tuple, dict],
    mode: FakeTensorMode,
    setup: StepSetup,
    own: nn.Module | None = None,
    beside: int = 0,
) -> StepMemory:
    """Like `predict_step`, for a model and inputs that are fake already, and left without gradients.

    Args:
        model: A module made of fake tensors of `mode`.
        inputs: Fake positional and keyword arguments.
        mode: The fake mode.
        setup: Optimizer, loss, precision.
        own: The part of `model` whose Parameters and buffers are the model's own weights (default: all of it).
        beside: Bytes of trained channels that `model` keeps besides its Parameters and buffers.

    Raises:
        ValueError: If the model or the optimizer can't run on fake tensors, as its control flow depends on values, or
            nothing trains.
    """
    own = model if own is None else own
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("can't predict a training step: no parameter requires a gradient")
    step = _Step(model, inputs, setup, own, trained)
    try:
        with running(mode), unpacked_sequences():
            return step.run(beside)
    except NeedsValues as error:
        what, other_way = type(own).__name__, ""
        if step.is_optimizing:
            cls = setup.optimizer_cls
            what = f"the optimizer {cls.__module__.partition('.')[0]}.{getattr(cls, '__name__', cls)}"
            other_way = ", or take another optimizer (optim)"
        raise ValueError(
            f"can't predict the memory of {what}: {error}; give "
            f"memory_budget as an int (elements) or a float (share of the network){other_way}"
        ) from error  # which may be the model's or the loss's own
    finally:
        for parameter in trained:
            parameter.grad = None


def default_loss(output: Any) -> Tensor:
    """The model's own loss, or else cross-entropy over the last dimension of its logits, as a Trainer computes it."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is not None:
        return loss
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad)
    if logits.dim() < 2:
        return logits.float().sum()
    logits = logits.flatten(0, -2).float()
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class _Step:
    """One step under observation."""

    def __init__(self, model: nn.Module, inputs: tuple[tuple, dict], setup: StepSetup, own: nn.Module, trained: list):
        self.model, self.inputs, self.setup, self.own, self.trained = model, inputs, setup, own, trained
        self.names = {module: name for name, module in own.named_modules()}
        self.is_optimizing = False
        self.stack = [""]
        self.order: dict[str, None] = {}
        self.savers: dict[int, str] = {}  # id of a Storage -> name of the module that saved it first
        self.log = StorageLog(lambda: self.stack[-1])

    def run(self, beside: int) -> StepMemory:
        optimizer = self._warm_optimizer()
        log, ends = self.log, {}
        args, kwargs = self.inputs
        # Plain tensor lists, so that no storage of a later step can be mistaken for one of these.
        weights = log.add([*self.own.parameters(), *self.own.buffers()])
        kinds = {id(storage): None for storage in weights}
        groups = {
            "inputs": [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)],
            "channels": list(self.model.parameters()),
            "optimizer": [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)],
            "gradients": [parameter.grad for parameter in self.trained if parameter.grad is not None],
        }
        for kind, tensors in groups.items():
            for storage in log.add(tensors):
                kinds.setdefault(id(storage), kind)
        kept_beside = Storage(beside, 1, log.time)
        log.storages.append(kept_beside)
        kinds[id(kept_beside)] = "channels"
        with log:
            loss = self._forward(args, kwargs)
            ends["forward"] = log.time
            kept = [storage for storage in log.storages if storage.died is None and id(storage) not in kinds]
            ops = op_of_storage(loss, log.find)
            loss.backward()
            del loss
            ends["backward"] = log.time
            for storage in log.add(parameter.grad for parameter in self.trained if parameter.grad is not None):
                kinds.setdefault(id(storage), "gradients")
            optimizer.step()
            ends["optimizer"] = log.time
        for storage in kept:
            kinds.setdefault(id(storage), "masks" if storage.itemsize == 1 else "activations")
        return self._summary(kinds, weights, kept, ops, ends)

    def _warm_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, with the state that its first step makes."""
        # Left out: weights that no gradient reaches have no state in training either, but count here.
        self.is_optimizing = True
        optimizer = self.setup.optimizer_cls(self.trained, **(self.setup.optimizer_kwargs or {}))
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        self.is_optimizing = False
        if not self.setup.accumulates:
            optimizer.zero_grad()
        return optimizer

    def _forward(self, args: tuple, kwargs: dict) -> Tensor:
        dtype = self.setup.autocast_dtype
        device = self.trained[0].device.type
        with contextlib.ExitStack() as stack:
            # Not on the modules themselves: some compute otherwise where they have hooks of their own.
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            stack.callback(register_module_forward_hook(self._leave, always_call=True).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor))
            if dtype is not None:
                stack.enter_context(torch.autocast(device, dtype))
            return (self.setup.loss or default_loss)(self.model(*args, **kwargs))

    def _enter(self, module: nn.Module, args) -> None:
        if module in self.names:
            self.stack.append(self.names[module])
            self.order.setdefault(self.names[module])

    def _leave(self, module: nn.Module, args, output) -> None:
        if module in self.names:
            self.stack.pop()

    def _saved(self, tensor: Tensor) -> Tensor:
        storage = self.log.find(tensor)
        if storage is not None:
            self.savers.setdefault(id(storage), self.stack[-1])
        return tensor

    def _summary(self, kinds: dict, weights: list[Storage], kept: list[Storage], ops: dict, ends: dict) -> StepMemory:
        log = self.log
        changes = {kind: np.zeros(log.time + 2, dtype=np.int64) for kind in KINDS}
        for storage in log.storages:
            kind = kinds.get(id(storage), "transients")
            if kind is not None:
                changes[kind][storage.born] += storage.nbytes
                if storage.died is not None:
                    changes[kind][storage.died] -= storage.nbytes
        curves = {kind: change.cumsum()[:-1] for kind, change in changes.items()}
        total = sum(curves.values())
        peak = int(total.argmax())
        layers: dict[str, int] = {}
        by_op: dict[str, int] = {}
        for storage in kept:
            name = self.savers.get(id(storage), storage.module)
            layers[name] = layers.get(name, 0) + storage.nbytes
            if id(storage) in ops:
                by_op[ops[id(storage)]] = by_op.get(ops[id(storage)], 0) + storage.nbytes
        return StepMemory(
            peak=int(total[peak]),
            at_peak={kind: int(curve[peak]) for kind, curve in curves.items()},
            weights=sum(storage.nbytes for storage in weights),
            kept=sum(storage.nbytes for storage in kept),
            layers=layers,
            ops=dict(sorted(by_op.items(), key=lambda item: -item[1])),
            order=list(self.order),
            timeline={kind: curve.tolist() for kind, curve in curves.items()},
            ends=ends,
            names=log.names,
        )
