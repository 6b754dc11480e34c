"""A module that is called and asked like the one that it holds."""

import inspect

from torch import nn


class ModuleProxy(nn.Module):
    """Hands calls on to its `base_model`; attributes that the class lacks are those of the base model."""

    base_model: nn.Module

    def forward(self, *args, labels=None, **kwargs):
        """The forward of the base model."""
        if labels is not None:  # named in the signature because a Trainer looks for it there
            kwargs["labels"] = labels
        return self.base_model(*args, **kwargs)

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
            return getattr(self.base_model, name)
