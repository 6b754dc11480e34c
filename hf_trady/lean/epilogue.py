"""A frozen batch-norm, and the activation behind it, done in place on a convolution's output."""

from dataclasses import dataclass

from torch import Tensor

from .activations import GatedActivation
from .base import Absorbable
from .batch_norm import FrozenBatchNorm
from .gates import Gate


@dataclass(eq=False)
class ConvEpilogue:
    """What follows a convolution and, in training, is computed with it: the `Epilogue` of `layers.conv`.

    The norm's scale goes into the weight, the activation works in place on the output, and the modules themselves
    then pass it on untouched. That leaves no tensor but the convolution's own, in the forward and in the backward.

    Attributes:
        norm: The batch-norm that takes the convolution's output, and alone does.
        activation: The activation that takes the norm's output, and alone does; None: nothing is done after the norm.
    """

    norm: FrozenBatchNorm
    activation: GatedActivation | None = None

    @property
    def gate(self) -> Gate | None:
        return None if self.activation is None else self.activation.gate

    @property
    def shift(self) -> Tensor | None:
        return self.norm.bias

    def is_ready(self) -> bool:
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self._modules())
        return self.norm.is_affine_map() and not hooked

    def scale_and_mean(self) -> tuple[Tensor, Tensor]:
        return self.norm.scale_and_mean()

    def hand_over(self, output: Tensor) -> None:
        for module in self._modules():
            module.mark_done(output)

    def forget(self) -> bool:
        """Expect no output any more; returns whether one has not come by the norm or the activation."""
        awaited = [module.forget() for module in self._modules()]
        return any(awaited)

    def _modules(self) -> list[Absorbable]:
        return [self.norm] if self.activation is None else [self.norm, self.activation]
