"""What every backward-lean module is: an ordinary module whose backward keeps little of its input or output."""

import weakref
from typing import ClassVar

import torch
from torch import Tensor

from ..standin import StandIn


class LeanModule(StandIn):
    """Mixin for a subclass of a module that isn't updated and computes the same with less kept for backward.

    In eval and generate it is the plain module; under `no_grad`, too, but for dropout in training mode.

    Attributes:
        exact: Whether its gradients are those of the plain module to float rounding.
    """

    exact: ClassVar[bool]

    def keeps_for_backward(self, x: Tensor) -> bool:
        """Whether this is a call in training that autograd would follow."""
        return self.training and torch.is_grad_enabled() and x.requires_grad


class Absorbable(LeanModule):
    """A lean module whose work the layer before it can do in place on its own output (see `epilogue.py`)."""

    own_attributes = ("_done",)
    transient_attributes = ("_done",)
    _done: tuple[weakref.ref, ...] = ()

    def mark_done(self, output: Tensor) -> None:
        """`output` has been through this module."""
        self._done = (*self._done, weakref.ref(output))

    def is_done(self, x: Tensor) -> bool:
        """Whether `x`, with which this module is called, has been through it already; asks once."""
        awaited = tuple(done for done in self._done if done() is not x)
        found, self._done = len(awaited) < len(self._done), awaited
        return found

    def forget(self) -> bool:
        """Expect no output any more; returns whether one that was marked as done has not come by."""
        awaited, self._done = bool(self._done), ()
        return awaited
