import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_trady import CostTable, LayerRanking
from hf_trady.selection import RANKING_NAME, LayerCost

from .test_drawing import seeds, tables


def ranking_with(scores):
    names = [f"layer{i}" for i in range(len(scores))]
    by_name = dict(zip(names, scores, strict=True))
    reverse = dict(zip(names, scores[::-1], strict=True))
    return LayerRanking({"rgn": by_name, "lara": reverse}, {name: [4, 10] for name in names})


@st.composite
def rankings(draw):
    names = draw(st.lists(st.text(max_size=8), unique=True, max_size=5))
    numbers = st.floats(0, allow_infinity=False)
    scores = {kind: {name: draw(numbers) for name in names} for kind in ("rgn", "lara")}
    shapes = {name: [draw(st.integers(1, 10**6)), draw(st.integers(1, 10**9))] for name in names}
    info = draw(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.none(), max_size=2))
    return LayerRanking(scores, shapes, info)


def counts():
    return st.lists(st.integers(0, 1000), min_size=1, max_size=12)


# ---- The top layers -------------------------------------------------------------------------------------------------


@given(counts(), st.sampled_from(["rgn", "lara"]))
@settings(max_examples=100, deadline=None)
def test_layers_come_in_the_order_of_their_scores(scores, importance):
    ranking = ranking_with(scores)
    layers = ranking.layers(importance)
    ordered = [ranking.scores[importance][name] for name in layers]
    assert ordered == sorted(scores, reverse=True) and sorted(layers) == sorted(ranking.shapes)


@given(counts(), st.integers(1, 100), st.sampled_from(["rgn", "lara"]))
@example([1] * 10, 30, "rgn")  # three cover it exactly
@example([1] * 100, 97, "lara")
@example([1, 0, 0], 100, "rgn")
@settings(max_examples=300, deadline=None)
def test_the_top_is_the_smallest_number_of_layers_that_cover_the_share(scores, percent, importance):
    ranking = ranking_with(scores)
    top = ranking.top(percent / 100, importance=importance)
    assert top == ranking.layers(importance)[: len(top)] and len(top) >= 1
    covered = [Fraction(ranking.scores[importance][name]) for name in top]
    wanted = Fraction(percent, 100) * sum(scores)
    assert sum(covered) >= wanted
    assert sum(covered[:-1]) < wanted or sum(scores) == 0


@given(counts(), st.floats(0.001, 1e9))
@settings(max_examples=100, deadline=None)
def test_the_scale_of_the_scores_does_not_matter(scores, scale):
    scaled = [score * scale for score in scores]
    for percent in (50, 97):
        assert len(ranking_with(scaled).top(percent / 100)) == len(ranking_with(scores).top(percent / 100))


@given(counts(), st.data())
@settings(max_examples=100, deadline=None)
def test_num_layers_overrides_coverage_and_is_refused_beyond_what_there_is(scores, data):
    ranking = ranking_with(scores)
    number = data.draw(st.integers(1, len(scores)))
    assert ranking.top(0.01, num_layers=number) == ranking.layers()[:number] == ranking.top(1.0, number)
    excess = len(scores) + data.draw(st.integers(1, 5))
    with pytest.raises(ValueError, match=f"^num_layers={excess} is more than the {len(scores)} layers"):
        ranking.top(num_layers=excess)


@given(counts(), st.integers(1, 100), st.data())
@settings(max_examples=100, deadline=None)
def test_among_some_layers_the_top_is_that_of_a_ranking_of_these_alone(scores, percent, data):
    ranking = ranking_with(scores)
    some = data.draw(st.sets(st.sampled_from(list(ranking.shapes)), min_size=1))
    alone = ranking.renamed({name: name for name in ranking.shapes if name in some})
    assert ranking.top(percent / 100, among=some) == alone.top(percent / 100)
    assert ranking.top(num_layers=len(some), among=some) == alone.layers()
    assert ranking.top(percent / 100, among=ranking.shapes) == ranking.top(percent / 100)
    with pytest.raises(ValueError, match=f"is more than the {len(some)} layers"):
        ranking.top(num_layers=len(some) + 1, among=some)


# ---- Files ----------------------------------------------------------------------------------------------------------


@given(rankings())
@settings(max_examples=50, deadline=None)
def test_a_saved_ranking_comes_back_equal_by_file_and_by_directory(tmp_path_factory, ranking):
    folder = tmp_path_factory.mktemp("ranking")
    ranking.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["layer_ranking.json"] == [RANKING_NAME]
    for path in (folder, folder / RANKING_NAME, str(folder)):
        again = LayerRanking.from_pretrained(path)
        assert again == ranking and list(again.shapes) == list(ranking.shapes)
    (folder / RANKING_NAME).rename(folder / "by_another_name.json")
    assert LayerRanking.from_pretrained(folder / "by_another_name.json") == ranking


