"""Turning a module into a subclass of its type, in place and reversibly."""

from types import MethodType
from typing import ClassVar

from torch import nn


class StandIn:
    """Mixin for a subclass that a module becomes by assigning its `__class__`.

    The module's Parameters, state-dict keys, hooks and identity stay what they were.

    Attributes:
        plain_class: The type that the module had before.
        own_attributes: Names of the instance attributes that the subclass adds; they go when it does.
        transient_attributes: Those of them that can be neither copied nor pickled; the next forward sets them anew.
    """

    plain_class: type[nn.Module]
    own_attributes: ClassVar[tuple[str, ...]] = ()
    transient_attributes: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in self.transient_attributes}


def swap_in(module: nn.Module, kind: type[StandIn]) -> nn.Module:
    """Turn `module` into `kind`, in place. The inverse is `swap_out`."""
    if not isinstance(module, StandIn):
        plain = type(module)
        _become(module, kind)
        module.plain_class = plain
    return module


def swap_out(module: nn.Module) -> nn.Module:
    """Give `module` back the type that it had before `swap_in`, in place."""
    if isinstance(module, StandIn):
        plain = module.plain_class
        for name in ("plain_class", *module.own_attributes):
            module.__dict__.pop(name, None)
        _become(module, plain)
    return module


def has_own_forward(module: nn.Module) -> bool:
    """Whether a call of `module` runs another forward than that of its class, which no stand-in would reach.

    Accelerate's hooks (`device_map`) run that of the class. A stand-in never counts: it took the place of no such
    forward, and what has been put around it since runs it.
    """
    own = vars(module)
    forward = own.get("forward")
    if "_old_forward" in own and getattr(getattr(forward, "func", None), "__module__", None) == "accelerate.hooks":
        forward = own["_old_forward"]
    return not (forward is None or isinstance(module, StandIn) or _is_of_class(forward, module))


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Assign the class of `module`, and with it its forward, which accelerate's hooks hold as a bound method."""
    for name in ("forward", "_old_forward"):
        if _is_of_class(vars(module).get(name), module):
            setattr(module, name, MethodType(kind.forward, module))
    module.__class__ = kind


def _is_of_class(forward, module: nn.Module) -> bool:
    """Whether `forward` is that which the class gives `module`."""
    return getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module
