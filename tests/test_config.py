import copy
import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_trady import TraDyConfig
from hf_trady.config import CONFIG_NAME
from hf_trady.selection import STRATEGIES


FIELDS = [field.name for field in fields(TraDyConfig)]


def module_names():
    return st.lists(st.text("abc.", min_size=1, max_size=6), min_size=1, max_size=3)


def regexes():
    return st.sampled_from(["all", "query", r".*\.(query|key)", r"layers\.[0-9]+\..*", "(?i)a|b"])


def texts():
    return st.none() | st.text(max_size=8) | st.builds(Path, st.text("ab/.", min_size=1, max_size=5))


# What every field allows.
ALLOWED = {
    "memory_budget": st.integers(1, 10**12)
    | st.floats(0, 1, exclude_min=True)
    | st.sampled_from(["28282", "0.025", "256MiB", "1.5 GiB", "3kb"]),
    "strategy": st.sampled_from(sorted(STRATEGIES)),
    "layer_ranking": texts(),
    "ranking_coverage": st.floats(0, 1, exclude_min=True) | st.just(1),
    "num_layers": st.none() | st.integers(1, 10**6) | st.just("budget"),
    "importance": st.sampled_from([None, "rgn", "lara"]),
    "tau": st.floats(0, 10**6) | st.integers(0, 100),
    "channels_per_layer": st.none() | st.integers(1, 10**6),
    "scheme": st.none() | st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 1) | st.just(1), min_size=1),
    "target_modules": module_names() | regexes() | module_names().map(tuple),
    "exclude_modules": st.none() | module_names() | regexes() | module_names().map(tuple),
    "modules_to_save": st.none() | st.just([]) | module_names() | module_names().map(tuple),
    "train_bias": st.booleans() | st.integers(1, 100),
    "resample_every": st.just("epoch") | st.integers(1, 10**6) | st.integers(1, 10**6).map(str),
    "optimizer_state": st.sampled_from(["reset", "carry"]),
    "norm_mode": st.sampled_from(["frozen", "train"]),
    "lean_backward": st.sampled_from(["compressed", "exact", "off"]),
    "seed": st.integers(0, 2**63 - 1),
    "base_model_name_or_path": texts(),
    "revision": texts(),
    "task_type": texts(),
}

# Values that it does not, and words of the message that say what it allows.
REFUSED = {
    "memory_budget": ([0, -1, 0.0, -0.1, 1.5, math.nan, math.inf, True, None, "much", "0MiB", []], ["(0, 1]", "MiB"]),
    "strategy": (["random", "", None, 1, ["trady"], "Trady"], sorted(STRATEGIES)),
    "layer_ranking": ([1, True, ["a"], b"a"], ["None or a string"]),
    "ranking_coverage": ([0, 0.0, -0.5, 1.01, 2, math.nan, math.inf, "0.9", None, True], ["(0, 1]"]),
    "num_layers": ([0, -1, 1.0, "all", "1.5", True, math.nan], ["None, 'budget' or an int of at least 1"]),
    "importance": (["norm", "", 1, True, ["rgn"], "RGN"], ["'rgn', 'lara'"]),
    "tau": ([-0.1, -1, math.nan, math.inf, None, "1", True], ["a number of at least 0"]),
    "channels_per_layer": ([0, -1, 1.0, "3", True, math.nan], ["None or an int of at least 1"]),
    "scheme": ([{}, [], 1, "nowhere.json", {"a": 1.5}, {"a": -0.1}, {"a": None}, {1: 0.5}], ["share"]),
    "target_modules": ([[], (), "", None, 1, [""], [1], ["a", None], "(", "*a", "a{99999999999}"], ["regex"]),
    "exclude_modules": ([[], (), "", 1, [""], [1], {"a": 1}, "[", "(?P<a", "(" * 5000 + ")" * 5000], ["regex"]),
    "modules_to_save": (["classifier", "", 1, [""], [None], True], ["list of module names"]),
    "train_bias": ([0, -1, 1.0, "True", None, "no"], ["True, False or an int"]),
    "resample_every": ([0, -1, 1.0, "step", "", "-1", "1.5", True, None, math.nan], ["'epoch'", "at least 1"]),
    "optimizer_state": (["keep", "", None, True, "Reset"], ["'reset', 'carry'"]),
    "norm_mode": (["eval", "", None, False, ["train"]], ["'frozen', 'train'"]),
    "lean_backward": (["lossy", "", None, False, ["exact"]], ["'compressed', 'exact', 'off'"]),
    "seed": ([-1, 2**63, 1.0, "0", None, True, math.nan], ["[0, 2**63)"]),
    "base_model_name_or_path": ([1, ["a"], b"a", 0], ["None or a string"]),
    "revision": ([1, 0.5, False], ["None or a string"]),
    "task_type": ([1, ["SEQ_CLS"], {}], ["None or a string"]),
}


def configs():
    return st.fixed_dictionaries({}, optional=ALLOWED).map(lambda values: TraDyConfig(**values))


def anything():
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=3)
    hints = st.sampled_from(["all", "epoch", "reset", "frozen", "trady", "256MiB", "(", "[a", "a{9999999999}", "1e5"])
    nested = (
        st.lists(simple, max_size=3) | st.tuples(simple) | st.dictionaries(st.text(max_size=2), simple, max_size=2)
    )
    return simple | hints | nested | st.sets(st.integers(), max_size=2) | st.builds(object) | st.complex_numbers()