def test_a_missing_file_or_directory_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "none.json"):
        with pytest.raises(FileNotFoundError, match=RANKING_NAME) as error:
            LayerRanking.from_pretrained(path)
        assert f"'{path}'" in str(error.value)


GOOD = {"scores": {"rgn": {"a": 1.0}, "lara": {"a": 1.0}}, "shapes": {"a": [2, 3]}, "info": {}}


def changed(**parts):
    return json.dumps({key: value for key, value in (GOOD | parts).items() if value is not None})


BAD = {
    "empty": "",
    "cut off": json.dumps(GOOD)[:-3],
    "a list": "[]",
    "null": "null",
    "no scores": changed(scores=None),
    "no shapes": changed(shapes=None),
    "no rgn": changed(scores={"lara": {"a": 1.0}}),
    "no lara": changed(scores={"rgn": {"a": 1.0}}),
    "a score that is text": changed(scores={"rgn": {"a": "much"}, "lara": {"a": 1.0}}),
    "a score that is null": changed(scores={"rgn": {"a": None}, "lara": {"a": 1.0}}),
    "a score beyond all floats": changed(scores={"rgn": {"a": 10**400}, "lara": {"a": 1.0}}),
    "scores in a list": changed(scores={"rgn": [1.0], "lara": {"a": 1.0}}),
    "other layers in rgn": changed(scores={"rgn": {"b": 1.0}, "lara": {"a": 1.0}}),
    "other layers in shapes": changed(shapes={"a": [2, 3], "b": [2, 3]}),
    "a shape that is a number": changed(shapes={"a": 6}),
    "a shape of one number": changed(shapes={"a": [2]}),
    "a shape of three numbers": changed(shapes={"a": [2, 3, 4]}),
    "a shape that is infinite": changed(shapes={"a": [2, math.inf]}),
    "info that is a number": changed(info=3),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_corrupt_file_is_refused_by_name_in_one_line(tmp_path, text):
    (tmp_path / RANKING_NAME).write_text(text)
    with pytest.raises(ValueError, match="is not a layer ranking") as error:
        LayerRanking.from_pretrained(tmp_path)
    assert str(tmp_path / RANKING_NAME) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    (tmp_path / RANKING_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"{RANKING_NAME}' is not a layer ranking"):
        LayerRanking.from_pretrained(tmp_path)


def test_the_file_that_the_corrupt_ones_are_made_from_is_good(tmp_path):
    (tmp_path / RANKING_NAME).write_text(changed())
    assert LayerRanking.from_pretrained(tmp_path).shapes == {"a": [2, 3]}


# ---- Another architecture -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_another_architecture_is_refused_by_its_first_layer_that_does_not_match(sizes, data):
    rows = [LayerCost(f"layer.{i}.", channels, weight, 5, 7) for i, (channels, weight) in enumerate(sizes)]
    shapes = {row.name: [row.channels, row.weight_per_channel] for row in rows}
    wrong = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    for i in wrong:
        change = data.draw(st.sampled_from(["missing", "channels", "weights"]))
        if change == "missing":
            del shapes[rows[i].name]
        else:
            shapes[rows[i].name][change == "weights"] += 1
    shapes["layer.of.the.head"] = [1, 1]  # more layers than needed do no harm
    ranking = LayerRanking({kind: dict.fromkeys(shapes, 1.0) for kind in ("rgn", "lara")}, shapes)
    if not wrong:
        ranking.check(CostTable(tuple(rows)))
        return
    with pytest.raises(ValueError, match="another architecture") as error:
        ranking.check(CostTable(tuple(rows)))
    message, first = str(error.value), rows[min(wrong)]
    assert f"'{first.name}'" in message and message.splitlines() == [message]
    assert all(f"'{row.name}'" not in message for row in rows if row is not first)
    if first.name in shapes:
        there, here = shapes[first.name], [first.channels, first.weight_per_channel]
        assert f"{there[0]} channels of {there[1]} weights there and {here[0]} of {here[1]} here" in message


@given(tables(), st.integers(1, 500), seeds())
@settings(max_examples=100, deadline=None)
def test_the_layers_of_a_budget_are_the_fewest_of_which_it_is_a_fifth(table, budget, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {row.name: float(torch.rand((), generator=generator)) for row in table}
    ranking = LayerRanking({"rgn": scores, "lara": scores}, {})
    top = ranking.top_by_budget(table, budget)
    memory = [table[name].channels * table[name].space for name in ranking.layers("lara")]
    assert top == ranking.layers("lara")[: len(top)]
    assert sum(memory[: len(top)]) * 0.2 >= budget or len(top) == len(table)
    assert sum(memory[: len(top) - 1]) * 0.2 < budget
