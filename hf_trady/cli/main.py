"""The `trady` command."""

import argparse
import contextlib
import json
import math
import sys
from importlib import import_module
from typing import Any

import shtab

from ..version import __version__
from .stage import RunFailed


VERBS = {
    "train": "Fine-tune a model on images or texts inside a memory budget.",
    "plan": "Show what a memory budget buys and what a training step takes, before anything is trained.",
    "rank": "Rank the layers of a model, and show how far the ranking depends on task and seed.",
    "compare": "Compare strategies, budgets and other ways to fine-tune on one model, over tasks and seeds.",
    "report": "Write a page about a run: what it learned, what memory it took, and which channels it trained.",
}
COMPLETION = "--print_completion"
PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 2 for bad arguments, found before anything has begun; 1 for a run that failed; 130 for one
        that was interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    completes = arguments[:1] == [COMPLETION]
    verb = _parser(completes).parse_args(arguments if completes else arguments[:1]).verb
    module = import_module(f".{verb}", __package__)
    try:
        values, others = module.make_parser().parse(arguments[1:])
        with contextlib.redirect_stdout(sys.stderr) if others.json else contextlib.nullcontext():
            code, result = module.run(*values)
    except (ValueError, ImportError, *PATH_ERRORS) as error:
        print(f"trady {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RunFailed, OSError, ArithmeticError, MemoryError) as error:  # a full disk, an unreachable Hub, no memory
        print(f"trady {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"trady {verb}: {error or 'interrupted'}", file=sys.stderr)
        return 130
    if others.json and result is not None:
        print(json.dumps(_finite(result), indent=2, allow_nan=False))
    return code


def _finite(value: Any) -> Any:
    """`value` with None for each number that JSON doesn't know: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parser(completes: bool) -> argparse.ArgumentParser:
    """The parser of the verb; it knows the verbs' arguments, which take seconds to import, only if it `completes`."""
    parser = argparse.ArgumentParser(
        prog="trady",
        description="Fine-tune any model that the device can run, inside a memory budget.",
        epilog="'trady VERB --help' explains a verb. Example: trady train --model_name_or_path mobilenetv2_100 "
        "--dataset_name photos/ --memory_budget 0.025 --output_dir runs/photos",
    )
    parser.add_argument("--version", action="version", version=f"trady {__version__}")
    shtab.add_argument_to(parser, COMPLETION, help="Print the tab completion of a shell: %(choices)s.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        parents = [import_module(f".{name}", __package__).make_parser()] if completes else []
        verbs.add_parser(name, help=summary, parents=parents, add_help=False)
    return parser
