"""What the card of a TraDyModel says."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import nn
from torch._subclasses.fake_tensor import is_fake

from ..config import TraDyConfig
from ..files import write_text
from ..hub.base_models import architecture, base_model_name, cached_timm_weights, task_type, timm_repository
from ..hub.cards import hub_id, model_card
from ..layers import is_fully_sharded
from ..memory import MIB, FittedBudget, parse_budget
from ..selection import RANKING_NAME, LayerRanking
from .trained_state import left_alone_as_in


class CardMixin:
    """Writes a model card from what the model knows of itself."""

    trady_config: TraDyConfig
    layer_ranking: LayerRanking | None
    fitted: FittedBudget | None
    base_model: nn.Module
    touched: dict
    _heads: Sequence[str]
    _layers: Mapping[str, Sequence[nn.Module]]

    def create_model_card(
        self,
        save_directory: str | os.PathLike | None = None,
        *,
        model_name: str | None = None,
        peak_bytes: int | None = None,
        **kwargs: Any,
    ) -> ModelCard:
        """A card that says what was trained, how and with what result, for readers and for the index of the Hub.

        Its `base_model` is what the config names, or else what the base model was loaded from. A timm network does not
        say whether it was: that is told by the file in the cache of huggingface_hub, if its weights are the same.

        Args:
            save_directory: Where to write it, as `README.md`; by default it isn't written.
            model_name: What the model is called; by default the name of that directory.
            peak_bytes: The highest peak that was measured in training.
            **kwargs: `metrics` (name -> value), `datasets` (ids on the Hub), `dataset_names` (what they are called),
                `dataset_args` (how the first was loaded), `hyperparameters` (name -> value), `subfolder` (of the
                repository, where the model is), and metadata as `ModelCardData` of huggingface_hub takes it:
                `language`, `license`, `tags`, `base_model`, `pipeline_tag`.
        """
        if model_name is None:
            model_name = Path(save_directory).resolve().name if save_directory is not None else "model"
        card = model_card(
            self._named_config(),
            model_name=model_name,
            base=self._base_repository(),
            architecture=architecture(self.base_model),
            heads=self._heads,
            facts=self._facts(peak_bytes),
            **kwargs,
        )
        if save_directory is not None:
            write_text(Path(save_directory) / "README.md", str(card))
        return card

    def _named_config(self) -> TraDyConfig:
        """The config, which names the base model and the task where they can be told."""
        return replace(
            self.trady_config,
            base_model_name_or_path=self.trady_config.base_model_name_or_path or base_model_name(self.base_model),
            task_type=self.trady_config.task_type or task_type(self.base_model),
        )

    def _base_repository(self) -> str | None:
        """The Hub repository of the base model, where it is known that it started from the weights there."""
        name = self._named_config().base_model_name_or_path
        repository = hub_id(name)
        if repository is None or timm_repository(name) is None:
            return repository
        file = cached_timm_weights(name)
        if file is None or is_fully_sharded(self) or any(is_fake(p) for p in self.base_model.parameters()):
            return None
        prefix = getattr(self.base_model, "base_model_prefix", "")
        return repository if left_alone_as_in(file, self._layers, self.touched, prefix) else None

    def _facts(self, peak_bytes: int | None) -> dict[str, str]:
        """What a card tells of the run in a table."""
        config = self.trady_config
        facts = {"strategy": f"`{config.strategy}`", "memory budget": _budget(config.memory_budget)}
        if self.fitted is not None:
            facts["predicted peak of a step"] = f"{self.fitted.predicted_peak / MIB:,.0f} MiB above the weights"
        if peak_bytes is not None:
            facts["measured peak in training"] = f"{peak_bytes / MIB:,.0f} MiB above the weights"
        if self.is_ready:
            report = self.report()
            trained, total = self.get_nb_trainable_parameters()
            facts["trained at a time"] = f"{trained:,} of {total:,} parameters"
            facts["inputs of layers not kept"] = f"{report.activation_sparsity:.2%}"
            facts["weight gradients not formed"] = f"{report.weight_sparsity:.2%}"
            facts["FLOPs of weight gradients saved"] = f"{report.flops_saved:.2%}"
        if self.layer_ranking is not None:
            ships = ", the one that hf_trady ships for this architecture" if config.layer_ranking == "auto" else ""
            steps = self.layer_ranking.info.get("num_steps")
            facts["layer ranking"] = f"`{RANKING_NAME}`{ships}" + (f", measured over {steps} steps" if steps else "")
        return facts


def _budget(value: int | float | str) -> str:
    budget = parse_budget(value)  # a command line gives numbers as strings
    if budget.kind == "bytes":
        return f"{value} above the weights"
    return f"{budget.value:.2%} of the units" if budget.kind == "share" else f"{budget.value:,} units"
