"""Which batch-norm and activation follow each layer and take nothing but its output."""

from dataclasses import dataclass, field

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.pytorch_utils import Conv1D

from ..calls import first_input
from .activations import GatedActivation
from .batch_norm import FrozenBatchNorm
from .registry import lean_type


@dataclass
class Chain:
    """A layer, the norm that alone takes its output and the activation that alone takes the norm's, or the layer's.

    Attributes:
        layer, norm, activation: Names of the modules; one of the last two may be None.
    """

    layer: str
    norm: str | None = None
    activation: str | None = None


def find_chains(model: nn.Module, args: tuple, kwargs: dict) -> list[Chain]:
    """The chains in one forward of `model`, which should run on fake tensors, in the mode that training has.

    Whatever else reads a layer's output before the norm has turned it into its own, or is returned it, would see the
    norm's work too early: such a layer begins no chain. Nor does one that is called more than once. Only a
    convolution's norm counts.
    """
    watch = _Watch({module: name for name, module in model.named_modules()})
    handles = []
    for module in watch.names:
        followers = _is_kind(module, FrozenBatchNorm) or _is_kind(module, GatedActivation)
        if isinstance(module, nn.Conv2d | nn.Linear | Conv1D) or followers:
            handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(watch.leave))
    try:
        with torch.no_grad(), watch:
            output = model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    returned = {_storage(tensor) for tensor in tree_iter(output) if isinstance(tensor, Tensor)}
    return [chain for link in watch.links if (chain := watch.chain_of(link, returned)) is not None]


@dataclass
class _Link:
    """A module's output and what happened to it."""

    module: nn.Module
    output: Tensor
    readers: list[nn.Module | None] = field(default_factory=list)  # innermost watched module, at each operation
    successor: "_Link | None" = None


class _Watch(TorchDispatchMode):
    """Follows the outputs of the watched modules through one forward."""

    def __init__(self, names: dict[nn.Module, str]):
        super().__init__()
        self.names = names
        self.links: list[_Link] = []  # these keep the outputs alive, so that a storage stands for one output
        self.by_storage: dict[int, _Link] = {}
        self.stack: list[tuple[nn.Module, Tensor | None]] = []

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.stack.append((module, first_input(args, kwargs) if len(args) + len(kwargs) == 1 else None))

    def leave(self, module: nn.Module, args, output) -> None:
        _, x = self.stack.pop()
        link = _Link(module, output)
        before = None if x is None else self.by_storage.get(_storage(x))
        if before is not None and before.output is x:
            before.successor = link
        self.links.append(link)
        self.by_storage[_storage(output)] = link  # of an activation in place this is the norm's own storage

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_iter((args, kwargs)):
            link = self.by_storage.get(_storage(tensor)) if isinstance(tensor, Tensor) else None
            if link is not None:
                link.readers.append(self.stack[-1][0] if self.stack else None)
        return function(*args, **(kwargs or {}))

    def chain_of(self, layer: _Link, returned: set[int]) -> Chain | None:
        if not isinstance(layer.module, nn.Conv2d | nn.Linear | Conv1D) or not self._feeds_next(layer, returned):
            return None
        chain = Chain(self.names[layer.module])
        end = layer
        if isinstance(layer.module, nn.Conv2d) and _is_kind(layer.successor.module, FrozenBatchNorm):
            end = layer.successor
            chain.norm = self.names[end.module]
            if self.num_calls(end.module) > 1:
                return None
            if isinstance(end.module, BatchNormAct2d):
                inner = end.module.act
                if isinstance(end.module.drop, nn.Identity) and _is_kind(inner, GatedActivation):
                    chain.activation = self.names[inner]
                return chain
        if self._feeds_next(end, returned) and _is_kind(end.successor.module, GatedActivation):
            chain.activation = self.names[end.successor.module]
        return None if chain.norm is None and chain.activation is None else chain

    def num_calls(self, module: nn.Module) -> int:
        return sum(link.module is module for link in self.links)

    def _feeds_next(self, link: _Link, returned: set[int]) -> bool:
        """Whether a watched module follows, and nothing but it, and what it calls, has read the output of `link`."""
        successor = link.successor
        if successor is None or self.num_calls(link.module) > 1:
            return False
        inside = set(successor.module.modules())
        if any(reader not in inside for reader in link.readers):
            return False
        return _storage(link.output) == _storage(successor.output) or _storage(link.output) not in returned


def _is_kind(module: nn.Module, kind: type) -> bool:
    """Whether `module` is, or would be turned into, a lean module of `kind`."""
    return isinstance(module, kind) or issubclass(lean_type(module, "compressed") or object, kind)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
