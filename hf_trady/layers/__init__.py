from .active import ActiveChannels, mark
from .base import SparseLayer
from .channels import by_channel, channel_shape, num_channels, read_channels, trains_outputs, write_channels
from .conv import SparseConv2d, SparseConv2dSame
from .linear import SparseConv1D, SparseLinear
from .registry import SPARSE_LAYERS, make_plain, make_sparse, register_sparse_layer, sparse_type, why_unsupported
from .sharded import is_fully_sharded, is_sharded, put, reshard, whole
from .shared import SharedSlice


__all__ = [
    "SPARSE_LAYERS",
    "ActiveChannels",
    "SharedSlice",
    "SparseConv1D",
    "SparseConv2d",
    "SparseConv2dSame",
    "SparseLayer",
    "SparseLinear",
    "by_channel",
    "channel_shape",
    "is_fully_sharded",
    "is_sharded",
    "make_plain",
    "make_sparse",
    "mark",
    "num_channels",
    "put",
    "read_channels",
    "register_sparse_layer",
    "reshard",
    "sparse_type",
    "trains_outputs",
    "whole",
    "why_unsupported",
    "write_channels",
]
