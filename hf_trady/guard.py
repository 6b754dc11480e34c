"""Keeps a step whose gradient is not finite from changing anything."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import get_total_norm

from .layers import is_sharded, whole


class StepGuard:
    """Looks at the gradients of a step before the optimizer does.

    A NaN or infinite loss, or values of a gradient whose squares overflow, would leave NaN in the weights or in the
    optimizer's state for good. Where such a step is stopped here, weights, optimizer state and the statistics of
    batch-norms are what they were before it.

    Args:
        model: What trains.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> guard = StepGuard(model)
        >>> guard.begin()
        >>> model(torch.tensor([1.0, float("nan")])).backward()
        >>> guard.passes(), model.weight.grad
        (False, None)
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._statistics: list[tuple[Tensor, Tensor]] = []  # of batch-norms, and what they were

    @torch.no_grad()
    def begin(self) -> None:
        """Remember what the forward is about to move. Call it before the first micro-batch of a step."""
        norms = [m for m in self.model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
        moving = [buffer for norm in norms for buffer in norm.buffers()]
        self._statistics = [(buffer, buffer.clone()) for buffer in moving]

    @torch.no_grad()
    def passes(self, *losses: Tensor, alone: bool = True) -> bool:
        """Whether the norm of all gradients is finite; if not, the step is stopped: the gradients are dropped, upon
        which an optimizer passes its Parameters over, and statistics are put back.

        Call it after the backward, and after `unscale_` where there is a GradScaler. Gradients that are averaged over
        processes give the same answer in each of them.

        Args:
            *losses: Those of the step.
            alone: No other process has a part in the step, so the losses and the statistics must be finite, too: the
                loss of a batch without a sample is NaN, while its gradient is 0.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        sharded = [gradient for gradient in gradients if is_sharded(gradient)]
        others = [gradient for gradient in gradients if not is_sharded(gradient)]
        norms = [whole(get_total_norm(group)) for group in (sharded, others) if group]
        moved = _all_finite(buffer for buffer, _ in self._statistics)
        passes = _all_finite(norms) and (not alone or (moved and _all_finite(losses)))
        if not passes:
            for parameter in self.model.parameters():
                parameter.grad = None
        if not passes or not moved:
            for buffer, kept in self._statistics:
                buffer.copy_(kept)
        return passes


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    # A single answer that waits for the device, however many tensors there are.
    flags = [torch.isfinite(tensor).all() for tensor in tensors]
    return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())
