"""Every block of code in the README and on the site: Python runs, a page's blocks in one namespace; commands parse."""

import re
from pathlib import Path

import pytest
import yaml
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from ..hub.conftest import hub  # noqa: F401
from ..hub.server import TOKEN
from .commands import ROOT, check_commands
from .prelude import fill_hub, readme_names, write_files


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
blocks = RawFencedCodeBlockLexer(re.compile(r'(?P<language>\S*)(?: title="(?P<title>.*)")?\n'))
run_python = PythonEvaluator()


def parse(document):
    for region in blocks(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = EVALUATORS[region.lexemes["language"]]
        yield region


def evaluate_python(example) -> None:
    if included := re.fullmatch(r'--8<-- "(.*)"\s*', example.parsed):
        assert (ROOT / included[1]).is_file()  # and test_examples.py runs it
        return
    if Path(example.path).name == "README.md":
        example.namespace.update(readme_names())
    run_python(example)


def write_yaml(example) -> None:
    assert isinstance(yaml.safe_load(example.parsed), dict)
    Path(example.region.lexemes["title"]).write_text(example.parsed)


EVALUATORS = {
    "python": evaluate_python,
    "shell": lambda example: check_commands(example.parsed),
    "": lambda example: check_commands(example.parsed),
    "yaml": write_yaml,
    "text": lambda example: None,  # output
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_page_shows_works(page, hub, tmp_path, monkeypatch):  # noqa: F811
    examples = list(Document.parse(str(page), parse))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    if any(example.region.lexemes["language"] == "python" for example in examples):
        write_files()
        fill_hub(hub, tmp_path)
    for example in examples:
        example.evaluate()
