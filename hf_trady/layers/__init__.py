from .active import ActiveChannels, mark
from .base import KEPT_INDEX, SparseLayer
from .channels import (
    by_channel,
    bytes_beside,
    channel_shape,
    keeps_beside,
    kept_bytes,
    num_channels,
    num_elements,
    read_channels,
    trains_outputs,
    weight_dtype,
    weight_shape,
    write_channels,
)
from .conv import SparseConv2d, SparseConv2dSame
from .linear import SparseConv1D, SparseLinear
from .registry import SPARSE_LAYERS, make_plain, make_sparse, register_sparse_layer, sparse_type, why_unsupported
from .sharded import is_fully_sharded, is_sharded, put, reshard, whole
from .shared import SharedSlice


__all__ = [
    "KEPT_INDEX",
    "SPARSE_LAYERS",
    "ActiveChannels",
    "SharedSlice",
    "SparseConv1D",
    "SparseConv2d",
    "SparseConv2dSame",
    "SparseLayer",
    "SparseLinear",
    "by_channel",
    "bytes_beside",
    "channel_shape",
    "is_fully_sharded",
    "is_sharded",
    "keeps_beside",
    "kept_bytes",
    "make_plain",
    "make_sparse",
    "mark",
    "num_channels",
    "num_elements",
    "put",
    "read_channels",
    "register_sparse_layer",
    "reshard",
    "sparse_type",
    "trains_outputs",
    "weight_dtype",
    "weight_shape",
    "whole",
    "why_unsupported",
    "write_channels",
]
