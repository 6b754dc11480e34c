"""The `trady` command."""

import argparse
import sys

from ..version import __version__
from . import compare, plan, rank, report, train


VERBS = {"train": train, "plan": plan, "rank": rank, "compare": compare, "report": report}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a run that failed, 2 for bad arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="trady",
        description="Fine-tune any model that the device can run, inside a memory budget.",
        epilog="'trady VERB --help' explains a verb. Example: trady train --model_name_or_path mobilenetv2_100 "
        "--dataset_name photos/ --memory_budget 0.025 --output_dir runs/photos",
    )
    parser.add_argument("--version", action="version", version=f"trady {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in VERBS.items():
        verbs.add_parser(name, help=module.__doc__.splitlines()[0], add_help=False)
    verb = parser.parse_args(arguments[:1]).verb
    try:
        return VERBS[verb].run(arguments[1:])
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"trady {verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a Hub that can't be reached
        print(f"trady {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
