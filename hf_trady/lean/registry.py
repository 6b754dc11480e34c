"""From a module's type to the backward-lean type that stands in for it."""

from collections.abc import Callable

from torch import nn

from ..standin import StandIn, has_own_forward, swap_in
from .base import LeanModule


MODES = ("compressed", "exact", "off")
"""What `lean_backward` may be: keep 8 bits where one would not do, only what is exact, or swap nothing."""

LEAN_MODULES: dict[type[nn.Module], type[LeanModule]] = {}
_COPIED: list[type[nn.Module]] = []


def register_lean(plain: type[nn.Module], *, copied: bool = False) -> Callable[[type[LeanModule]], type[LeanModule]]:
    """Class decorator: the decorated class stands in for `plain`, of which it is a subclass.

    Args:
        plain: The type of module.
        copied: It also stands in for types of another name whose forward is the same code, as transformers copies
            such modules from model to model.
    """

    def register(lean: type[LeanModule]) -> type[LeanModule]:
        LEAN_MODULES[plain] = lean
        if copied:
            _COPIED.append(plain)
        return lean

    return register


def lean_type(module: nn.Module, mode: str) -> type[LeanModule] | None:
    """The stand-in for `module` in `mode`, or None. One that changes the forward of its type or its base has none."""
    if mode == "off" or isinstance(module, StandIn) or has_own_forward(module):
        return None
    forward = type(module).forward
    plain = next((base for base in type(module).__mro__ if base in LEAN_MODULES), None)
    if plain is None or forward is not plain.forward:
        plain = next((kind for kind in _COPIED if _same_code(forward, kind.forward)), None)
    kind = LEAN_MODULES.get(plain)
    return kind if kind is not None and (mode == "compressed" or kind.exact) else None


def _same_code(function: Callable, other: Callable) -> bool:
    """Whether two functions consist of the same instructions on the same names and constants."""
    codes = [getattr(f, "__code__", None) for f in (function, other)]
    parts = [code and (code.co_code, code.co_names, code.co_consts, code.co_varnames) for code in codes]
    return parts[0] == parts[1] is not None


def make_lean(module: nn.Module, mode: str) -> nn.Module:
    """Turn `module` into its stand-in, in place, where there is one. The inverse is `swap_out`."""
    kind = lean_type(module, mode)
    return module if kind is None else swap_in(module, kind)
