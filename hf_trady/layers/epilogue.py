"""What a layer does to its output within the same autograd function (made in `lean.epilogue`)."""

from typing import Protocol

from torch import Tensor


class Gate(Protocol):
    """An activation that needs only a code of its derivative for backward, in no more than a byte an element."""

    def apply_(self, x: Tensor, keep: bool) -> Tensor | None:
        """Activate `x`, dense in memory, in place; returns the code, uint8, or None if not `keep`."""
        ...

    def grad(self, grad_output: Tensor, code: Tensor) -> Tensor:
        """The gradient of the input; `grad_output` must lie in memory as the activated tensor did."""
        ...


class Epilogue(Protocol):
    """The frozen norm (of convolutions only) and the activation that a layer's output goes through, and nothing else.

    Attributes:
        gate: The activation, or None.
        shift: Bias of the norm, `[C']`, which may train, or None.
    """

    gate: Gate | None
    shift: Tensor | None

    def is_ready(self) -> bool:
        """Whether the norm is a fixed affine map now, and the activation one that trains."""
        ...

    def scale_and_mean(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and mean of the norm, which maps y to `(y - mean) * scale + shift`; None without one."""
        ...

    def hand_over(self, output: Tensor) -> None:
        """Tell the norm and the activation that `output` has been through them."""
        ...


def parts_of(grad_output: Tensor, code: Tensor | None, chunk_bytes: int) -> list[slice]:
    """Parts of the leading dimension to work through one by one, as a gate's gradient is a copy of the output's.

    One part where there is nothing to decode, or where the code does not divide by this dimension.
    """
    size = len(grad_output)
    if code is None or len(code) != size:
        return [slice(0, size)]
    num_parts = max(1, -(-grad_output.nbytes // chunk_bytes))
    step = max(1, -(-size // num_parts))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
