"""Writes docs/architectures.md: what trains, and what is kept for backward, in every family of architectures.

    python -m tests.architectures [--again] [--skip_memory] [NAME ...]

Learns the figures of the families named (default: all) that are not in benchmarks/results/architectures.json yet, or,
with --again, of all of these, and keeps them there one by one: it can be interrupted. Memory takes most of the time.
"""

import argparse

from tqdm import tqdm

from .families import FAMILIES
from .figures import figures_of
from .table import PAGE, key_of, load_figures, page, save_figures


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--skip_memory", action="store_true")
    options = parser.parse_args(args)
    if unknown := set(options.names) - {family.name for family in FAMILIES}:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    figures = load_figures()
    wanted = [family for family in FAMILIES if not options.names or family.name in options.names]
    for family in tqdm(wanted):
        known = figures.get(key_of(family))
        if options.again or known is None or not (options.skip_memory or known.is_complete):
            figures[key_of(family)] = figures_of(family, memory=not options.skip_memory)
            save_figures(figures)
    PAGE.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
