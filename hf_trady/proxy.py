"""A module that is called and asked like the one that it holds."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn


_calls = threading.local()  # model: the one whose call looks up its forward right now


class _BaseForward:
    """`model.forward` is that of the base model, to read and to exchange; of the class, one that takes labels.

    A call of `model` finds the base model itself instead, and so runs the hooks of both.
    """

    def __get__(self, model: "ModuleProxy | None", owner: type):
        if model is None:
            return _any_forward
        if getattr(_calls, "model", None) is model:
            _calls.model = None
            return model.base_model
        return model.base_model.forward

    def __set__(self, model: "ModuleProxy", forward) -> None:
        """Exchange it; None brings back that of the class.

        A method that is bound to `model` looks for its parts there, but means the base model: it gets that one.
        Accelerate exchanges a forward for mixed precision, and TRL for a loss without logits, which runs the
        `base_model` of what it is bound to.
        """
        if forward is None:
            vars(model.base_model).pop("forward", None)
            return
        if getattr(forward, "__self__", None) is model:
            if getattr(forward.__func__, "__wrapped__", None) is _any_forward:
                forward.__func__.__wrapped__ = type(model.base_model).forward  # `generate` looks at its signature
            forward = MethodType(forward.__func__, model.base_model)
        model.base_model.forward = forward


def _any_forward(self, *args, labels=None, **kwargs):
    """The forward of any base model; a Trainer looks for the labels in its signature."""
    return self.base_model(*args, labels=labels, **kwargs)


@contextmanager
def uncompiled(model: "ModuleProxy") -> Iterator[None]:
    """Call the base model as it is in the block, whatever it was compiled to: with layers in another state, say, or on
    fake tensors."""
    base_model = model.base_model
    compiled, base_model._compiled_call_impl = base_model._compiled_call_impl, None
    try:
        yield
    finally:
        base_model._compiled_call_impl = compiled


class ModuleProxy(nn.Module):
    """Hands calls on to its `base_model`; attributes that the class lacks are those of the base model."""

    base_model: nn.Module
    forward = _BaseForward()
    is_quantized = False  # a Trainer would refuse the base model, of which nothing else could train

    def __call__(self, *args, **kwargs):
        _calls.model = self
        return super().__call__(*args, **kwargs)

    def compile(self, *args, **kwargs) -> None:
        """Compile the calls of the base model, by the arguments of `torch.compile`.

        A redraw compiles nothing anew. A step then holds a copy of the active channels' weights.
        """
        self.base_model.compile(*args, **kwargs)

    @property
    def is_compiled(self) -> bool:
        """Whether calls of the base model are compiled."""
        return self.base_model._compiled_call_impl is not None

    def _replicate_for_data_parallel(self):
        # A replica's layers are other ones than those that are handed their channels before a forward.
        raise RuntimeError(
            f"a {type(self).__name__} can't be replicated by nn.DataParallel; start a process for each GPU "
            "(accelerate launch), or show one GPU (CUDA_VISIBLE_DEVICES)"
        )

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether a Trainer may pass `num_items_in_batch` to the forward."""
        parameters = inspect.signature(self.base_model.forward).parameters.values()
        any_keyword = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        return getattr(self.base_model, "accepts_loss_kwargs", any_keyword)

    def _get_name(self) -> str:
        return self.base_model._get_name()  # by this a Trainer tells a causal language model, whose labels it shifts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_model!r})"

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not set yet
                raise
            value = getattr(self.base_model, name)
            if callable(value) and name != "num_parameters":  # for which a Trainer asks twice a step
                self._before_part()
            return value

    def _before_part(self) -> None:
        """Called where a part of the base model, which may be called without the whole, is handed out."""
