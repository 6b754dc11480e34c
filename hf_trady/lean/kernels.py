"""Elementwise kernels: one fused pass by torch.compile where it can, the same operations one by one otherwise."""

import functools
import shutil
from collections.abc import Callable

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._inductor.exc import InductorError
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils._triton import has_triton
from transformers.utils import logging


logger = logging.get_logger(__name__)

FUSE_FROM = 1 << 18
"""Elements from which on a compiled kernel is worth its launch; smaller tensors stay in the cache anyway."""


def fused(eager: Callable) -> Callable:
    """Decorator of a function that torch.compile turns into one pass over its first argument; `eager` is the same
    computation in the fewest passes that torch's own operations allow.

    Compiled at the first call with a large tensor and kept, by torch, on disk for later processes. Small tensors, and
    machines without a C++ compiler (CPU) or triton (CUDA), take `eager`.
    """

    def decorate(function: Callable) -> Callable:
        compiled = torch.compile(function, dynamic=True)
        failed = False

        @functools.wraps(function)
        def run(x: torch.Tensor, *args):
            nonlocal failed
            if failed or x.numel() < FUSE_FROM or torch.compiler.is_compiling() or not _can_compile(x.device.type):
                return eager(x, *args)
            if is_fake(x):
                return _results_alone(eager, x, *args)
            try:
                return compiled(x, *args)
            except (TorchDynamoException, BackendCompilerFailed, InductorError) as error:
                failed = True
                reason = str(error).strip().splitlines()[0]
                logger.warning(
                    f"Can't compile {function.__name__} ({reason}); running it uncompiled, which is slower."
                )
                return eager(x, *args)

        return run

    return decorate


def _results_alone(function: Callable, *args):
    """What `function` gives for fake tensors, as one kernel would: whoever counts bytes sees no intermediate."""
    with _disable_current_modes():
        results = function(*args)
    return tree_map_only(torch.Tensor, torch.empty_like, results)


@functools.cache
def _can_compile(device_type: str) -> bool:
    if device_type == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return device_type == "cuda" and has_triton()
