"""Files of a stranger are loaded or refused in one line, before anything is changed, allocated or written."""

import json
import struct
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from hf_trady import TraDyConfig, TraDyModel, files
from hf_trady.config import CONFIG_NAME
from hf_trady.memory import FITTED_NAME, FittedBudget
from hf_trady.saving import WEIGHTS_NAME, checksum
from hf_trady.selection import COSTS_NAME, RANKING_NAME, SCORES_NAME, STRATEGIES, ChannelScores
from hf_trady.velocity import VELOCITIES_NAME, NeuronVelocities

from .tiny import anatomy, conv_net, copy_of_state, different_keys, image_batch, ranking_of, same_draw, train, wrap


IMAGES, LABELS = image_batch()
NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from(
        [0, 1, -1, 1e300, float("nan"), float("inf"), "", "../../etc/passwd", "\0", [], {}, [[]], "1" * 999]
    ),
    st.floats(),
    st.text(max_size=5),
)


def saved_run(path: Path, **config) -> Path:
    model = wrap(conv_net(), IMAGES, 0.35, **{"strategy": "medyate"} | config)
    model.set_layer_ranking(ranking_of(model.costs))
    train(model, (IMAGES, LABELS), 2)
    model.save_pretrained(path)
    FittedBudget(300, ("stem",), 1000, 100, ((2, 200),)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return saved_run(tmp_path_factory.mktemp("saved"))


def load_to_train(path: Path, base) -> TraDyModel:
    """What a user does with a directory that they got: load it, then train on by it."""
    model = TraDyModel.from_pretrained(path, base, IMAGES)
    model.resample(1)
    return model


def loads_or_is_refused(path: Path) -> str | None:
    """The one line of the refusal; None if it loads."""
    base = conv_net()
    before, state = anatomy(base), copy_of_state(base)
    try:
        load_to_train(path, base)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        if before == anatomy(base):
            assert different_keys(state, copy_of_state(base)) == []
        return str(error)
    return None


def places(value, path=()) -> list[tuple]:
    """The path of every value inside a JSON value, itself included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def put(value, path: tuple, new):
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@pytest.mark.parametrize("name", [CONFIG_NAME, RANKING_NAME])
@given(data=st.data())
@settings(max_examples=25)
def test_any_value_anywhere_in_a_json_file_loads_or_is_refused(saved, name, data):
    original = (saved / name).read_text()
    values = json.loads(original)
    place = data.draw(st.sampled_from(places(values)))
    try:
        (saved / name).write_text(json.dumps(put(values, place, data.draw(NASTY))))
        loads_or_is_refused(saved)
    finally:
        (saved / name).write_text(original)


@given(data=st.data())
@settings(max_examples=30)
def test_any_value_anywhere_in_a_plan_is_taken_or_refused(saved, data):
    original = (saved / FITTED_NAME).read_text()
    values = json.loads(original)
    place = data.draw(st.sampled_from(places(values)))
    try:
        (saved / FITTED_NAME).write_text(json.dumps(put(values, place, data.draw(NASTY))))
        fitted = FittedBudget.from_pretrained(saved)
        assert min(fitted.units_of(draw) for draw in range(5)) >= 1
    except ValueError as error:
        assert FITTED_NAME in str(error) and "\n" not in str(error)
    finally:
        (saved / FITTED_NAME).write_text(original)


@given(data=st.data())
@settings(max_examples=50)
def test_any_value_anywhere_in_costs_is_taken_or_refused(data):
    model = wrap(conv_net(), IMAGES, 0.35)
    values, before, draws = model.costs.to_dict(), model.costs, model.draw(1)
    place = data.draw(st.sampled_from(places(values)))
    with TemporaryDirectory() as directory:
        (Path(directory) / COSTS_NAME).write_text(json.dumps(put(values, place, data.draw(NASTY))))
        try:
            model.load_known(directory)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            assert model.costs is before and same_draw(model.draw(1), draws)
        else:
            assert 0 < model.resample(1).units <= model.budget


def test_scores_of_the_wrong_length_are_refused(saved):
    original = (saved / SCORES_NAME).read_bytes()
    scores = ChannelScores.from_pretrained(saved)
    name, known = next(iter(scores.norms.items()))
    try:
        for part in ("norms", "latest"):
            tensors = load_file(saved / SCORES_NAME)
            tensors[f"{part}.{name}"] = torch.ones(len(known) + 1)
            save_file(tensors, saved / SCORES_NAME, metadata={"draw": "1"})
            assert f"{len(known) + 1} channels there for '{name}'" in loads_or_is_refused(saved)
            (saved / SCORES_NAME).write_bytes(original)
    finally:
        (saved / SCORES_NAME).write_bytes(original)


FORGED_VELOCITIES = {
    "outputs.a": torch.ones(5),
    "similarity.a": torch.ones(3),
    "velocity.a": torch.ones(2, 1),
    "velocity.b": torch.ones(2),
    "similarity.a ": torch.ones(2),
}


@pytest.mark.parametrize("key, value", [*FORGED_VELOCITIES.items(), ("velocity.a", torch.ones(2, dtype=torch.int64))])
def test_velocities_that_do_not_fit_each_other_are_refused(key, value, tmp_path):
    layers = {"a": torch.nn.Linear(3, 2)}
    velocities = NeuronVelocities(layers)
    for _ in range(2):
        velocities.update(layers["a"], [torch.ones(5, 3)], 1, lambda model, batch: model(batch))
    velocities.save_pretrained(tmp_path)
    assert NeuronVelocities.from_pretrained(tmp_path, layers).layers == layers
    save_file(load_file(tmp_path / VELOCITIES_NAME) | {key: value}, tmp_path / VELOCITIES_NAME)
    with pytest.raises(ValueError, match=f"holds a '{key}' of .*delete it to start anew") as caught:
        NeuronVelocities.from_pretrained(tmp_path, layers)
    assert "\n" not in str(caught.value)


def header(**tensors) -> bytes:
    text = json.dumps({"__metadata__": {"trady_format": "1", "witnesses": "{}", "checksums": "{}"}} | tensors).encode()
    return struct.pack("<Q", len(text)) + text


ABSURD = {
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a terabyte": header(**{"tensor.a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}),
    "a shape that overflows": header(**{"tensor.a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
    "a negative shape": header(**{"tensor.a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
    "offsets that overlap": header(
        **{f"tensor.{key}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for key in "ab"}
    )
    + bytes(4),
    "metadata that is nested too deeply": header(
        __metadata__={"trady_format": "1", "witnesses": "{}", "checksums": "[" * 10**5}
    ),
}


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_absurd_tensors_are_refused_before_they_are_allocated(saved, content):
    original = (saved / WEIGHTS_NAME).read_bytes()
    try:
        (saved / WEIGHTS_NAME).write_bytes(content)
        tracemalloc.start()
        assert WEIGHTS_NAME in loads_or_is_refused(saved)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
        (saved / WEIGHTS_NAME).write_bytes(original)


@pytest.mark.parametrize("name", [CONFIG_NAME, RANKING_NAME, FITTED_NAME])
def test_a_huge_or_endlessly_nested_json_file_is_not_parsed(saved, name, monkeypatch):
    original = (saved / name).read_bytes()
    try:
        (saved / name).write_text("[" * 10**6)
        assert name in refusal_of(saved, name)
        monkeypatch.setattr(files, "MOST_JSON_BYTES", 10**6 - 1)
        with pytest.MonkeyPatch.context() as patch:
            read = Path.read_text
            patch.setattr(Path, "read_text", lambda file, **k: pytest.fail() if file.name == name else read(file, **k))
            assert "at most 999,999 are read" in refusal_of(saved, name)
    finally:
        (saved / name).write_bytes(original)


def refusal_of(path: Path, name: str) -> str:
    with pytest.raises(ValueError) as caught:
        FittedBudget.from_pretrained(path) if name == FITTED_NAME else TraDyModel.from_pretrained(path, conv_net())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", ["../../x", "/etc/passwd", "..", "__class__", "stem", "stem.forward"])
def test_names_are_looked_up_in_the_model_and_nowhere_else(saved, key, tmp_path):
    original = (saved / WEIGHTS_NAME).read_bytes()
    seen = set(tmp_path.rglob("*"))
    try:
        (saved / WEIGHTS_NAME).write_bytes(forged(original, {f"tensor.{key}": torch.zeros(1)}))
        assert f"it has no '{key}'" in loads_or_is_refused(saved)
    finally:
        (saved / WEIGHTS_NAME).write_bytes(original)
    assert set(tmp_path.rglob("*")) == seen


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_values_of_another_kind_are_refused(saved, dtype):
    original = (saved / WEIGHTS_NAME).read_bytes()
    try:
        (saved / WEIGHTS_NAME).write_bytes(forged(original, {"tensor.classifier.bias": torch.zeros(3).to(dtype)}))
        assert f"is of torch.float32 there and of {dtype} here" in loads_or_is_refused(saved)
    finally:
        (saved / WEIGHTS_NAME).write_bytes(original)


def forged(original: bytes, changes: dict[str, torch.Tensor]) -> bytes:
    """The file of weights with other tensors, and sums that are right."""
    metadata = json.loads(original[8 : 8 + int.from_bytes(original[:8], "little")])["__metadata__"]
    tensors = load(original) | changes
    metadata["checksums"] = json.dumps({key: checksum(value) for key, value in tensors.items()})
    return save(tensors, metadata)


def test_the_config_of_a_stranger_names_no_file_that_is_read(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"layer": 0.5}')
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"scheme": str(secret), "strategy": "sparse_update"}))
    with pytest.raises(ValueError, match=r"scheme=.* must be a dict in a saved config"):
        TraDyConfig.from_pretrained(tmp_path)
    assert TraDyConfig(strategy="sparse_update", scheme=str(secret)).scheme == {"layer": 0.5}  # the user's own


CONFIGS = {
    "memory_budget": st.one_of(st.floats(0.001, 1), st.integers(1, 10**5), st.sampled_from(["1KiB", "1MiB", "1TiB"])),
    "strategy": st.sampled_from(sorted(STRATEGIES)),
    "layer_ranking": st.sampled_from([None, "auto", "../nowhere"]),
    "scheme": st.sampled_from([None, {}, {"stem": 0.5}, {"nothing": 1.0}]),
    "resample_every": st.one_of(st.just("epoch"), st.integers(1, 10**6)),
    "base_model_name_or_path": st.sampled_from([None, "", "nobody/nothing", "../.."]),
    "task_type": st.sampled_from([None, "IMAGE_CLASSIFICATION", "nothing"]),
    "revision": st.sampled_from([None, "main", "../.."]),
    "ranking_coverage": st.floats(0.001, 1),
    "num_layers": st.one_of(st.none(), st.just("budget"), st.integers(1, 10)),
    "importance": st.sampled_from([None, "rgn", "lara"]),
    "tau": st.floats(0, 1e300),
    "channels_per_layer": st.one_of(st.none(), st.integers(1, 100)),
    "target_modules": st.sampled_from(
        ["all", ["stem"], ["hidden", "depthwise"], ".*wise", ["classifier"], ["nothing"]]
    ),
    "exclude_modules": st.sampled_from([None, ["stem"], ".*", ["nothing"]]),
    "modules_to_save": st.sampled_from([None, [], ["hidden"], ["nothing"], ["norm1"]]),
    "train_bias": st.sampled_from([False, True, 1, 99]),
    "optimizer_state": st.sampled_from(["reset", "carry"]),
    "norm_mode": st.sampled_from(["frozen", "train"]),
    "lean_backward": st.sampled_from(["compressed", "exact", "off"]),
    "seed": st.integers(0, 2**63 - 1),
}


@given(st.fixed_dictionaries({}, optional=CONFIGS))
@settings(max_examples=25)
def test_a_config_that_is_allowed_trains_or_is_refused_in_one_line(values):
    net = conv_net()
    start = copy_of_state(net)
    try:
        model = TraDyModel(net, TraDyConfig(**values), IMAGES)
        if model.needs_measuring:
            model.measure([(IMAGES, LABELS)], num_steps=1, disable_tqdm=True)
        losses = train(model, (IMAGES, LABELS), epochs=2, steps=1)
    except (ValueError, FileNotFoundError) as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert len(losses) == 2 and different_keys(start, copy_of_state(model))
