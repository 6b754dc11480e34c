import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_trady.memory import Budget, parse_budget


SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def in_any_case(word):
    return st.tuples(*[st.sampled_from([letter.lower(), letter.upper()]) for letter in word]).map("".join)


def padded(text):
    return st.sampled_from(["", " ", "\t", "  "]).map(lambda space: f"{space}{text}{space}")


def refusal(value):
    with pytest.raises(ValueError) as error:
        parse_budget(value)
    message = str(error.value)
    assert message.splitlines() == [message]
    assert f"memory_budget={value!r} is not allowed" in message
    assert all(form in message for form in ("int of at least 1", "float in (0, 1]", "256MiB"))
    return True


@given(st.integers(1, 10**30), st.integers(0, 10**30))
@settings(max_examples=100, deadline=None)
def test_an_int_is_elements_whatever_the_network(units, total):
    assert parse_budget(units) == Budget("units", units)
    assert parse_budget(units).units(total) == units


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 10**12))
@example(1.0, 2**40 + 1)
@settings(max_examples=200, deadline=None)
def test_a_float_is_a_share_of_the_network_rounded_down(share, total):
    assert parse_budget(share) == Budget("share", share)
    units = parse_budget(share).units(total)
    assert isinstance(units, int) and 0 <= units <= total
    assert abs(units + Fraction(1, 2) - Fraction(share) * total) <= Fraction(1, 2) + Fraction(total, 2**52)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_string_with_a_number_is_that_number(data):
    number = data.draw(st.one_of(st.integers(1, 10**12), st.floats(0, 1, exclude_min=True)))
    text = data.draw(padded(str(number)))
    parsed = parse_budget(text)
    assert parsed == parse_budget(number) and type(parsed.value) is type(number)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("28282", Budget("units", 28282)),
        ("0.025", Budget("share", 0.025)),
        ("1", Budget("units", 1)),
        ("1.0", Budget("share", 1.0)),
        ("1e-2", Budget("share", 0.01)),
        ("256MiB", Budget("bytes", 256 * 2**20)),
        ("256 MiB", Budget("bytes", 256 * 2**20)),
        ("1.5 GiB", Budget("bytes", 3 * 2**29)),
        ("256mb", Budget("bytes", 256_000_000)),
        ("256Mb", Budget("bytes", 256_000_000)),
        ("0.001KB", Budget("bytes", 1)),
    ],
)
def test_strings_by_example(text, expected):
    assert parse_budget(text) == expected


@given(st.integers(1, 10**6), st.sampled_from(sorted(SIZES)), st.data())
@settings(max_examples=200, deadline=None)
def test_bytes_in_every_unit_and_case_and_never_bits(number, unit, data):
    written = data.draw(in_any_case(unit))
    space = data.draw(st.sampled_from(["", " ", "  "]))
    parsed = parse_budget(data.draw(padded(f"{number}{space}{written}")))
    assert parsed == Budget("bytes", number * SIZES[unit])


@given(st.decimals("0.001", 1000, places=3), st.sampled_from(sorted(SIZES)))
@settings(max_examples=200, deadline=None)
def test_fractions_of_a_byte_unit_are_rounded_down(number, unit):
    exact = Fraction(number) * SIZES[unit]
    value = parse_budget(f"{number}{unit}").value
    assert isinstance(value, int) and abs(value - math.floor(exact)) <= 1 and value <= exact + Fraction(1, 1000)


@given(
    st.one_of(
        st.integers(max_value=0),
        st.floats(max_value=0),
        st.floats(min_value=1, exclude_min=True),
        st.just(math.nan),
        st.booleans(),
        st.none(),
        st.binary(max_size=4),
        st.lists(st.integers(1, 9), max_size=2),
        st.dictionaries(st.text(max_size=2), st.integers(1, 9), max_size=1),
        st.complex_numbers(),
    )
)
@settings(max_examples=200, deadline=None)
def test_what_is_no_budget_is_refused_in_one_line(value):
    assert refusal(value)


NO_NUMBER = ["", " ", "True", "None", "half", "0x10", "1_000", "1,000", "28282 units", "nan", "inf", "-inf", "1e400"]
OUT_OF_RANGE = ["0", "0.0", "-1", "-0.5", "1.5", "2.0", "0MiB", "0.0 GB", "0.0001KB", "-256MiB", "9" * 400 + "GiB"]
NO_BYTES = ["MiB", "256M", "256 bytes", "256TB", "256 Mibit", "1e3MiB", "2 56MiB", "256MiB!", "256MiB\n256MiB"]


@pytest.mark.parametrize("text", [*NO_NUMBER, *OUT_OF_RANGE, *NO_BYTES])
def test_strings_that_are_no_budget_are_refused(text):
    assert refusal(text)


@given(st.text(st.characters(codec="utf-8"), max_size=12) | st.from_regex(r"[-+0-9.eE]{0,9} ?[kKmMgG]?[iI]?[bB]?"))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_positive_budget_or_refused(text):
    try:
        budget = parse_budget(text)
    except ValueError:
        assert refusal(text)
    else:
        assert budget.value > 0 and (budget.kind == "share") == isinstance(budget.value, float)
        assert budget.kind != "share" or budget.value <= 1


@given(st.integers(1, 10**12), st.integers(0, 10**12))
@settings(max_examples=50, deadline=None)
def test_a_budget_in_bytes_says_nothing_of_units_by_itself_and_what_to_do_is_said_in_one_line(size, total):
    with pytest.raises(ValueError) as error:
        Budget("bytes", size).units(total)
    message = str(error.value)
    assert message.splitlines() == [message]
    assert f"memory_budget={size:,} bytes" in message and "elements (an int)" in message and "share" in message
