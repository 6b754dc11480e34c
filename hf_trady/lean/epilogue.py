"""A frozen batch-norm and an activation, done in place on the output of the layer before them."""

from dataclasses import dataclass

from torch import Tensor

from .activations import GatedActivation
from .base import Absorbable
from .batch_norm import FrozenBatchNorm
from .gates import Gate
from .smooth_gates import SmoothGate


@dataclass(eq=False)
class LeanEpilogue:
    """What follows a layer and, in training, is computed with it: the `Epilogue` of `layers`.

    The norm's scale goes into the weight, the activation works in place on the output, and the modules themselves
    then pass it on untouched. That leaves no tensor but the layer's own, in the forward and in the backward.

    Attributes:
        norm: The batch-norm that takes the output of a convolution, and alone does; None: there is none.
        activation: The activation that takes what comes then, and alone does; None: there is none.
    """

    norm: FrozenBatchNorm | None = None
    activation: GatedActivation | None = None

    @property
    def gate(self) -> Gate | SmoothGate | None:
        return None if self.activation is None else self.activation.gate

    @property
    def shift(self) -> Tensor | None:
        return None if self.norm is None else self.norm.bias

    def is_ready(self) -> bool:
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._modules())
        trains = self.activation is None or self.activation.training
        return trains and not hooked and (self.norm is None or self.norm.is_affine_map())

    def scale_and_mean(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.norm is None else self.norm.scale_and_mean()

    def hand_over(self, output: Tensor) -> None:
        for module in self._modules():
            module.mark_done(output)

    def forget(self) -> bool:
        """Expect no output any more; returns whether one has not come by the norm or the activation."""
        awaited = [module.forget() for module in self._modules()]
        return any(awaited)

    def _modules(self) -> list[Absorbable]:
        return [module for module in (self.norm, self.activation) if module is not None]
