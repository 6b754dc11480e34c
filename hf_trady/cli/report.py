"""Write a page about a run: what it learned, what memory it took, and which channels it trained.

Takes the output directory of `trady train`, or of any Trainer that has trained a TraDyModel and saved it, also while
the run goes on or after it was killed. No model is loaded. The page is one HTML file with its pictures in it; the
pictures are also written as PNG files.
"""

from dataclasses import dataclass, field
from pathlib import Path

import shtab
from rich.console import Console

from .arguments import VerbParser


@dataclass
class ReportArguments:
    """Where the report goes."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where the report is written; default: RUN/report."}
    )


def make_parser() -> VerbParser:
    """The parser of `trady report`."""
    parser = VerbParser((ReportArguments,), "report", __doc__, ["output_dir", "json"], "trady report runs/photos")
    run = parser.add_argument("run", metavar="RUN", help="The output directory of a run.")
    run.complete = shtab.DIRECTORY
    return parser


def run(args: ReportArguments, directory: str) -> tuple[int, dict]:
    """Write the report and print the summary; returns the exit code and the summary."""
    # They import torch and transformers, for which a help need not wait.
    from ..reporting import read_run, summarize, write_report
    from ..reporting.summary import rows

    record = read_run(directory)
    summary = summarize(record)
    page = write_report(record, args.output_dir or Path(directory) / "report")
    for name, value in rows(summary):
        Console(soft_wrap=True).print(f"{name}: {value}", markup=False, highlight=False)
    print(f"Written to {page.parent}: {page.name} and its pictures")
    return 0, summary
