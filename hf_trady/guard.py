"""Keeps a step whose gradient is not finite from changing anything."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import get_total_norm


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
    def passes(self, *losses: Tensor) -> bool:
        """Whether the norm of all gradients is finite, and what the forward has moved; if not, the step is stopped:
        the gradients are dropped, upon which an optimizer passes its Parameters over.

        Call it after the backward, and after `unscale_` where there is a GradScaler. Gradients that are averaged over
        processes give the same answer in each of them.

        Args:
            *losses: Those of the step, which must be finite, too: that of a batch without a sample is NaN, while its
                gradient is 0. Leave them out where there are several processes, which must agree.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        norms = [get_total_norm(group) for group in (sharded, whole) if group]
        norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        if all(bool(torch.isfinite(value).all()) for value in (*norms, *losses, *(b for b, _ in self._statistics))):
            return True
        for parameter in self.model.parameters():
            parameter.grad = None
        for buffer, kept in self._statistics:
            buffer.copy_(kept)
        return False
