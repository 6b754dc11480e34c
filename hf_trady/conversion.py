"""The modules of a base model turned into stand-ins for training, and back."""

from collections.abc import Sequence
from typing import Any

from accelerate.hooks import add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase
from transformers.utils import logging

from .layers import SparseLayer, kept_bytes, make_plain, make_sparse, sparse_type, why_unsupported
from .lean import LeanEpilogue, join_epilogues, make_model_lean, make_model_plain
from .targets import outside


logger = logging.get_logger(__name__)


class Conversion:
    """Gives the layers that may be updated a sparse backward, and all else outside the head a lean one, in place.

    Args:
        model: The base model.
        heads: Names of the modules that train whole; they are left alone.
        targets: The layers that may be updated.
        lean_backward: What the others keep: "compressed", "exact", or "off" to leave them alone, too.
        frozen_norms: Batch-norms keep their statistics in training.
    """

    def __init__(
        self, model: nn.Module, heads: list[str], targets: Sequence[nn.Module], lean_backward: str, frozen_norms: bool
    ):
        self.model, self.heads = model, heads
        self.frozen_norms = frozen_norms
        self.joins = lean_backward != "off"
        self.epilogues: dict[str, LeanEpilogue] = {}
        for module in targets:
            make_sparse(module)
        for _, module in outside(model, heads):
            kind = sparse_type(module)
            is_wanted = kind is not None and (kind.beside or lean_backward != "off")
            if is_wanted and why_unsupported(module) is None:
                make_sparse(module)
        make_model_lean(model, [module for _, module in outside(model, heads)], lean_backward)

    def norms(self) -> list[_NormBase]:
        """The batch-norms outside the head that have statistics."""
        modules = (module for _, module in outside(self.model, self.heads))
        return [module for module in modules if isinstance(module, _NormBase) and module.track_running_stats]

    def freeze_norms(self) -> None:
        """Keep the statistics as they are, if they are to be kept; call it after `model.train()`."""
        if self.frozen_norms:
            for norm in self.norms():
                norm.training = False  # of itself alone: some hold an activation

    def moves_buffers(self) -> bool:
        """Whether a training step moves the statistics of a batch-norm."""
        frozen = set(self.norms()) if self.frozen_norms else set()
        norms = (module for module in self.model.modules() if isinstance(module, _NormBase))
        return any(norm.track_running_stats and norm not in frozen for norm in norms)

    def join(self, example_inputs: Any, mode: FakeTensorMode | None = None) -> None:
        """Let layers do the work of the norms and activations that follow them (see `lean.apply`); `mode`: of a model
        that is fake already."""
        if self.joins:
            layers = {name: layer for name, layer in outside(self.model, self.heads) if isinstance(layer, SparseLayer)}
            self.epilogues = join_epilogues(self.model, layers, example_inputs, mode)

    def before_forward(self) -> None:
        """Forget what a forward that failed has left."""
        for epilogue in self.epilogues.values():
            epilogue.forget()

    def after_forward(self) -> None:
        """Refuse a forward that went another way than the one that was looked at.

        Raises:
            RuntimeError: If a layer did the work of a norm or an activation that its output did not come by.
        """
        for name, epilogue in self.epilogues.items():
            if epilogue.forget():
                raise RuntimeError(
                    f"the output of '{name}' did not go on to the norm or activation behind it, as it did when the "
                    "model was looked at: its forward has changed. Call calibrate(batch) again, or use "
                    "lean_backward='off'"
                )

    def undo(self, dequantize: bool = False) -> None:
        """Give every module its own type back; what is kept beside quantized weights goes into them.

        Args:
            dequantize: Turn layers with quantized weights into plain ones instead, which lose nothing.
        """
        make_model_plain(self.model)
        if dequantize:
            self._dequantize()
        elif kept_bytes(self.model):
            logger.warning(
                "Trained channels are rounded to the precision of the quantized weights they are merged into, which "
                "can undo much of the training; merge_and_unload(dequantize=True) keeps them as they are."
            )
        for module in self.model.modules():
            if isinstance(module, SparseLayer) and module.beside and module.kept is not None:
                module.merge_kept()
            make_plain(module)

    def _dequantize(self) -> None:
        plain: dict[nn.Module, nn.Module] = {}
        for name, module in list(self.model.named_modules(remove_duplicate=False)):
            if isinstance(module, SparseLayer) and module.beside:
                if module not in plain:
                    plain[module] = module.dequantized(getattr(self.model, "dtype", None))
                    if hasattr(module, "_hf_hook"):
                        add_hook_to_module(plain[module], module._hf_hook)
                self.model.set_submodule(name, plain[module])
        if getattr(self.model, "hf_quantizer", None) is not None:
            self.model.hf_quantizer.remove_quantization_config(self.model)
