"""docs/architectures.md against the families that are tested and the figures that it is written from."""

import re
from dataclasses import replace

import pytest

from ..tiny import NAMES_OPERATIONS
from .families import FAMILIES
from .figures import figures_of
from .table import PAGE, key_of, load_figures, page


def test_the_page_lists_exactly_the_families_that_are_tested():
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| (.+?) \| `(.+?)` \|", text, re.M) == [(f.name, f.reference) for f in FAMILIES]
    assert len({key_of(family) for family in FAMILIES}) == len(FAMILIES)
    for library in ("timm", "transformers"):
        assert sum(family.library == library for family in FAMILIES) >= 20


def test_the_page_is_written_from_the_figures():
    figures = load_figures()
    assert figures.keys() <= {key_of(family) for family in FAMILIES}
    assert PAGE.read_text(encoding="utf-8") == page(figures)


@pytest.mark.parametrize("key", ["timm/VGG", pytest.param("transformers/DistilBERT", marks=pytest.mark.slow)])
def test_the_figures_are_what_the_library_says_now(key):
    family = next(family for family in FAMILIES if key_of(family) == key)
    actual, written = figures_of(family), load_figures()[key]
    if not NAMES_OPERATIONS:
        written = replace(written, held_by=actual.held_by)
    assert actual == written


def test_the_figures_are_complete():
    assert all(found.is_complete for found in load_figures().values())
