import pytest

from hf_trady.comparison.methods import parse_method


def test_a_strategy_may_carry_fields():
    assert parse_method("trady") == ("trady", {})
    assert parse_method("lora") == ("lora", {})
    assert parse_method("informed:tau=2,importance=rgn") == ("informed", {"tau": 2, "importance": "rgn"})
    assert parse_method("trady:num_layers=budget")[1] == {"num_layers": "budget"}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("tradi", "must be any of"),
        ("informed:tau", "fields of TraDyConfig"),
        ("informed:tow=2", "fields of TraDyConfig"),
        ("informed:tau=-1", "tau=-1"),
        ("lora:tau=2", "no fields to set"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        parse_method(text)
    assert "\n" not in str(refused.value)
