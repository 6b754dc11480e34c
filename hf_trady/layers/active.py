"""The Parameters that hold the active channels of all layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.utils import logging

from .base import SparseLayer
from .channels import channel_shape, keeps_beside, num_channels, read_channels, weight_dtype, write_channels
from .sharded import is_sharded, put, whole
from .shared import SharedSlice


logger = logging.get_logger(__name__)

Selection = Mapping[str, Tensor]
"""Layer name -> sorted indices of its active input channels, int64 `[n]` on the CPU."""


class ActiveChannels(nn.Module):
    """One flat Parameter of fixed length that holds the weight of every active channel.

    Fixed length means that gradient, optimizer state and all-reduce never change shape, whatever is drawn. The values
    here are the truth: `attach` copies them into the layers' weights before every forward and hands each layer a view
    of its part, through which its gradient arrives here. A model whose layers differ in dtype or device has one such
    Parameter for each kind.

    Under FSDP2 (`fully_shard`) the flat Parameters are sharded like any other; what reads or changes the active
    channels outside a forward is then collective.

    Args:
        layers: By name, the modules that share this name's weight (usually one).
        groups: For each flat Parameter, the names of the layers that it serves, all of one dtype and device.
        capacities: For each flat Parameter, its length in elements.
        touched: Layer name -> bool `[C]`; a training forward marks the active channels here.
        shared_inputs: Names of layers that are given the very same input, input by input. Those of them that train
            the same channels keep one slice of it.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[SparseLayer]],
        groups: Sequence[Sequence[str]],
        capacities: Sequence[int],
        touched: dict[str, Tensor],
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        super().__init__()
        self.layers = dict(layers)
        self.groups = [list(names) for names in groups]
        self.shared_inputs = [list(names) for names in shared_inputs]
        firsts = [layers[names[0]][0] for names in groups]
        self.flat = nn.ParameterList(
            nn.Parameter(first.weight.new_zeros(length, dtype=weight_dtype(first)))
            for first, length in zip(firsts, capacities, strict=True)
        )
        self.selection: dict[str, Tensor] = {}
        self.touched = touched
        self._marked, self._marks = False, True
        self._versions: dict[str, int | None] = {}  # of the weights, when they last held the values here
        self._was_sharded = False

    def assign(
        self, selection: Selection, optimizer: torch.optim.Optimizer | None = None, carry: bool = False
    ) -> None:
        """Make `selection` the active channels; the values of those active until now stay in the layers' weights.

        Args:
            selection: The channels to train from now on.
            optimizer: The optimizer that steps the flat Parameters; its state of channels that are no longer active
                is dropped.
            carry: Keep its state of channels that stay active, instead of starting them from nothing; unless it is
                quantized, as that of 8-bit optimizers is.
        """
        self.write_back()
        # Each layer's index is a tensor of its own: to dynamo, whether two are one makes other code.
        drawn = {name: index.clone() for name, index in selection.items() if len(index)}
        before, self.selection = self.selection, drawn
        for name, modules in self.layers.items():
            for module in modules:
                module.active_index, module.active_view = self.selection.get(name), None
                module.shared_slice = None
        self._share_slices()
        self._marked = False
        for names, parameter in zip(self.groups, self.flat, strict=True):
            parameter.grad = None
            if optimizer is not None:
                state = optimizer.state.get(parameter, {})
                if carry and _is_by_element(state, parameter.shape):
                    self._carry_state(names, state, parameter.shape, before)
                else:
                    optimizer.state.pop(parameter, None)
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Read the active channels from the layers' weights."""
        for names, parameter in zip(self.groups, self.flat, strict=True):
            apart = is_sharded(parameter)
            like = {"dtype": parameter.dtype, "device": parameter.device}
            values = torch.zeros(parameter.shape, **like) if apart else parameter.zero_()
            for name, part in self._split(names, values, self.selection):
                part.copy_(read_channels(self.layers[name][0], self.selection[name]))
            if apart:
                put(parameter, values)
        self._versions = self._current_versions()

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the active channels into the layers' weights; where somebody else has changed a weight since the last
        time, read them from it instead.

        Always, rather than when the Parameter's version says that it changed: fused optimizers don't advance it.
        """
        versions = self._current_versions()  # which writing below, through `.data`, leaves as they are
        changed = {name for name, version in self._versions.items() if version not in (None, versions[name])}
        for name in changed:
            mark(self.touched, name, torch.ones(num_channels(self.layers[name][0]), dtype=torch.bool))
        for names, parameter in zip(self.groups, self.flat, strict=True):
            for name, part in self._split(names, whole(parameter), self.selection):
                if name in changed:
                    part.copy_(read_channels(self.layers[name][0], self.selection[name]))
                else:
                    write_channels(self.layers[name][0], self.selection[name], part)
        self._versions = versions

    def attach(self, write_back: bool = True, to_compile: bool = False) -> None:
        """Prepare a forward: write the values back, unless told not to, and, if gradients are on, hand each layer its
        view.

        Without gradients the layers keep the views of the last training forward: with gradient checkpointing its
        backward may still be to come, and runs the layers again.

        Args:
            write_back: Write the values back.
            to_compile: Hand over what torch.compile sees alike for any number of channels, none and one included: a
                layer without active channels gets a view of none of them.
        """
        if write_back:
            self.write_back()
        if not torch.is_grad_enabled():
            return
        if self._marks and not self._marked:
            self._mark_touched()
        none = torch.empty(0, dtype=torch.int64)
        for names, parameter in zip(self.groups, self.flat, strict=True):
            selection = {name: self.selection.get(name, none) for name in names} if to_compile else self.selection
            for name, part in self._split(names, parameter, selection):
                if to_compile:
                    part = part.clone()  # dynamo guards the place of a view in its storage
                for module in self.layers[name]:
                    index = none.clone() if module.active_index is None else module.active_index
                    module.active_index, module.active_view = index.to(part.device), part
                    if to_compile:
                        mark_unbacked(module.active_index, 0)
                        mark_unbacked(module.active_view, 0)

    @torch.no_grad()
    def gradient_norms(self) -> dict[str, Tensor]:
        """Layer name -> L2 norm of the gradient of each active channel, float32 `[n]`, of the last backward."""
        norms = {}
        for names, parameter in zip(self.groups, self.flat, strict=True):
            if parameter.grad is not None:
                for name, part in self._split(names, whole(parameter.grad), self.selection):
                    norms[name] = torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float32).cpu()
        return norms

    @contextmanager
    def unmarked(self) -> Iterator[None]:
        """Don't count channels that are active in the block as touched: nothing is updated in it."""
        self._marks = False
        try:
            yield
        finally:
            self._marks = True

    def _current_versions(self) -> dict[str, int | None]:
        return {name: self._version(name) for name in self.layers}

    def _version(self, name: str) -> int | None:
        """How often the layer's weight was changed in place, other than by us, through `.data`; None where torch does
        not tell."""
        weight = self.layers[name][0].weight
        self._was_sharded |= is_sharded(weight)  # gathering changes it, too
        is_told = not (self._was_sharded or keeps_beside(self.layers[name][0]) or weight.is_inference())
        return weight._version if is_told else None

    def __getstate__(self) -> dict:
        """The weights of a copy are new ones, unchanged yet."""
        known = {name: 0 for name, version in self._versions.items() if version is not None}
        return super().__getstate__() | {"_versions": known}

    def _share_slices(self) -> None:
        for names in self.shared_inputs:
            by_channels: dict[tuple, list[str]] = {}
            for name in names:
                if name in self.selection:
                    by_channels.setdefault(tuple(self.selection[name].tolist()), []).append(name)
            for sharing in by_channels.values():
                shared = SharedSlice(len(sharing)) if len(sharing) > 1 else None
                for module in (module for name in sharing for module in self.layers[name]):
                    module.shared_slice = shared

    def _mark_touched(self) -> None:
        for name, index in self.selection.items():
            mask = torch.zeros(num_channels(self.layers[name][0]), dtype=torch.bool)
            mask[index] = True
            mark(self.touched, name, mask)
        self._marked = True

    def _split(self, names: Sequence[str], flat: Tensor, selection: Selection) -> Iterator[tuple[str, Tensor]]:
        """Each layer's part of `flat`, a tensor of a flat Parameter's length, as a view `[n, *channel_shape]`."""
        names = [name for name in names if name in selection]
        shapes = [(len(selection[name]), *channel_shape(self.layers[name][0])) for name in names]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = flat.split([*sizes, flat.numel() - sum(sizes)])
        for name, shape, part in zip(names, shapes, parts, strict=False):  # the last part is unused
            yield name, part.view(shape)

    @torch.no_grad()
    def _carry_state(self, names: Sequence[str], state: dict, shape: torch.Size, before: Selection) -> None:
        for value in state.values():
            if not isinstance(value, Tensor) or value.shape != shape:
                continue
            kept = whole(value)
            moved = torch.zeros_like(kept)
            old_parts = dict(self._split(names, kept, before))
            for name, new_part in self._split(names, moved, self.selection):
                if name in old_parts:
                    old, new = before[name], self.selection[name]
                    place = torch.searchsorted(old, new).clamp(max=len(old) - 1)
                    stays = old[place] == new
                    new_part[stays] = old_parts[name][place[stays]]
            put(value, moved)


def _is_by_element(state: dict, shape: torch.Size) -> bool:
    """Whether the `state` of a Parameter of `shape` holds numbers of each element, rather than codes of blocks."""
    values = [value for value in state.values() if isinstance(value, Tensor) and value.shape == shape]
    if all(
        value.is_floating_point() and (is_sharded(value) or not is_traceable_wrapper_subclass(value))
        for value in values
    ):
        return True
    logger.warning_once("optimizer_state='carry' can't carry quantized state; each redraw resets it, as 'reset' does.")
    return False


def mark(touched: dict[str, Tensor], name: str, mask: Tensor) -> None:
    """Add `mask`, bool `[C]`, to the channels of layer `name` that training may have changed."""
    touched[name] = touched[name] | mask if name in touched else mask
