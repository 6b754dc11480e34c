"""Model cards: what was trained and how, for readers and for the index of the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config import TraDyConfig
from ..version import __version__


LIBRARY_NAME = "hf_trady"
PIPELINE_TAGS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "IMAGE_CLS": "image-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
}


def model_card(
    config: TraDyConfig,
    *,
    model_name: str,
    facts: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
    datasets: Sequence[str] = (),
    **data: Any,
) -> ModelCard:
    """The card of a fine-tuned model.

    Args:
        config: Of the run; names the base model and the task.
        model_name: What the model is called: a repository id, if it is known.
        facts: What to tell in a table: name -> text.
        metrics: Results on evaluation data: name -> value. What is no number is left out.
        datasets: Names of what was trained on.
        **data: More metadata, such as `language`, `license` and `tags`, as `ModelCardData` takes it.
    """
    metrics = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
    task = PIPELINE_TAGS.get(config.task_type)
    dataset = datasets[0] if datasets else "the evaluation data"
    results = [
        EvalResult(task or "other", dataset, dataset, name, round(value, 6), metric_name=name)
        for name, value in metrics.items()
    ]
    card_data = ModelCardData(
        base_model=hub_id(config.base_model_name_or_path),
        library_name=LIBRARY_NAME,
        pipeline_tag=task,
        datasets=list(datasets) or None,
        metrics=list(metrics) or None,
        model_name=model_name,
        eval_results=results or None,
        **data | {"tags": sorted({"trady", *(data.get("tags") or ())})},
    )
    text = _text(config, model_name, facts, metrics, datasets)
    return ModelCard(f"---\n{card_data}\n---\n\n{text}")


def hub_id(base_model: str | None) -> str | None:
    """The repository of a base model, if it has one that can be told from its name."""
    if base_model is None or Path(base_model).exists() or base_model.startswith((".", "/")):
        return None
    if timm.is_model(base_model):
        known = timm.get_pretrained_cfg(base_model)
        return f"timm/{known.architecture}.{known.tag}" if known is not None and known.tag else None
    return base_model


def _text(config: TraDyConfig, name: str, facts: Mapping, metrics: Mapping, datasets: Sequence[str]) -> str:
    base = config.base_model_name_or_path
    base = f"`{hub_id(base) or Path(base).name}`" if base else "A model that the run does not name"
    given = "" if hub_id(config.base_model_name_or_path) else ", base_model=base_model"
    rows = [*facts.items(), *((metric, f"{value:.4g}") for metric, value in metrics.items())]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    trained_on = f" on {', '.join(datasets)}" if datasets else ""
    return f"""# {name}

{base}, fine-tuned{trained_on} by TraDy inside a memory budget: in each
epoch, some input channels of some layers train, and the head; everything else is as it was.

| | |
| --- | --- |
{table}

## How to load it

```python
from hf_trady import TraDyModel

model = TraDyModel.from_pretrained("{name}"{given})
plain = model.merge_and_unload()  # an ordinary model, without a trace of hf_trady
```

The repository holds only what training has changed, in `trady_model.safetensors`; the rest comes from the base model,
and a base model with other weights is refused.

## Limits

- What the base model can't do, or does wrong, this one most likely can't do either: few of its weights have changed.
- The results are those of one run on one split, unless this card says otherwise.
- The peak is that of this batch size, on the machine that the run was on; `trady plan` tells it for another.

Made by hf_trady {__version__}.
"""
