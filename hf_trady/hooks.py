"""What a TraDyModel does around each use of its base model, or of a part of it."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .conversion import Conversion
from .layers import ActiveChannels, is_fully_sharded, reshard
from .proxy import ModuleProxy
from .saving import touch_changed


class HookedMixin(ModuleProxy):
    """Keeps the weights of the base model those of the active channels wherever they are looked at, and takes in what
    others make of them."""

    active: ActiveChannels | None
    touched: dict[str, Tensor]
    _conversion: Conversion
    _layers: dict[str, list[nn.Module]]

    def __getstate__(self) -> dict:
        self._write_back()  # a copy goes by its weights
        return super().__getstate__()

    def _add_hooks(self) -> list[RemovableHandle]:
        base_model = self.base_model
        return [
            base_model.register_forward_pre_hook(self._before_forward),
            base_model.register_forward_hook(self._after_forward),
            base_model.register_state_dict_pre_hook(self._before_state_dict),
            base_model.register_load_state_dict_pre_hook(self._before_loading),
            base_model.register_load_state_dict_post_hook(self._after_loading),
            self.register_load_state_dict_pre_hook(self._to_own_keys),
        ]

    @torch.compiler.disable  # what it does to the channels depends on the draw
    def _before_forward(self, module: nn.Module, args) -> None:
        self._conversion.before_forward()
        if self.active is not None:
            # Under FSDP a call has written back before; `generate` gets here without one.
            write_back = not (is_fully_sharded(self) and torch.is_grad_enabled())
            self.active.attach(write_back, to_compile=self.is_compiled)

    @torch.compiler.disable
    def _after_forward(self, module: nn.Module, args, output) -> None:
        self._conversion.after_forward()

    def _before_part(self) -> None:
        active = self._modules.get("active")
        if active is not None and not is_fully_sharded(self):
            active.attach(to_compile=self.is_compiled)

    def _before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        if not is_fully_sharded(self):  # which not every process may be asked for
            self._write_back()

    def _before_loading(self, module: nn.Module, state_dict: dict, prefix: str, *args) -> None:
        if is_fully_sharded(self):
            raise ValueError(
                "a model that fully_shard has split over processes takes no state dict; load it before you shard the "
                "model, or call load_trained(path)"
            )
        self._write_back()
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        touch_changed(self._layers, self.touched, own)

    def _after_loading(self, module: nn.Module, incompatible_keys) -> None:
        if self.active is not None:
            self.active.load()

    def _to_own_keys(self, module: nn.Module, state_dict: dict, prefix: str, *args) -> None:
        """A module that this model is a part of loads what `state_dict` gave it: keys without our own parts."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}base_model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        if self.active is not None:
            state_dict.update({f"{prefix}active.{key}": value for key, value in self.active.state_dict().items()})

    def _write_back(self) -> None:
        if self.active is not None:
            reshard(self)
            self.active.write_back()
