"""Sparse backward for bitsandbytes' fully connected layers, whose weight is held in 4 or 8 bits.

The quantized weight never changes. A channel that training has changed is kept beside it from then on, in full
precision: back in 4 or 8 bits, steps as small as those of training would be rounded away. What is kept grows with the
channels that draws have covered (`KeptChannels.nbytes`), to at most the weight in full precision.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bitsandbytes import functional as quantization
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from .base import KEPT_INDEX, KEPT_VALUES
from .linear import SparseFullyConnected
from .registry import register_sparse_layer, sparse_type


WITNESS_BYTES = 4096


@dataclass
class KeptChannels:
    """The channels of a layer that are not those of its quantized weight.

    Attributes:
        index: Which these are, sorted, int64 `[n]`, on the CPU.
        values: Their weights, `[n, C']`.
    """

    index: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.values.nbytes

    def locate(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where each of `index`, `[n]`, is or would be, int64 `[n]`, and whether it is here, bool `[n]`."""
        place = torch.searchsorted(self.index, index)
        if not len(self.index):
            return place, torch.zeros_like(index, dtype=torch.bool)
        return place, self.index[place.clamp(max=len(self.index) - 1)] == index

    def joined(self, index: Tensor, values: Tensor) -> "KeptChannels":
        """These and others."""
        order = torch.cat([self.index, index]).argsort()
        return KeptChannels(
            torch.cat([self.index, index])[order],
            torch.cat([self.values, values]).index_select(0, order.to(values.device)),
        )


