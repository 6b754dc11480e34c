"""From a module's type to the backward-lean type that stands in for it."""

from collections.abc import Callable

from torch import nn

from ..standin import swap_in
from .base import LeanModule


MODES = ("compressed", "exact", "off")
"""What `lean_backward` may be: keep 8 bits where one would not do, only what is exact, or swap nothing."""

LEAN_MODULES: dict[type[nn.Module], type[LeanModule]] = {}


def register_lean(plain: type[nn.Module]) -> Callable[[type[LeanModule]], type[LeanModule]]:
    """Class decorator: the decorated class stands in for `plain`, of which it is a subclass."""

    def register(lean: type[LeanModule]) -> type[LeanModule]:
        LEAN_MODULES[plain] = lean
        return lean

    return register


def lean_type(module: nn.Module, mode: str) -> type[LeanModule] | None:
    """The stand-in for `module` in `mode`, or None. A subclass that changes the forward of its base has none."""
    if mode == "off" or isinstance(module, LeanModule):
        return None
    for base in type(module).__mro__:
        if base in LEAN_MODULES:
            kind = LEAN_MODULES[base]
            fits = type(module).forward is base.forward and (mode == "compressed" or kind.exact)
            return kind if fits else None
    return None


def make_lean(module: nn.Module, mode: str) -> nn.Module:
    """Turn `module` into its stand-in, in place, where there is one. The inverse is `swap_out`."""
    kind = lean_type(module, mode)
    return module if kind is None else swap_in(module, kind)
