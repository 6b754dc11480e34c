"""Estimates the norm of every input channel's gradient from little more than a forward and a backward."""

import torch
from torch import Tensor, nn

from ..calls import first_input
from .base import SparseLayer
from .convolution import Convolution


class Probe:
    """Looks at the calls of one layer: at the gradients of its outputs, and later, in the same calls, at its inputs.

    The gradient of channel c is `sum_i x_ic g_i` over positions i (tokens, pixels), with g_i the gradient of the
    output there. Projected on a random direction r of unit variance, its square is in expectation the square of its
    norm (Johnson and Lindenstrauss). So `g_i . r` is kept, a few numbers a position instead of x, and multiplied by x
    when the same batch goes forward again. Where an output sees too few channels for that to pay (a depthwise
    convolution), x and g are taken as if independent over positions instead: their means, variances and sums are kept.

    Args:
        layer: The layer.
        num_directions: How many directions, of which the squares are averaged: their relative error is
            `sqrt(2 / num_directions)`. 0: none, as if that did not pay.
        generator: Draws the directions.
    """

    def __init__(self, layer: SparseLayer, num_directions: int, generator: torch.Generator):
        self.layer = layer
        self.groups = getattr(layer, "groups", 1)
        self.num_outputs = layer.num_outputs() // self.groups  # that see one channel
        self.projects = 0 < num_directions < self.num_outputs
        self.directions = torch.randn(layer.num_outputs(), num_directions, generator=generator)
        self.directions = self.directions.to(layer.weight.device)
        self.calls: list[ProbedCall] = []
        self._seen = 0
        self._sum: Tensor | float = 0.0

    def begin(self) -> "ProbedCall":
        """A call that gradients will come from. Backward fills it."""
        self.calls.append(ProbedCall(self))
        return self.calls[-1]

    def see_input(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the layer, with keywords, for the second time that the batch goes forward."""
        if not torch.is_grad_enabled():  # a call without gradients was not looked at the first time either
            return
        call, x = self.calls[self._seen], first_input(args, kwargs).detach()
        self._seen += 1
        if call.kept is None:  # no gradient came to it
            return
        with torch.no_grad():
            self._sum = self._sum + (self._product(x, call.kept) if self.projects else self._moments(x, call.kept))
        call.kept = None

    def norms(self) -> Tensor:
        """The estimate of every channel's norm, float32 `[C]`.

        Raises:
            ValueError: If the layer was not called a second time with gradients on, where backward came by.
        """
        if any(call.kept is not None for call in self.calls):
            raise ValueError(
                "the second forward did not pass where the backward of the first one did, as with reentrant gradient "
                "checkpointing; set use_reentrant=False, or call measure(dataloader, how='in_parts')"
            )
        if not isinstance(self._sum, Tensor):
            return torch.zeros(self.layer.num_channels())
        squares = self._sum.float()
        if self.projects:
            squares = (squares**2).flatten(2).sum(-1).mean(1)
        return squares.clamp_min(0).sqrt().cpu()

    def _product(self, x: Tensor, projected: Tensor) -> Tensor:
        """Gradients of the weight if the layer's outputs were the projected ones, `[C, directions, kH * kW]`."""
        if not isinstance(self.layer, nn.Conv2d):
            return (x.reshape(-1, x.shape[-1]).to(projected.dtype).t() @ projected).unsqueeze(-1)
        x = x if x.dim() == 4 else x.unsqueeze(0)
        layer, channels = self.layer, torch.arange(self.layer.num_channels(), device=x.device)
        conv = Convolution(layer.stride, tuple(layer._pads(x)), layer.dilation, layer.groups)
        shape = torch.Size([projected.shape[1], *layer.weight.shape[1:]])
        return conv.grad_slice(projected, x.to(projected.dtype), shape, channels).flatten(2)

    def _moments(self, x: Tensor, kept: Tensor) -> Tensor:
        """Squares of the norms, `[C]`, if x and the output's gradient were independent over positions."""
        total, squares, positions = kept
        is_conv = isinstance(self.layer, nn.Conv2d)
        x = x.movedim(-3, -1) if is_conv else x
        var, mean = torch.var_mean(x.flatten(0, -2).float(), dim=0, correction=0)
        taps = self.layer.weight[0, 0].numel() if is_conv else 1
        around = squares - total / positions
        by_channel = [
            part.view(self.groups, self.num_outputs).sum(1).repeat_interleave(len(mean) // self.groups)
            for part in (total, around)
        ]
        return taps * (mean**2 * by_channel[0] + var * by_channel[1])


class ProbedCall:
    """One call of a layer.

    Attributes:
        kept: What its backward has left of the gradient of its output. Projections `[n, directions]`, of a convolution
            `[B, groups * directions, H', W']`; or, by output channel `[C']`, the square of its sum over positions and
            its sum of squares, and the number of positions.
    """

    def __init__(self, probe: Probe):
        self.probe = probe
        self.kept: Tensor | list | None = None

    def take(self, grad: Tensor, part: slice, samples: int, scale: Tensor | None = None) -> None:
        """Take in a part of the gradient of the output.

        Args:
            grad: `[n, C']`, or `[n, C', H', W']` of a convolution.
            part: Which of the leading dimension it is.
            samples: Size of the whole leading dimension.
            scale: `[C']`, that the gradient is to be multiplied by.
        """
        if self.probe.projects:
            projected = self._project(grad, scale)
            if self.kept is None:
                self.kept = projected.new_empty(samples, *projected.shape[1:])
            self.kept[part] = projected
            return
        over = [dim for dim in range(grad.dim()) if dim != 1]
        grad = grad.float()
        total, squares = grad.sum(over), (grad**2).sum(over)
        if scale is not None:
            total, squares = total * scale, squares * scale**2
        positions = grad.numel() // grad.shape[1]
        if self.kept is None:
            self.kept = [total, squares, positions]
        else:
            self.kept = [old + new for old, new in zip(self.kept, (total, squares, positions), strict=True)]
        if part.stop >= samples:
            self.kept[0] = self.kept[0] ** 2

    def _project(self, grad: Tensor, scale: Tensor | None) -> Tensor:
        """`[n, directions]`, or `[n, groups * directions, H', W']` of a convolution."""
        directions = self.probe.directions if scale is None else self.probe.directions * scale.unsqueeze(1)
        directions = directions.to(grad.dtype)
        if grad.dim() == 2:
            return grad @ directions
        groups = self.probe.groups
        kernel = directions.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return torch.conv2d(grad, kernel[..., None, None], groups=groups)
