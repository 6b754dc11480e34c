"""Running a model on fake tensors: shapes and no numbers, no compute and no memory."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only


VALUE_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)
"""What a model raises on fake tensors whose shapes or control flow depend on values."""


@contextmanager
def fake_copy(model: nn.Module, example_inputs: Any) -> Iterator[tuple[nn.Module, tuple, dict]]:
    """A copy of `model` on fake tensors, and the arguments to call it with; inside the block all tensors are fake.

    Args:
        model: Any module; it is not touched.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake_mode):
        fake = copy.deepcopy(model)
    args, kwargs = tree_map_only(torch.Tensor, fake_mode.from_tensor, as_call(example_inputs))
    with fake_mode:
        yield fake, args, kwargs


def as_call(example_inputs: Any) -> tuple[tuple, dict]:
    """Split example inputs into positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}
