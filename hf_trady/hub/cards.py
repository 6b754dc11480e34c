"""Model cards: what was trained and how, for readers and for the index of the Hub."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config import TraDyConfig
from ..selection.strategies import make_strategy
from ..version import __version__
from .base_models import timm_repository


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
VERSIONS = {"Transformers": "transformers", "PyTorch": "torch", "timm": "timm", "Datasets": "datasets"}
FILE_SUFFIXES = (".bin", ".ckpt", ".gguf", ".json", ".pt", ".pth", ".safetensors")


def model_card(
    config: TraDyConfig,
    *,
    model_name: str,
    facts: Mapping[str, str],
    base: str | None = None,
    architecture: str | None = None,
    heads: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    datasets: Sequence[str] = (),
    dataset_names: Sequence[str] = (),
    dataset_args: Any = None,
    hyperparameters: Mapping[str, Any] | None = None,
    subfolder: str = "",
    **data: Any,
) -> ModelCard:
    """The card of a fine-tuned model.

    Args:
        config: Of the run.
        model_name: What the model is called: a repository id, if it is known.
        facts: What to tell in a table: name -> text.
        base: The Hub repository whose weights training started from, where that is known.
        architecture: What to call the base model otherwise.
        heads: Names of the modules that trained whole.
        metrics: Results on evaluation data: name -> value. What is no finite number is left out of the metadata.
        datasets: Ids on the Hub of what was trained on; the results are those of the first one.
        dataset_names: What these are called, or others that are not on the Hub; default: their ids.
        dataset_args: How the first one was loaded, for the metadata.
        hyperparameters: Of training: name -> value.
        subfolder: Where in the repository the model is.
        **data: More metadata, such as `language`, `license`, `tags`, `base_model` and `pipeline_tag`, as
            `ModelCardData` takes it. What is None is left out.
    """
    numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, Real)}
    finite = {name: round(float(value), 6) for name, value in numbers.items() if math.isfinite(value)}
    data = {name: value for name, value in data.items() if value is not None}
    data = {"base_model": base, "pipeline_tag": PIPELINE_TAGS.get(config.task_type)} | data
    names = list(dataset_names) or list(datasets)
    evaluated = {
        "task_type": data["pipeline_tag"] or "other",
        "dataset_type": datasets[0] if datasets else "unknown",
        "dataset_name": names[0] if names else "the evaluation data",
        "dataset_args": dataset_args,
    }
    results = [
        EvalResult(**evaluated, metric_type=name, metric_value=value, metric_name=name)
        for name, value in finite.items()
    ]
    card_data = ModelCardData(
        library_name=LIBRARY_NAME,
        datasets=list(datasets) or None,
        metrics=list(finite) or None,
        model_name=model_name,
        eval_results=results or None,
        **data | {"tags": sorted({"trady", *(data.get("tags") or ())})},
    )
    started = _base_in_words(config, data["base_model"], architecture)
    trained_on, how = f" on {', '.join(names)}" if names else "", _how(config, heads)
    return ModelCard(
        f"---\n{card_data}\n---\n\n# {model_name}\n\n"
        f"{wrapped(f'{started}, fine-tuned{trained_on} by TraDy{how}; everything else is as it was.')}\n\n"
        f"{_table(facts | {name: f'{value:.4g}' for name, value in numbers.items()})}\n\n"
        f"{_loading(model_name, subfolder, builds=base is not None)}\n"
        f"{_training(hyperparameters)}\n"
        f"{_limits(with_batch_size=bool(hyperparameters))}"
    )


def hub_id(base_model: str | None) -> str | None:
    """The repository of a base model, if it has one that can be told from its name."""
    if base_model is None or Path(base_model).exists():
        return None
    if timm.is_model(base_model):
        return timm_repository(base_model)
    try:
        validate_repo_id(base_model)
    except HFValidationError:
        return None
    return None if base_model.endswith(FILE_SUFFIXES) else base_model


def wrapped(paragraph: str) -> str:
    """`paragraph` in lines that a reader of the file likes, none of its words broken."""
    return textwrap.fill(paragraph, 119, break_long_words=False, break_on_hyphens=False)


def _base_in_words(config: TraDyConfig, repository: str | list[str] | None, architecture: str | None) -> str:
    if repository:
        named = [repository] if isinstance(repository, str) else repository
        return ", ".join(f"[`{name}`](https://huggingface.co/{name})" for name in named)
    name = config.base_model_name_or_path
    if name is not None and not timm.is_model(name):
        return f"`{Path(name).name}`"
    return f"`{architecture}`, from weights that the run does not name" if architecture else "A model without a name"


def _how(config: TraDyConfig, heads: Sequence[str]) -> str:
    """How much was trained, and when."""
    strategy = make_strategy(config)
    keeps_budget = strategy.within_budget and not strategy.by_output
    if not strategy.dynamic:
        drawn = "chosen once"
    elif config.resample_every == "epoch":
        drawn = "drawn anew for each epoch"
    else:
        drawn = f"drawn anew every {config.resample_every:,} optimizer steps"
    biases = "biases" if config.train_bias is True else f"the last {config.train_bias} biases"
    also = [*(f"`{head}` as a whole" for head in heads), *([biases] if config.train_bias else [])]
    if config.norm_mode == "train":
        also.append("the statistics of batch-norms")
    channels = f"{'output' if strategy.by_output else 'input'} channels of its layers, {drawn}"
    within = " inside a memory budget" if keeps_budget else ""
    return f"{within}: some {channels}, {'trained, and ' + ', '.join(also) if also else 'trained'}"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _loading(name: str, subfolder: str, builds: bool) -> str:
    """How to load it; `builds`: the base model is built from what the config names."""
    place = f', subfolder="{subfolder}"' if subfolder else ""
    given = "" if builds else ", base_model=base_model"
    base = "" if builds else "base_model = ...  # what training started from, with the same weights\n"
    return f"""## How to load it

```python
from hf_trady import TraDyModel

{base}model = TraDyModel.from_pretrained("{name}"{given}{place})
plain = model.merge_and_unload()  # an ordinary model, without a trace of hf_trady
```

`trady_model.safetensors` holds only what training has changed; the rest comes from the base model, and one with other
weights is refused.
"""


def _training(hyperparameters: Mapping[str, Any] | None) -> str:
    used = [f"- {name}: {' '.join(str(value).split())}" for name, value in (hyperparameters or {}).items()]
    if used:
        used = ["### Training hyperparameters", "", *used, ""]
    versions = [f"- hf_trady {__version__}", *(f"- {name} {version(package)}" for name, package in VERSIONS.items())]
    return "\n".join(["## Training procedure", "", *used, "### Framework versions", "", *versions, ""])


def _limits(with_batch_size: bool) -> str:
    batch = "the batch size above" if with_batch_size else "the batch size that it was measured with"
    return f"""## Limits

- What the base model can't do, or does wrong, this one most likely can't do either: few of its weights have changed.
- The results are those of one run on one split, unless this card says otherwise.
- The peak is that of {batch}, on the machine that the run was on; `trady plan` tells it for another.
"""
