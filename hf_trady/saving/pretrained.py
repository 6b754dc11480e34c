"""`save_pretrained` and `from_pretrained` of a TraDyModel."""

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from torch import nn
from transformers.utils import CONFIG_NAME as BASE_CONFIG_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import WEIGHTS_INDEX_NAME as PICKLED_INDEX_NAME
from transformers.utils import WEIGHTS_NAME as PICKLED_NAME

from ..config import CONFIG_NAME, TraDyConfig
from ..files import atomic_files
from ..hub import PushToHubMixin, local_directory
from ..hub.base_models import build_base_model
from ..layers import is_fully_sharded
from ..memory import FITTED_NAME, FittedBudget
from ..selection import RANKING_NAME, SCORES_NAME, ChannelScores, CostTable, LayerRanking
from .card import CardMixin
from .trained_state import is_covered, refuse_misfit
from .weights_file import WEIGHTS_NAME, TrainedState, load_state, save_state


OPTIONAL_NAMES = (RANKING_NAME, SCORES_NAME, FITTED_NAME)  # that not every model has
SAVED_NAMES = (CONFIG_NAME, WEIGHTS_NAME, *OPTIONAL_NAMES, BASE_CONFIG_NAME)
_WHOLE_MODELS = {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, PICKLED_NAME, PICKLED_INDEX_NAME}


class PretrainedMixin(CardMixin, PushToHubMixin):
    """Saves what training has changed, and puts it into a fresh base model again."""

    costs: CostTable | None
    channel_scores: ChannelScores | None

    def set_costs(self, costs: CostTable) -> None:
        """Draw by `costs` from now on."""
        raise NotImplementedError

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
        model's `config.json` where it has one. Each is written whole or not at all. Those of an earlier model in the
        same directory that this one doesn't have are deleted.

        Args:
            save_directory: Where to write.
            is_main_process: Whether this process writes. A model that `fully_shard` has split over processes must be
                saved by all of them, of which one writes.
        """
        state = self.trained_state() if is_main_process or is_fully_sharded(self) else None
        if not is_main_process:
            return
        before = set(os.listdir(save_directory)) if Path(save_directory).is_dir() else set()
        save_state(state, save_directory)
        if self.layer_ranking is not None:
            self.layer_ranking.save_pretrained(save_directory)
        if self.channel_scores is not None:
            self.channel_scores.save_pretrained(save_directory)
        if self.fitted is not None:
            self.fitted.save_pretrained(save_directory)
        if hasattr(self._base_config, "save_pretrained"):
            with atomic_files(save_directory) as temporary:
                self._base_config.save_pretrained(temporary)
        for name in self._stale(before):
            (Path(save_directory) / name).unlink()
        self._named_config().save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, *, is_main_process: bool | None = None, **kwargs: Any) -> CommitInfo | None:
        """Upload what `save_pretrained` writes to a repository on the Hub, in one commit.

        Args:
            repo_id: Name of the repository, with or without a namespace; it is made if there is none.
            is_main_process: Whether this process uploads; default: it does. A model that `fully_shard` has split over
                processes must be pushed by all of them, each of which says whether it is the one.
            **kwargs: `commit_message`, `commit_description`, `private`, `token`, `revision`, `subfolder` and
                `create_pr`, as huggingface_hub names them.

        Returns:
            The commit, with its address; None in a process that doesn't upload.

        Raises:
            ValueError: If the model is sharded and `is_main_process` is not given; nothing is done then.
        """
        if is_main_process is None and is_fully_sharded(self):
            raise ValueError(
                "a model that fully_shard has split over processes is pushed by all of them: call push_to_hub on "
                "every process, with is_main_process=accelerator.is_main_process"
            )
        if is_main_process is not False:
            return super().push_to_hub(repo_id, **kwargs)
        self.save_pretrained(os.devnull, is_main_process=False)  # its part of putting the model together
        return None

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
            ValueError: If `path` is a model, a file is corrupt, or `base_model` can't be built or is not the one that
                was fine-tuned; it is then unchanged.
        """
        if isinstance(path, nn.Module):  # as PEFT has it
            raise ValueError(f"path is a {type(path).__name__}; it comes first: from_pretrained(path, base_model)")
        directory = local_directory(path, SAVED_NAMES, **hub_kwargs)
        is_download = not Path(path).is_dir()
        remedy = "download it again with force_download=True" if is_download else "save the model again"
        config, state = TraDyConfig.from_pretrained(directory), load_state(directory, remedy)
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
            _refuse_wrong_name(config.base_model_name_or_path, base_model, state)
        else:
            refuse_misfit(base_model, state)
        model = cls(base_model, config, example_inputs, ranking)
        scores = ChannelScores.from_pretrained(directory)
        if scores is not None:
            model.set_channel_scores(scores)
        model.restore(state)
        return model

    def load_known(self, path: str | os.PathLike) -> FittedBudget | None:
        """Draw as the model did that `save_pretrained` wrote into `path`: by its ranking, unless this model has one,
        by what was known of single channels, and by what its budget in bytes bought, which is returned; and where
        `path` is a checkpoint, by its costs and by what else the next draws follow from.

        Call it before the optimizer is made. What `path` doesn't hold stays as it is.

        Raises:
            ValueError: If a file is corrupt or of another architecture.
        """
        costs = CostTable.from_pretrained(path)
        if costs is not None and costs != self.costs:
            self.set_costs(costs)
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

    @property
    def _base_config(self) -> Any:
        return getattr(self.base_model, "config", None)

    def _stale(self, there: Set[str]) -> list[str]:
        """Which of the files `there` another model has left by its `save_pretrained`, and this one doesn't write.

        Where there is no saved model they are someone's own; a `config.json` beside whole weights is that of these.
        """
        if WEIGHTS_NAME not in there:
            return []
        has = zip(OPTIONAL_NAMES, (self.layer_ranking, self.channel_scores, self.fitted), strict=True)
        lacking = {name for name, value in has if value is None}
        if not hasattr(self._base_config, "save_pretrained") and not there & _WHOLE_MODELS:
            lacking.add(BASE_CONFIG_NAME)
        return sorted(lacking & there)

    def _complete(self, folder: Path, there: Set[str], repo_id: str, subfolder: str) -> list[str]:
        if "README.md" not in there:  # one that is there may have been written by hand
            self.create_model_card(folder, model_name=repo_id, subfolder=subfolder)
        return self._stale(there)


def _refuse_wrong_name(name: str, base_model: nn.Module, state: TrainedState) -> None:
    """Refuse `base_model`, built by `name`, if it is not the one that `state` was trained from."""
    try:
        refuse_misfit(base_model, state)
    except ValueError as error:
        raise ValueError(f"{error}; the config names '{name}': pass base_model=") from None
