"""The table of faults names every test that injects one, and no other."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).parents[1]
INJECTING = (
    "tests/test_strangers.py",
    "tests/training/test_faults.py",
    "tests/training/test_nonfinite.py",
    "tests/training/test_long_runs.py",
    "tests/training/test_signals.py",
)


def names_of_tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    functions = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return {f"{path}::{name}" for name in functions if name.startswith("test_")}


def test_the_table_of_faults_is_that_of_the_tests():
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")][2:]
    named = [name for row in rows for name in re.findall(r"`(tests/[^`]+::\w+)`", row)]
    assert len(rows) > 20 and all("::" in row and row.count(" | ") == 5 for row in rows)
    assert len(named) == len({*named})
    there = set().union(*(names_of_tests(path) for path in {name.partition("::")[0] for name in named}))
    assert {*named} <= there
    assert set().union(*map(names_of_tests, INJECTING)) <= {*named}
