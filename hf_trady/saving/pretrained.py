"""`save_pretrained` and `from_pretrained` of a TraDyModel."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from ..config import TraDyConfig
from ..memory import FittedBudget
from ..selection import RANKING_NAME, ChannelScores, LayerRanking
from .trained_state import is_covered, refuse_misfit
from .weights_file import TrainedState, load_state, save_state


class PretrainedMixin:
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

    def trained_state(self) -> TrainedState:
        """What training has changed in the base model."""
        raise NotImplementedError

    def restore(self, state: TrainedState) -> None:
        """Put `state`, which fits, into the base model."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write what training has changed, the config and the ranking into `save_directory`.

        Files: `trady_model.safetensors` (touched channels with their indices, head, biases, changed buffers),
        `trady_config.json`, `layer_ranking.json` where there is a ranking, `channel_scores.safetensors` where the
        strategy goes by single channels, `trady_plan.json` where a budget in bytes has been fitted, and the base
        model's `config.json` where it has one. Each is written whole or not at all.
        """
        save_state(self.trained_state(), save_directory)
        if self.layer_ranking is not None:
            self.layer_ranking.save_pretrained(save_directory)
        if self.channel_scores is not None:
            self.channel_scores.save_pretrained(save_directory)
        if self.fitted is not None:
            self.fitted.save_pretrained(save_directory)
        base_config = getattr(self.base_model, "config", None)
        if hasattr(base_config, "save_pretrained"):
            base_config.save_pretrained(save_directory)
        self.trady_config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, base_model: nn.Module, example_inputs: Any = None):
        """Load what `save_pretrained` wrote into `base_model`, bit for bit.

        Args:
            path: The directory.
            base_model: The model that the run started from, with the same weights.
            example_inputs: As for the class; only needed to train on without a [`TraDyTrainer`].

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is corrupt or `base_model` is not the one that was fine-tuned; it is then unchanged.
        """
        config, state = TraDyConfig.from_pretrained(path), load_state(path)
        config.layer_ranking = None  # the one in `path` is a copy of it
        has_ranking = (Path(path) / RANKING_NAME).is_file()
        ranking = LayerRanking.from_pretrained(path) if has_ranking else None
        refuse_misfit(base_model, state)
        model = cls(base_model, config, example_inputs, ranking)
        scores = ChannelScores.from_pretrained(path)
        if scores is not None:
            model.set_channel_scores(scores)
        model.restore(state)
        return model

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