def test_the_tests_know_every_field():
    assert list(ALLOWED) == list(REFUSED) == FIELDS


@pytest.mark.parametrize("name", FIELDS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_a_field_allows_is_taken_as_it_is(name, data):
    value = data.draw(ALLOWED[name])
    taken = getattr(TraDyConfig(**{name: value}), name)
    if isinstance(value, tuple):
        value = list(value)
    elif name == "resample_every" and value != "epoch":
        value = int(value)
    elif isinstance(value, Path):
        value = str(value)
    assert taken == value and type(taken) is type(value)


def test_a_task_is_taken_as_peft_names_it(tmp_path):
    TaskType = pytest.importorskip("peft").TaskType
    TraDyConfig(task_type=TaskType.SEQ_CLS).save_pretrained(tmp_path)
    assert TraDyConfig.from_pretrained(tmp_path).task_type == "SEQ_CLS"


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in REFUSED.items() for value in values]
)
def test_what_a_field_does_not_allow_is_refused_with_field_value_and_what_is(name, value):
    with pytest.raises(ValueError) as error:
        TraDyConfig(**{name: value})
    message = str(error.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"{name}={value!r} is not allowed; it must be ")
    assert all(word in message for word in REFUSED[name][1])


@pytest.mark.parametrize("name", FIELDS)
@given(value=anything())
@example(value="a{99999999999}")
@example(value="9" * 400 + "GiB")
@example(value="٣")
@example(value="²")
@settings(max_examples=100, deadline=None)
def test_any_value_makes_a_config_or_a_refusal_in_one_line(name, value):
    try:
        config = TraDyConfig(**{name: value})
    except ValueError as error:
        assert str(error).startswith(f"{name}=") and len(str(error).splitlines()) == 1
    else:
        assert TraDyConfig(**config.to_dict()) == config


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, anything())))
@settings(max_examples=100, deadline=None)
def test_of_several_bad_values_one_is_named(values):
    bad = []
    for name, value in values.items():
        try:
            TraDyConfig(**{name: value})
        except ValueError:
            bad.append(name)
    if bad:
        with pytest.raises(ValueError) as error:
            TraDyConfig(**values)
        assert str(error.value).split("=")[0] in bad
    else:
        TraDyConfig(**values)


@pytest.mark.parametrize(
    ("name", "typo", "meant"),
    [
        ("strategy", "dynamic_full", "dynamic_full_random"),
        ("optimizer_state", "rest", "reset"),
        ("norm_mode", "frozn", "frozen"),
    ],
)
def test_a_typo_gets_a_hint(name, typo, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        TraDyConfig(**{name: typo})


@given(configs())
@settings(max_examples=60, deadline=None)
def test_a_saved_config_comes_back_equal(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("config")
    before = copy.deepcopy(config)
    config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["trady_config.json"] == [CONFIG_NAME]
    again = TraDyConfig.from_pretrained(folder)
    assert again == config == before
    assert [type(value) for value in again.to_dict().values()] == [type(value) for value in config.to_dict().values()]
    assert TraDyConfig.from_dict(config.to_dict()) == config


def test_the_file_holds_every_field_and_saving_makes_the_directory(tmp_path):
    TraDyConfig().save_pretrained(tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / CONFIG_NAME).read_text()) == TraDyConfig().to_dict()
    assert set(TraDyConfig().to_dict()) == set(FIELDS)


def test_every_field_explains_itself():
    assert all(field.metadata["help"].endswith(".") for field in fields(TraDyConfig))


@given(configs(), st.dictionaries(st.text(min_size=1, max_size=8), st.integers() | st.none(), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_keys_of_another_version_are_dropped(config, extra):
    extra = {f"new_{key}": value for key, value in extra.items()}
    assert TraDyConfig.from_dict(config.to_dict() | extra) == config


def test_dropped_keys_are_named_in_a_warning(tmp_path, caplog):
    values = TraDyConfig(seed=3).to_dict()
    assert TraDyConfig.from_dict(values).seed == 3 and not caplog.messages
    (tmp_path / CONFIG_NAME).write_text(json.dumps(values | {"zeta": 1, "alpha": None}))
    assert TraDyConfig.from_pretrained(tmp_path) == TraDyConfig(seed=3)
    (message,) = caplog.messages
    assert "alpha, zeta" in message and CONFIG_NAME in message and "seed" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME) as error:
        TraDyConfig.from_pretrained(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"{'seed': 0}", b"{} {}"])
def test_a_corrupt_file_is_refused_by_name(tmp_path, content):
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"JSON") as error:
        TraDyConfig.from_pretrained(tmp_path)
    assert str(tmp_path / CONFIG_NAME) in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"), [("seed", "1.5"), ("memory_budget", "NaN"), ("train_bias", "0"), ("target_modules", "{}")]
)
def test_a_file_with_a_value_that_is_not_allowed_is_refused(tmp_path, name, text):
    (tmp_path / CONFIG_NAME).write_text(f'{{"{name}": {text}}}')
    with pytest.raises(ValueError, match=f"^{name}=.* is not allowed"):
        TraDyConfig.from_pretrained(tmp_path)
