import json

import numpy as np
import pytest

from hf_trady import LayerRanking
from hf_trady.cli.main import main


def rank(run, output, *more):
    names = ("--model_name_or_path", "--checkpoint_path", "--dataset_name", "--image_size", "--max_seq_length")
    kept = [part for name in names if name in run for part in (name, run[run.index(name) + 1])]
    return main(["rank", *kept, "--output_dir", str(output), "--num_steps", "2", *more])


def test_seeds_of_a_task_agree_and_the_ranking_trains(image_run, tmp_path, capsys):
    assert rank(image_run, tmp_path, "--seeds", "0", "1", "--per_device_train_batch_size", "8") == 0
    values = json.loads((tmp_path / "agreement.json").read_text())
    assert values["runs"] == ["photos 0", "photos 1"]
    for kind in ("layers", "channels"):
        matrix = np.array(values[kind])
        assert matrix.shape == (2, 2) and np.allclose(np.diag(matrix), 1) and np.allclose(matrix, matrix.T)
        assert 0 < matrix.min() <= 1
    assert all(len(curve) == 2 and 0.5 < min(curve) <= max(curve) < 4 for curve in values["tail_index"].values())
    ranking = LayerRanking.from_pretrained(tmp_path)
    assert sum(ranking.scores["rgn"].values()) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "Rank correlation between runs" in printed and "hold 97% of the RGN" in printed
    for picture in ("layer_ranking", "agreement", "tail_index"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 3000
    train = ["train", *image_run, "--layer_ranking", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    assert main([*train, "--max_steps", "2"]) == 0


def test_texts_and_a_learning_rate(text_run, tmp_path, capsys):
    assert rank(text_run, tmp_path, "--learning_rate", "0.1", "--per_device_train_batch_size", "8", "--json") == 0
    agreement = json.loads((tmp_path / "agreement.json").read_text())
    assert agreement["layers"] == [[1.0]]
    assert json.loads(capsys.readouterr().out) == agreement | {"scores": LayerRanking.from_pretrained(tmp_path).scores}


def test_a_measurement_that_fails_is_no_bad_argument(text_run, tmp_path, capsys):
    assert rank(text_run, tmp_path, "--learning_rate", "1e30") == 1
    assert "trady rank: can't rank layers" in capsys.readouterr().err.strip().splitlines()[-1]
    assert rank(text_run, tmp_path, "--text_column_name", "body") == 2


def test_no_seed_is_refused(text_run, tmp_path, capsys):
    assert rank(text_run, tmp_path, "--seeds") == 2
    assert capsys.readouterr().err.strip() == (
        "trady rank: seeds is an empty list; give one value at least, or leave seeds out for its default"
    )