class SparseQuantized(SparseFullyConnected):
    """A fully connected layer with a quantized weight.

    In training it computes with the dequantized weight, of which one layer's exists at a time, and keeps of its input
    no more than the active channels. In evaluation it is the plain layer, which is given zeros for the kept channels,
    plus their product in full precision.

    Attributes:
        kept: The kept channels; None if there are none.
    """

    own_attributes = (*SparseFullyConnected.own_attributes, "kept")
    beside = True
    kept: KeptChannels | None = None

    def num_channels(self) -> int:
        return self.in_features

    def num_outputs(self) -> int:
        return self.out_features

    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def channel_view(self, tensor: Tensor) -> Tensor:
        return tensor.t()

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The quantized weight, `[C', C]`, in new memory."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            trains = x.requires_grad or self.active_view is not None
            return self._sparse_forward(x, self._ready_epilogue() if trains and self._keeps_type_of(x) else None)
        if self.training:  # as with gradients: if this is recomputed in backward, it must come out the same
            x, bias = self._cast(x, self.bias)
            return F.linear(x, self.dense_weight(x.dtype), bias)
        if self.kept is None:
            return self.plain_class.forward(self, x)
        index = self.kept.index.to(x.device)
        output = self.plain_class.forward(self, x.index_fill(-1, index, 0))
        x_kept, values = self._cast(x.index_select(-1, index), self.kept.values)
        return output + torch.matmul(x_kept, values.to(x_kept.dtype)).to(output.dtype)

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that the layer computes with, `[C', C]`, in new memory, as `dtype` (default: a channel's)."""
        kind = sparse_type(self)
        weight = kind.dequantize(self, dtype or kind.weight_dtype(self))
        kept = getattr(self, "kept", None)
        if kept is not None:
            weight.index_copy_(1, kept.index.to(weight.device), kept.values.t().to(weight.dtype))
        return weight

    def write(self, index: Tensor, values: Tensor) -> None:
        """Keep those of the channels `index` (int64 `[n]`) whose `values`, `[n, C']`, differ from the quantized ones.

        Fake channels aren't kept: what they would take can be told without.
        """
        if is_fake(values) or is_fake(self.weight):
            return
        index, values = index.cpu(), values.detach().to(self.weight.device, self.weight_dtype())
        kept = self.kept or KeptChannels(index[:0], values.new_empty(0, self.out_features))
        place, is_known = kept.locate(index)
        if is_known.any():
            kept.values[place[is_known].to(values.device)] = values[is_known.to(values.device)]
        if is_known.all():
            return
        index, values = index[~is_known], values[~is_known.to(values.device)]
        quantized = self.dequantize(values.dtype).t().index_select(0, index.to(values.device))
        differs = (values != quantized).any(1)
        if differs.any():
            self.kept = kept.joined(index[differs.cpu()], values[differs])

    def merge_kept(self) -> None:
        """Quantize the weight anew, with the kept channels in it; they are no longer kept then."""
        raise NotImplementedError

    def dequantized(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A plain layer that holds the quantized weight and the kept channels as `dtype` (default: that of these)."""
        dense = self.dense_weight(dtype)
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(dense), self.bias
        return linear.train(self.training)

    def _linear_weight(self):
        return self.dense_weight

    def _keeps_type_of(self, x: Tensor) -> bool:
        """Whether the layer computes in the type of `x`, so that what follows may work on its very output."""
        return not torch.is_autocast_enabled(x.device.type)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.kept is not None:
            self.kept.values = fn(self.kept.values)
        return self

    # ---- State dicts ------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.kept is not None:
            destination[prefix + KEPT_INDEX] = self.kept.index
            destination[prefix + KEPT_VALUES] = self.kept.values

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """Load the bias and the kept channels. The quantized weight must be the one that is there."""
        own: dict[str, Tensor] = {}
        self._save_to_state_dict(own, prefix, True)
        given = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        kept = given.pop(prefix + KEPT_INDEX, None), given.pop(prefix + KEPT_VALUES, None)
        own = {key: value for key, value in own.items() if key not in (prefix + KEPT_INDEX, prefix + KEPT_VALUES)}
        missing += [key for key in own if key not in given and strict]
        unexpected += [key for key in given if key not in own and strict]
        bias = given.pop(prefix + "bias", None)
        for key in own.keys() & given.keys():
            if not torch.equal(given[key].to(own[key].device), own[key]):
                errors.append(f"'{key}' is not that of this model, whose quantized weights can't be replaced")
                return
        if self.bias is not None and bias is not None:
            self.bias.data.copy_(bias)
        if kept[0] is not None and kept[1] is not None:
            values = kept[1].to(self.weight.device, self.weight_dtype(), copy=True)
            self.kept = KeptChannels(kept[0].cpu().clone(), values)
        elif prefix + "weight" in given:
            self.kept = None


@register_sparse_layer(Linear4bit)
class SparseLinear4bit(SparseQuantized, Linear4bit):
    """bitsandbytes' `Linear4bit` (NF4 and FP4) that trains some of its input features.

    Their values are of the type that the weight had before it was quantized; it computes in `compute_dtype`.
    """

    # On some CPUs the plain layer would reorder the weight for evaluation, and round its scales.
    support_avx512bf16_for_cpu = property(lambda self: False)

    def unsupported(self) -> str | None:
        state = getattr(self.weight, "quant_state", None)
        if state is None:
            return "its weight is not quantized yet; move the model to its device first"
        if tuple(state.shape) != (self.out_features, self.in_features):
            return f"its weight was quantized in the shape {tuple(state.shape)}, not (outputs, inputs)"
        return None

    def weight_dtype(self) -> torch.dtype:
        _packed(self)
        return self.weight.quant_state.dtype

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        packed = _packed(self)
        state = copy.copy(self.weight.quant_state)
        state.dtype = dtype  # as the plain layer's forward does: straight into the type that it computes in
        return quantization.dequantize_4bit(packed, state)

    def witness(self, channel: int) -> tuple[str, Tensor]:
        return self.weight.quant_state.quant_type, _packed(self).flatten()[:WITNESS_BYTES]

    def merge_kept(self) -> None:
        old = self.weight
        options = {"blocksize": old.blocksize, "compress_statistics": old.compress_statistics}
        options |= {"quant_type": old.quant_type, "quant_storage": old.quant_storage}
        merged = Params4bit(self.dense_weight().cpu(), requires_grad=False, module=self, **options)
        self.kept, self.weight = None, merged.to(old.device)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)

    def _cast(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_autocast_enabled(tensors[0].device.type):
            return super()._cast(*tensors)
        dtype = self._computes_in(tensors[0])
        return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)

    def _computes_in(self, x: Tensor) -> torch.dtype:
        return (self.compute_type_is_set and self.compute_dtype) or x.dtype

    def _keeps_type_of(self, x: Tensor) -> bool:
        return super()._keeps_type_of(x) and self._computes_in(x) == x.dtype


@register_sparse_layer(Linear8bitLt)
class SparseLinear8bitLt(SparseQuantized, Linear8bitLt):
    """bitsandbytes' `Linear8bitLt` (LLM.int8) that trains some of its input features, as float32.

    The plain layer quantizes its input, too, on a GPU and in evaluation; this one doesn't in training.
    """

    def unsupported(self) -> str | None:
        if self.state.has_fp16_weights:
            return "its weight is held in 16 bits (has_fp16_weights=True); load it with False"
        if self.weight.dtype != torch.int8:
            return "its weight is not quantized yet; move the model to its device first"
        return None

    def weight_dtype(self) -> torch.dtype:
        return torch.float32

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        scale = self.state.SCB if self.state.SCB is not None else self.weight.SCB
        return self.weight.data.to(dtype).mul_(scale.mul(1.0 / 127.0).unsqueeze(1))

    def witness(self, channel: int) -> tuple[str, Tensor]:
        return "int8", self.weight.data.flatten()[:WITNESS_BYTES]

    def merge_kept(self) -> None:
        old = self.weight
        merged = Int8Params(self.dense_weight().cpu(), requires_grad=False, has_fp16_weights=False)
        self.kept, self.weight = None, merged.to(old.device)
        self.state.reset_grads()


def _packed(layer: Linear4bit) -> Tensor:
    """The weight in 4 bits, two elements a byte, in the order of training."""
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        # Evaluation of the plain layer has reordered it. Asking for the state dict undoes that, in place.
        Linear4bit._save_to_state_dict(layer, {}, "", False)
    return layer.weight.data
