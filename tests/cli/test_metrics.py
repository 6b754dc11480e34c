import numpy as np
import pytest
from transformers import EvalPrediction

from hf_trady.cli.main import main
from hf_trady.cli.metrics import make_metrics


METRIC = """
import datasets
import evaluate
from sklearn import metrics


class Metric(evaluate.Metric):
    def _info(self):
        features = {{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, {arguments}):
        {body}
"""
F1 = METRIC.format(
    arguments="average='binary'", body="return {'f1': metrics.f1_score(references, predictions, average=average)}"
)


@pytest.fixture
def script(tmp_path):
    """Writes a metric; returns the path, which is its name."""

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(("labels", "f1"), [([0, 1, 1, 1], 0.8), ([0, 1, 2, 2], 4 / 9)])
def test_a_metric_for_two_classes_is_averaged_over_more(script, labels, f1):
    compute = make_metrics([script("f1", F1)], max(labels) + 1)
    predicted = np.eye(3)[[0, 1, 1, 0]]
    assert compute(EvalPrediction(predicted, np.array(labels))) == {"accuracy": 0.5 + (max(labels) == 1) / 4, "f1": f1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise KeyError('tokens')", "KeyError: 'tokens'"),
        ("return {'matrix': metrics.confusion_matrix(references, predictions)}", "matrix is no number"),
    ],
)
def test_a_metric_that_does_not_work_is_refused_before_the_model_is_loaded(
    text_run, tmp_path, script, capsys, body, reason
):
    name = script("odd", METRIC.format(arguments="weight=1", body=body))
    assert main(["train", *text_run, "--output_dir", str(tmp_path / "run"), "--metrics", name]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        line.startswith(f"trady train: metrics='{name}' doesn't work on the numbers of 2 classes") and reason in line
    )
    assert not (tmp_path / "run").exists()


def test_a_metric_that_fails_after_an_epoch_is_a_failed_run(text_run, tmp_path, script, capsys):
    body = "if len(predictions) > 2: raise ValueError('too many')\n        return {'few': 1.0}"
    name = script("few", METRIC.format(arguments="weight=1", body=body))
    arguments = ["--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1", "--metrics", name, "--json"]
    assert main(["train", *text_run, *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.strip().splitlines()[-1] == "trady train: too many" and not printed.out
