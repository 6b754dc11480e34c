"""Writing tensors so that a crash or a full disk never damages the file that is there."""

import os
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic_path


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write `tensors`, contiguous and each in memory of its own, to `path` as safetensors, all of it or nothing.

    Raises:
        OSError: If there is no room for them, or they can't be written for another reason.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"} | metadata)
        except SafetensorError as error:  # which it also is when the disk is full
            raise OSError(f"can't write '{path}' ({error})") from error
