"""The metrics of an evaluation."""

import inspect
from collections.abc import Callable, Sequence

import numpy as np
from transformers import EvalPrediction


def make_metrics(names: Sequence[str], num_labels: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` of accuracy and of the metrics of `evaluate` called `names`.

    A metric that knows two classes alone by default, such as `f1`, is that of each class averaged, if there are more.

    Raises:
        ValueError: If a metric doesn't work on the numbers of classes; it is tried on each of them.
    """
    classes = np.arange(num_labels)
    computes = [_load(name, num_labels) for name in names]
    for name, compute in zip(names, computes, strict=True):
        try:
            flaw = _flaw(compute(predictions=classes, references=classes))
        except Exception as error:  # whatever the code of a metric may raise
            flaw = " ".join(f"{type(error).__name__}: {error}".split())
        if flaw is not None:
            raise ValueError(f"metrics='{name}' doesn't work on the numbers of {num_labels} classes ({flaw})")

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predicted, labels = np.argmax(prediction.predictions, -1), prediction.label_ids
        values = {"accuracy": float(np.mean(predicted == labels))}
        for compute in computes:
            values |= compute(predictions=predicted, references=labels)
        return values

    return compute_metrics


def _load(name: str, num_labels: int) -> Callable[..., dict]:
    import evaluate  # takes seconds, and most runs need none

    metric = evaluate.load(name)
    average = inspect.signature(metric._compute).parameters.get("average")
    if num_labels > 2 and average is not None and average.default == "binary":
        return lambda **arrays: metric.compute(**arrays, average="macro")
    return metric.compute


def _flaw(values: dict) -> str | None:
    """Why a Trainer can't log `values`."""
    return next((f"{key} is no number" for key, value in values.items() if np.ndim(value)), None)
