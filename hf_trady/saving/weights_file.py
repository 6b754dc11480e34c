"""The file that holds what training has changed, and nothing else."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ..layers import is_sharded
from ..tensor_files import write_tensors


WEIGHTS_NAME = "trady_model.safetensors"
_FORMAT_VERSION = "1"
_INDEX, _VALUES, _TENSOR = "channels.index.", "channels.values.", "tensor."


@dataclass
class TrainedState:
    """What training has changed in a base model.

    Attributes:
        channels: Layer name -> `(index, values)`: sorted input channels int64 `[n]` and their weight
            `[n, *channel_shape]`.
        tensors: State-dict key -> whole tensor (head, biases, changed buffers, layers that changed everywhere).
        witnesses: Layer name -> `[channel, dtype, CRC-32]` of one channel that training left alone: tells whether a
            base model has the weights that the run started from.
    """

    channels: dict[str, tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]
    witnesses: dict[str, list]


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of `tensor`."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def make_saveable(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict`, changed in place into what safetensors takes: contiguous, no two entries the same memory."""
    seen = set()
    for key, value in state_dict.items():
        if isinstance(value, Tensor) and not is_fake(value) and not is_sharded(value):
            tied = value.data_ptr() in seen
            seen.add(value.data_ptr())
            state_dict[key] = value.contiguous() if not tied else value.clone(memory_format=torch.contiguous_format)
    return state_dict


def save_state(state: TrainedState, save_directory: str | os.PathLike) -> Path:
    """Write `trady_model.safetensors` into `save_directory`, all of it or nothing; returns its path."""
    tensors = {_TENSOR + key: value for key, value in state.tensors.items()}
    for name, (index, values) in state.channels.items():
        tensors[_INDEX + name] = index
        tensors[_VALUES + name] = values
    # safetensors refuses tensors that share memory (tied head and embedding): store each on its own.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    metadata = {
        "trady_format": _FORMAT_VERSION,
        "witnesses": json.dumps(state.witnesses),
        "checksums": json.dumps({key: checksum(value) for key, value in tensors.items()}),
    }
    path = Path(save_directory) / WEIGHTS_NAME
    write_tensors(path, tensors, **metadata)
    return path


def load_state(directory: str | os.PathLike, remedy: str = "save the model again") -> TrainedState:
    """Read `trady_model.safetensors` from `directory`.

    Args:
        directory: Where it is.
        remedy: What to do about a corrupt file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is truncated, corrupt or not of this format.
    """
    path = Path(directory) / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {WEIGHTS_NAME} in '{directory}'; give a directory written by save_pretrained")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            version = metadata.get("trady_format")
            if version != _FORMAT_VERSION:
                if str(version).isdecimal():
                    remedy = "a newer hf_trady wrote it: install that"
                raise ValueError(f"its trady_format is {version!r}, not {_FORMAT_VERSION!r}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        checksums = json.loads(metadata["checksums"])
        for key, value in tensors.items():
            if checksums.get(key) != checksum(value):
                raise ValueError(f"'{key}' is not what was saved")
            if not key.startswith((_INDEX, _VALUES, _TENSOR)):
                raise ValueError(f"it holds an unknown '{key}'")
            if key.startswith(_VALUES) and _INDEX + key.removeprefix(_VALUES) not in tensors:
                raise ValueError(f"'{key}' has no indices")
        return TrainedState(
            channels={
                key.removeprefix(_INDEX): (tensors[key], tensors[_VALUES + key.removeprefix(_INDEX)])
                for key in tensors
                if key.startswith(_INDEX)
            },
            tensors={key.removeprefix(_TENSOR): value for key, value in tensors.items() if key.startswith(_TENSOR)},
            witnesses=_parse_witnesses(metadata["witnesses"]),
        )
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is corrupt or not a saved TraDyModel ({type(error).__name__}: {error}); {remedy}"
        ) from None


def _parse_witnesses(text: str) -> dict[str, list]:
    witnesses = json.loads(text)
    for name, (channel, dtype, value) in witnesses.items():
        if [type(channel), type(dtype), type(value)] != [int, str, int]:
            raise ValueError(f"its witness of '{name}' is malformed")
    return witnesses
