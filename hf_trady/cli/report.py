"""Write a page about a run: what it learned, what memory it took, and which channels it trained.

Takes the output directory of `trady train`, or of any Trainer that has trained a TraDyModel and saved it, also while
the run goes on or after it was killed. No model is loaded. The page is one HTML file with its pictures in it; the
pictures are also written as PNG files.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from ..reporting import read_run, summarize, write_report
from ..reporting.summary import rows


def run(arguments: list[str]) -> int:
    """Write the report, or print the summary as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="trady report",
        description=__doc__,
        epilog="Example: trady report runs/photos",
    )
    parser.add_argument("run", metavar="RUN", help="The output directory of a run.")
    parser.add_argument("--output_dir", help="Where the report is written; default: RUN/report.")
    parser.add_argument("--json", action="store_true", help="Print the summary as JSON, and write nothing.")
    args = parser.parse_args(arguments)
    record = read_run(args.run)
    summary = summarize(record)
    if args.json:
        print(json.dumps(summary, indent=2))
        return 0
    page = write_report(record, args.output_dir or Path(args.run) / "report")
    for name, value in rows(summary):
        Console(soft_wrap=True).print(f"{name}: {value}", markup=False, highlight=False)
    print(f"Written to {page.parent}: {page.name} and its pictures")
    return 0
