"""Follows every storage that operations allocate, from birth to death."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(eq=False, slots=True)
class Storage:
    """Memory that one or more tensors share.

    Attributes:
        nbytes: Its size.
        itemsize: Bytes of an element of the tensor that it was made for.
        born: Number of operations that had run when it was made; 0 for what existed before the first.
        died: Number of the first operation that ran without it; None while it lives.
        module: Name of the module whose forward made it.
    """

    nbytes: int
    itemsize: int
    born: int
    died: int | None = None
    module: str = ""


class StorageLog(TorchDispatchMode):
    """Inside this context, logs every storage by the operation that made it and the one before which it was freed.

    torch's own `MemTracker` gives the same totals, but it copies a snapshot for every module at every operation, which
    is too slow for a model of billions of parameters; it takes the module at the top for called twice in a step with
    recomputation; and it keeps no history to draw or to tell what a byte was for once the step is over.

    Args:
        current_module: Gives the name of the module that runs now.
    """

    def __init__(self, current_module: Callable[[], str] = str):
        super().__init__()
        self.time = 0
        self.storages: list[Storage] = []
        self.names: list[str] = []  # by operation: the module that ran
        self._current_module = current_module
        self._live: dict[int, tuple[Storage, weakref.ref]] = {}  # by address of the C++ object

    def add(self, tensors: Iterable[Tensor]) -> list[Storage]:
        """Log the storages of `tensors`; returns them, each once."""
        found = {id(storage): storage for tensor in tensors if (storage := self._log(tensor)) is not None}
        return list(found.values())

    def find(self, tensor: Tensor) -> Storage | None:
        """The logged storage of `tensor`, or None if it was never seen."""
        known = self._live.get(tensor.untyped_storage()._cdata)
        return known and known[0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        self._current = self._current_module()
        self.time += 1
        self.names.append(self._current)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._log(tensor)
            elif isinstance(tensor, tuple | list):
                for part in tensor:
                    self._log(part)
        copies = reordered_bytes(func, args, result)
        if copies:
            self.storages.append(Storage(copies, 4, self.time, self.time + 1, self._current))
        return result

    def _log(self, tensor: Tensor) -> Storage | None:
        untyped = tensor.untyped_storage()
        key = untyped._cdata
        known = self._live.get(key)
        if known is not None:
            return known[0]
        # An operation's results are there while it is counted: hence the number of operations after it.
        name = self._current_module()
        storage = Storage(untyped.nbytes(), tensor.element_size(), self.time, None, name)
        self.storages.append(storage)

        def free(_, storage=storage, key=key):
            storage.died = self.time + 1  # it was there while the last operation ran
            del self._live[key]

        self._live[key] = storage, weakref.ref(untyped, free)
        return storage


def reordered_bytes(func, args: tuple, result) -> int:
    """Bytes that the CPU's convolution library takes for copies of what a convolution reads and writes.

    oneDNN computes in a layout of its own, or in channels_last: what lies otherwise is reordered before and after.
    """
    if func is torch.ops.aten.convolution.default:
        read, weight, written = args[0], args[1], result
    elif func is torch.ops.aten.convolution_backward.default:
        read, weight, written = args[0], args[2], args[1]  # the input, or a gradient of its size
    else:
        return 0
    if read.dim() != 4 or read.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return 0
    if read.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return 0  # torch computes these itself
    if any(suggest_memory_format(tensor) == torch.channels_last for tensor in (read, weight, written)):
        return 0
    return read.nbytes + written.nbytes
