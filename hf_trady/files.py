"""Writing a file so that a crash or a full disk never damages the one that is there; reading one of a stranger."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar


Parsed = TypeVar("Parsed")

MOST_JSON_BYTES = 256 * 2**20
"""No JSON file of this library comes near this; parsing one takes ten times its size."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends, delete it if the block raises.

    Creates the directory of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What begins with "_" a Trainer leaves out when it pushes the directory, which it may do meanwhile.
    handle, name = tempfile.mkstemp(prefix=f"_{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(directory: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary directory inside `directory`; move the files in it to their places in `directory` when the
    block ends, delete them if the block raises.

    Creates `directory`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="_", suffix=".tmp", dir=directory) as temporary:
        yield Path(temporary)
        written = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        bring_to_disk(written)
        for path in written:
            place = directory / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


def bring_to_disk(paths: Iterable[Path]) -> None:
    """Wait until a power cut would leave the files `paths`."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """What the JSON file `path` holds.

    Raises:
        OSError: If it can't be read.
        ValueError: If it is no JSON, nested too deeply, or of more than 256 MiB, which is then not read.
    """
    path = Path(path)
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; at most {MOST_JSON_BYTES:,} are read")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_optional(
    path: str | os.PathLike, parse: Callable[[Any], Parsed], what: str, remedy: str = ""
) -> Parsed | None:
    """What `parse` makes of the JSON file `path`; None if there is none.

    Args:
        path: The file.
        parse: Takes what `json.loads` gives.
        what: What the file is to be, such as "a plan".
        remedy: What to do if it isn't.

    Raises:
        ValueError: If the file is none of `what`.
    """
    if not Path(path).is_file():
        return None
    try:
        return parse(read_json(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        reason = f"({type(error).__name__}: {error})" + (f"; {remedy}" if remedy else "")
        raise ValueError(f"'{path}' is not {what} {reason}") from None
