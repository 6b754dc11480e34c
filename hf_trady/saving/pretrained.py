"""`save_pretrained` and `from_pretrained` of a TraDyModel."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from torch import nn

from ..config import CONFIG_NAME, TraDyConfig
from ..files import atomic_files, write_text
from ..hub import PushToHubMixin, local_directory
from ..hub.base_models import base_model_name, build_base_model, task_type
from ..hub.cards import model_card
from ..layers import is_fully_sharded
from ..memory import FITTED_NAME, MIB, FittedBudget, parse_budget
from ..selection import RANKING_NAME, SCORES_NAME, ChannelScores, LayerRanking
from .trained_state import is_covered, refuse_misfit
from .weights_file import WEIGHTS_NAME, TrainedState, load_state, save_state


SAVED_NAMES = (CONFIG_NAME, WEIGHTS_NAME, RANKING_NAME, SCORES_NAME, FITTED_NAME, "config.json")


class PretrainedMixin(PushToHubMixin):
    """Saves what training has changed, and puts it into a fresh base model again."""

    trady_config: TraDyConfig
    layer_ranking: LayerRanking | None
    channel_scores: ChannelScores | None
    fitted: FittedBudget | None
    base_model: nn.Module
    touched: dict

    def set_layer_ranking(self, layer_ranking: LayerRanking) -> None:
        """Draw from the top layers of `layer_ranking` from now on."""
        raise NotImplementedError

    def set_channel_scores(self, scores: ChannelScores) -> None:
        """Draw by `scores` from now on."""
        raise NotImplementedError

    def set_fitted(self, fitted: FittedBudget | None) -> None:
        """Draw by `fitted` from now on."""
        raise NotImplementedError

    def load_training_state(self, path: str | os.PathLike) -> None:
        """Go on from what a checkpoint holds beside `save_pretrained`."""
        raise NotImplementedError

    def trained_state(self) -> TrainedState:
        """What training has changed in the base model."""
        raise NotImplementedError

    def restore(self, state: TrainedState) -> None:
        """Put `state`, which fits, into the base model."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True) -> None:
        """Write what training has changed, the config and the ranking into `save_directory`.

        Files: `trady_model.safetensors` (touched channels with their indices, head, biases, changed buffers),
        `trady_config.json`, `layer_ranking.json` where there is a ranking, `channel_scores.safetensors` where the
        strategy goes by single channels, `trady_plan.json` where a budget in bytes has been fitted, and the base
        model's `config.json` where it has one. Each is written whole or not at all.

        Args:
            save_directory: Where to write.
            is_main_process: Whether this process writes. A model that `fully_shard` has split over processes must be
                saved by all of them, of which one writes.
        """
        state = self.trained_state() if is_main_process or is_fully_sharded(self) else None
        if not is_main_process:
            return
        save_state(state, save_directory)
        if self.layer_ranking is not None:
            self.layer_ranking.save_pretrained(save_directory)
        if self.channel_scores is not None:
            self.channel_scores.save_pretrained(save_directory)
        if self.fitted is not None:
            self.fitted.save_pretrained(save_directory)
        base_config = getattr(self.base_model, "config", None)
        if hasattr(base_config, "save_pretrained"):
            with atomic_files(save_directory) as temporary:
                base_config.save_pretrained(temporary)
        self._named_config().save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        base_model: nn.Module | None = None,
        example_inputs: Any = None,
        *,
        trust_remote_code: bool = False,
        **hub_kwargs: Any,
    ):
        """Load what `save_pretrained` wrote into the base model, bit for bit.

        Args:
            path: The directory, or the id of a repository on the Hub.
            base_model: The model that the run started from, with the same weights; by default it is built from what
                the run's config names.
            example_inputs: As for the class; only needed to train on without a [`TraDyTrainer`].
            trust_remote_code: Let the base model run code that comes with it.
            **hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`, as
                huggingface_hub names them.

        Raises:
            FileNotFoundError: If a file or the repository is missing.
            OSError: If the Hub can't be reached.
            ValueError: If a file is corrupt, or `base_model` can't be built or is not the one that was fine-tuned; it
                is then unchanged.
        """
        directory = local_directory(path, SAVED_NAMES, **hub_kwargs)
        config, state = TraDyConfig.from_pretrained(directory), load_state(directory)
        config.layer_ranking = None  # the one in `path` is a copy of it
        has_ranking = (directory / RANKING_NAME).is_file()
        ranking = LayerRanking.from_pretrained(directory) if has_ranking else None
        if base_model is None:
            known = {key: hub_kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in hub_kwargs}
            base_model = build_base_model(
                config.base_model_name_or_path,
                config.task_type,
                directory,
                state.tensors,
                revision=config.revision or "main",
                trust_remote_code=trust_remote_code,
                **known,
            )
        refuse_misfit(base_model, state)
        model = cls(base_model, config, example_inputs, ranking)
        scores = ChannelScores.from_pretrained(directory)
        if scores is not None:
            model.set_channel_scores(scores)
        model.restore(state)
        return model

    def create_model_card(
        self,
        save_directory: str | os.PathLike | None = None,
        *,
        model_name: str | None = None,
        peak_bytes: int | None = None,
        **kwargs: Any,
    ) -> ModelCard:
        """A card that says what was trained, how and with what result, for readers and for the index of the Hub.

        Args:
            save_directory: Where to write it, as `README.md`; by default it isn't written.
            model_name: What the model is called; by default the name of that directory.
            peak_bytes: The highest peak that was measured in training.
            **kwargs: `metrics` (name -> value), `datasets` (names), and metadata as `ModelCardData` of
                huggingface_hub takes it: `language`, `license`, `tags`.
        """
        if model_name is None:
            model_name = Path(save_directory).resolve().name if save_directory is not None else "model"
        card = model_card(self._named_config(), model_name=model_name, facts=self._facts(peak_bytes), **kwargs)
        if save_directory is not None:
            write_text(Path(save_directory) / "README.md", str(card))
        return card

    def load_known(self, path: str | os.PathLike) -> FittedBudget | None:
        """Draw as the model did that `save_pretrained` wrote into `path`: by its ranking, unless this model has one,
        by what was known of single channels, and by what its budget in bytes bought, which is returned.

        Call it before the optimizer is made. What `path` doesn't hold stays as it is.

        Raises:
            ValueError: If a file is corrupt or of another architecture.
        """
        if self.layer_ranking is None and (Path(path) / RANKING_NAME).is_file():
            self.set_layer_ranking(LayerRanking.from_pretrained(path))
        scores, fitted = ChannelScores.from_pretrained(path), FittedBudget.from_pretrained(path)
        if scores is not None:
            self.set_channel_scores(scores)
        if fitted is not None and fitted != self.fitted:
            self.set_fitted(fitted)
        self.load_training_state(path)
        return fitted

    def load_trained(self, path: str | os.PathLike) -> None:
        """Put what `save_pretrained` wrote into this model, which must be as untrained as it was before that run.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is corrupt or of another base model, or if this model has been trained since.
        """
        state = load_state(path)
        if not is_covered(self.touched, state):
            raise ValueError(f"this model has trained channels that '{path}' doesn't hold; load it into a new model")
        refuse_misfit(self.base_model, state)
        self.restore(state)

    def _named_config(self) -> TraDyConfig:
        """The config, which names the base model and the task where they can be told."""
        return replace(
            self.trady_config,
            base_model_name_or_path=self.trady_config.base_model_name_or_path or base_model_name(self.base_model),
            task_type=self.trady_config.task_type or task_type(self.base_model),
        )

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
            steps = self.layer_ranking.info.get("num_steps")
            facts["layer ranking"] = f"`{RANKING_NAME}`" + (f", measured over {steps} steps" if steps else "")
        return facts

    def _add_card(self, api: HfApi, repo_id: str, folder: Path) -> None:
        if not api.file_exists(repo_id, "README.md"):  # one that is there may have been written by hand
            self.create_model_card(folder, model_name=repo_id)


def _budget(value: int | float | str) -> str:
    budget = parse_budget(value)  # a command line gives numbers as strings
    if budget.kind == "bytes":
        return f"{value} above the weights"
    return f"{budget.value:.2%} of the units" if budget.kind == "share" else f"{budget.value:,} units"
