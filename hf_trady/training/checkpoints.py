"""Checkpoints that are whole or not there at all."""

import json
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, sort_checkpoints
from transformers.utils import logging

from ..config import CONFIG_NAME, TraDyConfig
from ..files import bring_to_disk, read_json, write_text
from ..history import HISTORY_NAME
from ..memory import parse_budget


logger = logging.get_logger(__name__)

SEAL_NAME = "trady_checkpoint.json"
"""Lists every file that a resume needs, with its size and CRC-32; written last: what has it is complete."""

STAGING = "_unfinished"
"""Where in the output directory a checkpoint is written, until it is complete."""

DRAWN_BY = (
    "strategy", "importance", "tau", "num_layers", "ranking_coverage", "channels_per_layer", "scheme",
    "target_modules", "exclude_modules", "modules_to_save", "train_bias", "resample_every", "seed",
)  # fmt: skip
"""Fields of a config that, beside the budget, decide what trains when."""

_CHUNK = 2**20

# torch.save fails by a RuntimeError: of its writer, or of the C++ stream below.
_TORCH_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter", "iostream error")


class CheckpointingTrainer(Trainer):
    """A Trainer that writes each checkpoint under another name, seals it and renames it.

    Whatever ends the process meanwhile, `checkpoint-N` is never half a checkpoint, and those before it stay.
    """

    _staging: Path | None = None  # where a checkpoint is being written right now

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step
        final, staged = (base / f"{PREFIX_CHECKPOINT_DIR}-{step}" for base in (run, run / STAGING))
        if self.args.should_save:
            publish_staged(run)
            shutil.rmtree(run / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._staging = run / STAGING
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()
            self.state.best_model_checkpoint = self._best_checkpoint(run)
            if self.args.should_save:
                self._add_to_checkpoint(staged)
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))  # with the path of the best one put right
                if self.args.save_total_limit or final.exists():
                    bring_to_disk(_files(staged))  # before anything is deleted for it
                seal(staged)
                _replace_directory(staged, final)
        except (OSError, SafetensorError, RuntimeError, CheckpointException) as raised:
            error = _cause(raised)
            if not _is_of_writing(error):
                raise
            shutil.rmtree(run / STAGING, ignore_errors=True)
            raise _cannot_save(final, error) from raised
        self.accelerator.wait_for_everyone()
        if not self.args.should_save and self.is_local_process_zero():
            shutil.rmtree(run / STAGING, ignore_errors=True)  # on a disk of its own, where nobody renames it
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            _rotate(run, self.args.save_total_limit, final, self.state.best_model_checkpoint)

    def _add_to_checkpoint(self, directory: Path) -> None:
        """Write what a resume needs besides what the Trainer and the model save into `directory`."""

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # a push goes on in the background: not from a directory that will be renamed
            super()._push_from_checkpoint(checkpoint_folder)

    def _best_checkpoint(self, run: Path) -> str | None:
        """Path of the best checkpoint, the one that is being written included."""
        state = self.state
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        looked_for = state.best_global_step and self.args.save_strategy != SaveStrategy.NO
        if looked_for and (state.best_global_step == state.global_step or best.is_dir()):
            return str(best)
        return state.best_model_checkpoint


def refuse_other_draws(config: TraDyConfig, checkpoint: str | os.PathLike) -> None:
    """Refuse to go on from a checkpoint whose draws, to which its optimizer state belongs, are not those of `config`.

    Raises:
        ValueError: Names the fields that differ.
    """
    if not (Path(checkpoint) / CONFIG_NAME).is_file():
        return
    saved = TraDyConfig.from_pretrained(checkpoint)
    other = [name for name in DRAWN_BY if getattr(saved, name) != getattr(config, name)]
    if parse_budget(saved.memory_budget) != parse_budget(config.memory_budget):
        other.insert(0, "memory_budget")
    if other:
        changes = ", ".join(f"{name}={getattr(saved, name)!r} there, {getattr(config, name)!r} here" for name in other)
        raise ValueError(
            f"can't resume from '{checkpoint}' with another config ({changes}); use the one that it was made with, or "
            "begin a new run with TraDyModel.from_pretrained of it"
        )


