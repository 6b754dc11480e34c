import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_trady.matching import matches


def parts():
    return st.text("abq01_", min_size=1, max_size=3)


def names():
    """Dotted names; few letters, so that parts often coincide."""
    return st.lists(parts(), min_size=1, max_size=4).map(".".join)


@given(names(), st.lists(names(), max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_list_names_whole_trailing_parts(name, suffixes):
    split = name.split(".")
    tails = {".".join(split[i:]) for i in range(len(split))}
    assert matches(name, suffixes) == any(suffix in tails for suffix in suffixes)
    assert matches(name, suffixes) == matches(name, tuple(suffixes)) == matches(name, set(suffixes))


@given(st.lists(parts(), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_tail_of_a_name_names_it_and_no_piece_of_a_part_does(split, start):
    name, tail = ".".join(split), ".".join(split[start % len(split) :])
    assert matches(name, [tail]) and matches(name, ["other", tail])
    assert not matches(f"x{name}", [name]) and matches(f"x.{name}", [name])
    assert not matches(name + "x", [tail]) and not matches(f"{name}.x", [tail])


@given(names(), names())
@settings(max_examples=200, deadline=None)
def test_a_regex_must_match_the_whole_name(name, other):
    assume(name != other)
    assert matches(name, re.escape(name)) and matches(name, ".*") and matches(name, f"({re.escape(name)}|x)")
    assert not matches(name, re.escape(other))
    assert not matches(f"{name}.x", re.escape(name)) and not matches(f"x.{name}", re.escape(name))


@given(names())
@settings(max_examples=50, deadline=None)
def test_a_list_is_never_a_regex_and_a_string_is_never_a_suffix(name):
    assert not matches(name, [".*"]) and not matches(name, [])
    assert not matches(f"layer.{name}", name) and matches(f"layer.{name}", [name])


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("encoder.layer.0.query", ["query", "value"], True),
        ("encoder.layer.0.query", ["0.query"], True),
        ("encoder.layer.10.query", ["0.query"], False),
        ("encoder.layer.0.query", ["uery"], False),
        ("encoder.layer.0.query", r".*\.(query|key)", True),
        ("encoder.layer.0.query", "query", False),
        ("encoder\nlayer", ".*", False),
        ("", [""], True),
        ("", ".*", True),
    ],
)
def test_by_example(name, pattern, expected):
    assert matches(name, pattern) is expected
