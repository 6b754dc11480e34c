"""The arithmetic of a 2-D convolution: its output, its input's gradient and the active slice of its weight's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


GROUPS_AT_ONCE = 128
"""On the CPU. With AVX-512, oneDNN holds the weight's gradient of a group of one channel as one of 16 x 16."""


@dataclass(frozen=True)
class Convolution:
    """One convolution call: plain, strided, dilated, grouped or depthwise.

    torch's convolution takes one padding a dimension. Where the two sides differ, both get the larger one and the
    kernel as many zeros on the other side: the same sums, without a padded copy of x.

    Shapes: x `[B, C, H, W]`, weight `[C', C / groups, kH, kW]`.

    Attributes:
        stride: Rows, columns.
        pads: Padding `(left, right, top, bottom)`.
        dilation: Rows, columns.
        groups: Number of groups.
    """

    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[B, C', H', W']`."""
        return torch.conv2d(x, self._widened(weight), bias, self.stride, self._padding, self._spread, self.groups)

    def grad_x(self, grad_output: Tensor, x_shape: torch.Size, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """Gradient of x, `[B, C, H, W]`, in `out` if that is given.

        A transposed convolution is the same sum as `aten.convolution_backward`, which wants x as well, and where only
        its shape is known would fill a tensor of it.
        """
        if out is not None and self.stride == (1, 1) and self._is_pointwise(weight.shape):
            return _grad_x_pointwise(grad_output, weight, out)
        weight = self._widened(weight)
        # The rows and columns at the end of x that the strided kernel does not reach.
        missed = [
            (size + 2 * pad - spread * (kernel - 1) - 1) % stride
            for size, pad, spread, kernel, stride in zip(
                x_shape[2:], self._padding, self._spread, weight.shape[2:], self.stride, strict=True
            )
        ]
        grad = torch.conv_transpose2d(
            grad_output, weight, None, self.stride, self._padding, missed, self.groups, self._spread
        )
        return grad if out is None else out.copy_(grad)

    def grad_active(
        self, grad_output: Tensor, x_active: Tensor, weight_shape: torch.Size, index: Tensor, by_output: bool
    ) -> Tensor:
        """`grad_outputs` or else `grad_slice`, also of no channel; to a compiler it is one operation."""
        if torch.compiler.is_compiling():
            sizes = list(weight_shape), list(self.stride), list(self.pads), list(self.dilation), self.groups
            return _grad_active(grad_output, x_active, index, *sizes, by_output)
        if not len(index):
            return _new_grad_active(grad_output, weight_shape, index, self.groups, by_output)
        grad = self.grad_outputs if by_output else self.grad_slice
        return grad(grad_output, x_active, weight_shape, index)

    def grad_slice(self, grad_output: Tensor, x_active: Tensor, weight_shape: torch.Size, index: Tensor) -> Tensor:
        """Gradient of the weight's active input channels, `[n, C' / groups, kH, kW]`.

        `x_active` is x at the channels `index`, int64 `[n]`: `[B, n, H, W]`.
        """
        outputs, _, *kernel = weight_shape
        if self._is_pointwise(weight_shape):
            return _grad_weight_pointwise(grad_output, x_active, self.stride)[..., None, None]
        if self.groups == 1:
            return self._grad_weight(grad_output, x_active, (outputs, len(index), *kernel), 1).transpose(0, 1)
        per_group, fed = outputs // self.groups, self.outputs_of(index, weight_shape)

        def grad(at: slice) -> Tensor:
            """Each active channel becomes a group of its own, beside the output channels that it feeds."""
            count = len(index[at])
            grad_fed = take_channels(grad_output, fed[at].flatten())
            shape = count * per_group, 1, *kernel
            return self._grad_weight(grad_fed, x_active[:, at], shape, count).view(count, per_group, *kernel)

        return _in_parts(grad, len(index), grad_output.device)

    def grad_outputs(self, grad_output: Tensor, x: Tensor, weight_shape: torch.Size, index: Tensor) -> Tensor:
        """Gradient of the weight of the output channels `index`, int64 `[n]`: `[n, C / groups, kH, kW]`."""
        outputs, inputs, *kernel = weight_shape
        grad_output = take_channels(grad_output, index)
        if self._is_pointwise(weight_shape):
            return _grad_weight_pointwise(grad_output, x, self.stride).t()[..., None, None]
        if self.groups == 1:
            return self._grad_weight(grad_output, x, (len(index), inputs, *kernel), 1)
        first = index // (outputs // self.groups) * inputs
        seen = first.unsqueeze(1) + torch.arange(inputs, device=index.device)

        def grad(at: slice) -> Tensor:
            """Each active channel becomes a group of its own, with the inputs that it sees."""
            count = len(index[at])
            return self._grad_weight(
                grad_output[:, at], take_channels(x, seen[at].flatten()), (count, inputs, *kernel), count
            )

        return _in_parts(grad, len(index), grad_output.device)

    def outputs_of(self, index: Tensor, weight_shape: torch.Size) -> Tensor:
        """For each input channel of `index`, the output channels that it feeds: int64 `[n, C' / groups]`."""
        outputs, inputs, *_ = weight_shape
        per_group = outputs // self.groups
        first = index // inputs * per_group
        return first.unsqueeze(1) + torch.arange(per_group, device=index.device)

    def _grad_weight(self, grad_output: Tensor, x: Tensor, weight_shape: tuple[int, ...], groups: int) -> Tensor:
        shape_only = grad_output.new_empty(1).expand(self._wide_shape(weight_shape))
        wanted = [False, True, False]
        grad = torch.ops.aten.convolution_backward(
            grad_output, x, shape_only, None, self.stride, self._padding, self._spread, False, [0, 0], groups, wanted
        )[1]
        return self._kernel_in(grad) if self._is_uneven else grad

    def used(self, x: Tensor, weight_shape: torch.Size, layout: torch.memory_format) -> Tensor:
        """What of x the gradient of the weight reads: of a strided pointwise convolution, some of its pixels, laid out
        as `layout`."""
        if not self._is_pointwise(weight_shape) or self.stride == (1, 1):
            return x
        return _strided(x, self.stride).clone(memory_format=layout)  # a single pixel is contiguous as it is

    def _is_pointwise(self, weight_shape: torch.Size) -> bool:
        """Whether each output pixel is a product of the weight and one pixel of x."""
        return tuple(weight_shape[2:]) == (1, 1) and self.groups == 1 and not any(self.pads)

    @property
    def _is_uneven(self) -> bool:
        left, right, top, bottom = self.pads
        return left != right or top != bottom

    @property
    def _padding(self) -> tuple[int, int]:
        left, right, top, bottom = self.pads
        return max(top, bottom), max(left, right)

    @property
    def _spread(self) -> tuple[int, int]:
        """Dilation as torch is given it: a widened kernel has the gaps between its elements already."""
        return (1, 1) if self._is_uneven else self.dilation

    def _widened(self, weight: Tensor) -> Tensor:
        if not self._is_uneven:
            return weight
        wide = weight.new_zeros(self._wide_shape(weight.shape))
        self._kernel_in(wide).copy_(weight)
        return wide

    def _wide_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._is_uneven:
            return tuple(shape)
        left, right, top, bottom = self.pads
        height, width = (dilation * (size - 1) + 1 for size, dilation in zip(shape[2:], self.dilation, strict=True))
        return (*shape[:2], height + abs(top - bottom), width + abs(left - right))

    def _kernel_in(self, wide: Tensor) -> Tensor:
        """The elements of the kernel within the widened one, as a view."""
        left, right, top, bottom = self.pads
        height, width = wide.shape[-2:]
        rows = slice(max(bottom - top, 0), height - max(top - bottom, 0), self.dilation[0])
        columns = slice(max(right - left, 0), width - max(left - right, 0), self.dilation[1])
        return wide[..., rows, columns]


def _in_parts(grad: Callable[[slice], Tensor], count: int, device: torch.device) -> Tensor:
    """`grad`, `[count, ...]`, put together from parts of `GROUPS_AT_ONCE` where that saves memory."""
    if device.type != "cpu" or count <= GROUPS_AT_ONCE:
        return grad(slice(None))
    return torch.cat([grad(slice(start, start + GROUPS_AT_ONCE)) for start in range(0, count, GROUPS_AT_ONCE)])


@torch.library.custom_op("hf_trady::grad_active", mutates_args=())
def _grad_active(
    grad_output: Tensor,
    x_active: Tensor,
    index: Tensor,
    weight_shape: list[int],
    stride: list[int],
    pads: list[int],
    dilation: list[int],
    groups: int,
    by_output: bool,
) -> Tensor:
    """`Convolution.grad_active`, into which a compiler does not look: it is other code for none, one and many."""
    conv = Convolution(tuple(stride), tuple(pads), tuple(dilation), groups)
    return conv.grad_active(grad_output, x_active, torch.Size(weight_shape), index, by_output).contiguous()


@_grad_active.register_fake
def _(grad_output, x_active, index, weight_shape, stride, pads, dilation, groups, by_output):
    return _new_grad_active(grad_output, weight_shape, index, groups, by_output)


def _new_grad_active(
    grad_output: Tensor, weight_shape: Sequence[int], index: Tensor, groups: int, by_output: bool
) -> Tensor:
    outputs, inputs, *kernel = weight_shape
    return grad_output.new_empty(index.shape[0], inputs if by_output else outputs // groups, *kernel)


def take_channels(x: Tensor, index: Tensor) -> Tensor:
    """Copy of the channels `index` of x, `[B, C, H, W]`, that lies in memory as x does."""
    if memory_format(x) == torch.channels_last:
        return x.permute(0, 2, 3, 1).index_select(-1, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)


def memory_format(x: Tensor) -> torch.memory_format:
    """How x, `[B, C, H, W]`, lies in memory: `torch.channels_last` or `torch.contiguous_format`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _grad_x_pointwise(grad_output: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Gradient of x, put into `out` by one matrix product."""
    weight = weight.flatten(1)
    if memory_format(out) == torch.channels_last:
        torch.mm(grad_output.permute(0, 2, 3, 1).flatten(0, 2), weight, out=out.permute(0, 2, 3, 1).flatten(0, 2))
    else:
        torch.bmm(weight.t().expand(len(out), -1, -1), grad_output.flatten(2), out=out.flatten(2))
    return out


def _strided(x: Tensor, stride: tuple[int, int]) -> Tensor:
    return x[..., :: stride[0], :: stride[1]]


def _grad_weight_pointwise(grad_output: Tensor, x_active: Tensor, stride: tuple[int, int]) -> Tensor:
    """`[n, C']`, by one matrix product that reads the output's gradient once."""
    x_used = _strided(x_active, stride) if x_active.shape[2:] != grad_output.shape[2:] else x_active
    if memory_format(grad_output) == torch.channels_last:
        rows = x_used.permute(0, 2, 3, 1).flatten(0, 2)
        return rows.t() @ grad_output.permute(0, 2, 3, 1).flatten(0, 2)
    if x_used.shape[1] > x_used.shape[2:].numel():  # one product a sample would be larger than the gradient
        return x_used.transpose(0, 1).flatten(1) @ grad_output.transpose(0, 1).flatten(1).t()
    return (x_used.flatten(2) @ grad_output.flatten(2).transpose(1, 2)).sum(0)