def refuse_unwritable(args: TrainingArguments) -> None:
    """Refuse an output directory that checkpoints can't be written into, before anything is trained.

    Raises:
        OSError: If it can't.
    """
    if not args.should_save or args.save_strategy == SaveStrategy.NO:
        return
    try:
        os.makedirs(args.output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir):
            pass
    except OSError as error:
        raise OSError(
            f"can't write into output_dir='{args.output_dir}' ({error.strerror}); give another, or save_strategy='no'"
        ) from error


def seal(directory: Path) -> None:
    """List all files of `directory` in its `trady_checkpoint.json`."""
    files = {}
    for path in _files(directory):
        files[path.relative_to(directory).as_posix()] = [path.stat().st_size, _crc32(path)]
    write_text(directory / SEAL_NAME, json.dumps({"files": files}, indent=1) + "\n")


def flaw(checkpoint: str | os.PathLike) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    One without a seal, of a plain Trainer, counts as whole if it holds the Trainer's state, which is written last.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such directory"
    try:
        if not (checkpoint / SEAL_NAME).is_file():
            read_json(checkpoint / TRAINER_STATE_NAME)
            return None
        files = read_json(checkpoint / SEAL_NAME)["files"]
        for name, (size, checksum) in files.items():
            path = checkpoint / name
            if checkpoint.resolve() not in path.resolve().parents:
                return f"its {SEAL_NAME} names '{name}', which lies outside"
            if not path.is_file():
                return f"'{name}' is missing"
            if path.stat().st_size != size or _crc32(path) != checksum:
                return f"'{name}' is not what was saved"
    except FileNotFoundError as error:
        return f"'{Path(error.filename).name}' is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def last_whole_checkpoint(run: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of the run in the directory `run`, None if there is none; warns of damaged ones."""
    run = Path(run)
    if not run.is_dir():
        return None
    publish_staged(run)
    for checkpoint in sorted(_checkpoints(run), key=_step, reverse=True):
        what = flaw(checkpoint)
        if what is None:
            return str(checkpoint)
        logger.warning(f"Skipping '{checkpoint}', which is damaged: {what}.")
    return None


def publish_staged(run: Path) -> None:
    """Give a checkpoint its name that was complete when the process was killed, but for that."""
    for staged in _checkpoints(run / STAGING):
        if (staged / SEAL_NAME).is_file() and not (run / staged.name).exists() and flaw(staged) is None:
            _replace_directory(staged, run / staged.name)


def _replace_directory(new: Path, old: Path) -> None:
    """Rename `new` to `old`, which is moved away first if it exists: a directory can't be replaced by a rename."""
    away = new.with_name(f"replaced-{new.name}")
    shutil.rmtree(away, ignore_errors=True)
    if old.exists():
        old.rename(away)
    new.rename(old)
    if os.name == "posix":  # elsewhere a directory can't be opened
        handle = os.open(old.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    shutil.rmtree(new.parent, ignore_errors=True)


def _rotate(run: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but neither `newest` nor `best`; first the damaged ones that a
    resume has passed over. (transformers' `rotate_checkpoints` goes by number where times tell nothing, and would
    delete `newest` for one with a higher number.)"""
    if not limit or limit < 0:
        return
    kept = {newest} if best is None else {newest, Path(best)}
    others = [path for path in map(Path, sort_checkpoints(str(run), use_mtime=True)) if path not in kept]
    passed_over = {path for path in others if _step(path) > _step(newest) and flaw(path) is not None}
    others.sort(key=lambda path: path not in passed_over)
    for path in others[: max(0, len(others) - max(0, limit - len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)


def _files(directory: Path) -> list[Path]:
    """All that a resume needs: the record of the draws is for a report."""
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in (SEAL_NAME, HISTORY_NAME))


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step(path) >= 0]


def _step(checkpoint: Path) -> int:
    found = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _cause(error: BaseException) -> BaseException:
    """What went wrong in the first process, where `torch.distributed.checkpoint` tells of all of them."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _is_of_writing(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in _TORCH_CANNOT_WRITE)
    return isinstance(error, OSError | SafetensorError)


def _cannot_save(checkpoint: Path, error: Exception) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    before = [path for path in _checkpoints(checkpoint.parent) if path != checkpoint]
    advice = f"; the one before it, '{max(before, key=_step)}', is whole: make room and resume" if before else ""
    return OSError(f"can't write '{checkpoint}' ({' '.join(reason.split())}){advice}")
