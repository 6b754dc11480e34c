import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_trady.memory import FittedBudget, fit_bytes


class Affine:
    """A model whose peak is a base, plus so much for each layer of the path, plus so much for each unit."""

    def __init__(self, base: int, path: list[int], slope: float, units: int = 10_000):
        self.layers = [f"layer{i}" for i in range(len(path))]
        self.base, self.path, self.slope, self.units, self.calls = base, path, slope, units, 0

    def path_peak(self, first: int) -> int:
        self.calls += 1
        return self.base + sum(self.path[first:])

    def draw_peak(self, units: int, first: int) -> int:
        return self.path_peak(first) + int(self.slope * (units - 1))

    def unit_range(self, first: int) -> tuple[int, int]:
        return 1, self.units


models = st.builds(
    Affine,
    st.integers(100, 10_000),
    st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    st.floats(0.01, 20),
)


@given(models, st.floats(1, 20))
def test_what_is_fitted_fits_and_leaves_little_unused(trials, factor):
    budget = int(trials.path_peak(len(trials.layers) - 1) * factor)
    trials.calls = 0
    fitted = fit_bytes(trials, budget)
    assert trials.calls <= 60
    first = len(fitted.left_out)
    assert fitted.left_out == tuple(trials.layers[:first])
    assert fitted.predicted_peak == trials.draw_peak(fitted.units, first) <= budget
    more = int(fitted.units + 0.02 * budget / trials.slope + 2)
    assert fitted.units == trials.units or trials.draw_peak(more, first) > budget


@given(models, st.floats(1, 10), st.floats(1.1, 3))
def test_a_larger_budget_reaches_deeper_or_buys_no_fewer_units(trials, factor, more):
    budget = int(trials.path_peak(len(trials.layers) - 1) * factor)
    smaller, larger = fit_bytes(trials, budget), fit_bytes(trials, int(budget * more))
    assert len(larger.left_out) <= len(smaller.left_out)
    assert len(larger.left_out) < len(smaller.left_out) or larger.units >= smaller.units


@given(models)
def test_the_number_in_the_refusal_works(trials):
    floor = trials.path_peak(len(trials.layers) - 1)
    with pytest.raises(ValueError, match="impossible") as error:
        fit_bytes(trials, floor - 1)
    assert "\n" not in str(error.value)
    number = float(str(error.value).split("'")[-2].removesuffix("MiB"))
    assert fit_bytes(trials, int(number * 2**20)).units >= 1


def test_a_shrunk_budget_holds_from_its_draw_on():
    fitted = FittedBudget(units=1000, floor=100)
    shrunk = fitted.shrink(3, measured=1100, budget=600, least=10)
    assert [shrunk.units_of(draw) for draw in (0, 2, 3, 9)] == [1000, 1000, 490, 490]
    again = shrunk.shrink(5, measured=10**9, budget=101, least=10)
    assert again.units_of(4) == 490 and again.units_of(5) == 10


def test_it_survives_a_file(tmp_path):
    fitted = FittedBudget(1000, ("a", "b"), 77, 5).shrink(2, 20, 10, 1)
    fitted.save_pretrained(tmp_path)
    assert FittedBudget.from_pretrained(tmp_path) == fitted
    assert FittedBudget.from_pretrained(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"units": 1}'])
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "trady_plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"trady_plan\.json"):
        FittedBudget.from_pretrained(tmp_path)
