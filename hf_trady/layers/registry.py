"""From a layer's type to the sparse-backward type that stands in for it."""

from importlib import import_module

from torch import nn

from ..standin import has_own_forward, swap_in, swap_out
from .base import SparseLayer


SPARSE_LAYERS: dict[type[nn.Module], type[SparseLayer]] = {}

# By package that need not be installed: what registers stand-ins for its layers, once such a layer turns up.
_ON_DEMAND = {"bitsandbytes": ".quantized"}


def register_sparse_layer(plain: type[nn.Module]):
    """Class decorator: the decorated class stands in for `plain`, of which it is a subclass."""

    def register(sparse: type[SparseLayer]) -> type[SparseLayer]:
        SPARSE_LAYERS[plain] = sparse
        return sparse

    return register


def sparse_type(module: nn.Module) -> type[SparseLayer] | None:
    """The sparse-backward type for `module`, or None when there is none.

    A subclass of a registered type counts only if it keeps that type's forward; one that computes something else
    (a weight-standardized convolution, say) has a gradient that is not a slice of the plain one.
    """
    if isinstance(module, SparseLayer):
        return type(module)
    for base in type(module).__mro__:
        package = base.__module__.partition(".")[0]
        if package in _ON_DEMAND:
            import_module(_ON_DEMAND.pop(package), __package__)
        if base in SPARSE_LAYERS:
            return SPARSE_LAYERS[base] if type(module).forward is base.forward else None
    return None


def why_unsupported(module: nn.Module) -> str | None:
    """Why `module` can't be trained by input channel, in a few words, or None when it can."""
    kind = sparse_type(module)
    if kind is None:
        return f"{type(module).__name__} is not one of {', '.join(sorted(cls.__name__ for cls in SPARSE_LAYERS))}"
    if "weight" not in module._parameters:
        return "its weight is no Parameter of its own but computed from others"
    if has_own_forward(module):
        return "its forward has been exchanged (layer.forward = ...), and may compute something else; undo that first"
    return kind.unsupported(module)


def make_sparse(module: nn.Module) -> SparseLayer:
    """Turn `module` into its sparse-backward type, in place. The inverse is `make_plain`."""
    return swap_in(module, sparse_type(module))


def make_plain(module: SparseLayer) -> nn.Module:
    """Give `module` back the type that it had before `make_sparse`, in place."""
    return swap_out(module) if isinstance(module, SparseLayer) else module
