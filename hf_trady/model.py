"""TraDyModel: the object that ties selection, sparse layers and saving to one base model."""

import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .config import TraDyConfig
from .layers import ActiveChannels, SparseLayer, make_plain, make_sparse
from .memory import parse_budget
from .saving import load_state, save_state
from .selection import (
    RANKING_NAME,
    STRATEGIES,
    CostTable,
    LayerRanking,
    SparsityReport,
    check_budget,
    cost_table,
    draw,
    max_weight_units,
    rank_layers,
    sparsity,
)
from .targets import find_heads, find_layers, select_targets
from .trained_state import (
    buffer_checksums,
    collect_state,
    is_covered,
    mark_touched,
    refuse_misfit,
    restore_state,
    touch_changed,
)


class TraDyModel(nn.Module):
    """A model of which every epoch trains only as many input channels as a memory budget allows.

    The base model is changed in place, reversibly: its layers get a sparse backward and keep their Parameters and
    state-dict keys; everything but the head and the active channels is frozen. `state_dict` is that of the base
    model, so checkpoints load into the plain model and back. Attributes that this class lacks are those of the base
    model.

    Args:
        base_model: Any timm or transformers model or plain module.
        config: What the user chooses.
        example_inputs: A batch (tensor, tuple or dict of inputs) from which the costs of channels are learned, on
            fake tensors. Without it call `calibrate` before training; [`TraDyTrainer`] does.
        layer_ranking: The ranking for strategies that draw from the top layers; by default the one that
            `config.layer_ranking` names. Without any, call `rank_layers` before training; [`TraDyTrainer`] does.

    Raises:
        ValueError: If the config does not fit the model or the budget is too small; the model is then unchanged.
        FileNotFoundError: If `config.layer_ranking` names no file.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> config = TraDyConfig(memory_budget=0.5, strategy="dynamic_full_random", modules_to_save=["2"])
        >>> model = TraDyModel(net, config, example_inputs=torch.zeros(1, 3, 8, 8))
        >>> model.report().units <= model.budget
        True
    """

    def __init__(
        self,
        base_model: nn.Module,
        config: TraDyConfig,
        example_inputs: Any = None,
        layer_ranking: LayerRanking | None = None,
    ):
        super().__init__()
        if any(isinstance(module, TraDyModel | SparseLayer) for module in base_model.modules()):
            raise ValueError("base_model is already a TraDyModel; pass the plain model, or merge_and_unload() first")
        if layer_ranking is None and config.layer_ranking is not None:
            layer_ranking = LayerRanking.from_pretrained(config.layer_ranking)
        self.trady_config = config
        self.strategy = STRATEGIES[config.strategy]
        self.heads = find_heads(base_model, config.modules_to_save)
        self.layers = find_layers(base_model, self.heads, config.exclude_modules)
        self.targets = select_targets(base_model, self.layers, self.heads, config.target_modules)
        self.biases = self._find_biases(base_model) if config.train_bias else {}
        self.layer_ranking = layer_ranking
        self.costs: CostTable | None = None
        self.active: ActiveChannels | None = None
        self.touched: dict[str, Tensor] = {}  # layer name -> bool [C]: channels that training may have changed
        self.epoch = 0
        if example_inputs is not None:
            self.costs = self._measure_costs(base_model, example_inputs)
            self._refuse_budget()

        self.base_model = base_model
        self._buffer_sums = buffer_checksums(base_model)
        self._required_grad = [(parameter, parameter.requires_grad) for parameter in base_model.parameters()]
        self._freeze()
        for name in self.targets:
            for module in self.layers[name]:
                make_sparse(module)
        self._hook = base_model.register_forward_pre_hook(self._before_forward)
        self.train(base_model.training)
        self._build()

    # ---- What is trained ----------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """The memory budget in units (elements of weight gradient and saved activation of one sample)."""
        self._refuse_uncalibrated()
        return parse_budget(self.trady_config.memory_budget).units(self.costs.total_units)

    @property
    def pool(self) -> CostTable:
        """The layers that channels are drawn from."""
        self._refuse_uncalibrated()
        names = set(self.targets)
        if self.strategy.uses_ranking:
            config = self.trady_config
            names &= set(self.layer_ranking.top(config.ranking_coverage, config.num_layers))
        return self.costs.subset(names)

    @property
    def is_ready(self) -> bool:
        """Whether channels can be drawn: the costs are known, and the ranking where the strategy needs one."""
        return self.active is not None

    def calibrate(self, example_inputs: Any) -> None:
        """Learn the costs of channels from a batch (tensor, tuple or dict of inputs).

        Raises:
            ValueError: If the budget is below the cheapest channel.
        """
        self.costs = self._measure_costs(self.base_model, example_inputs)
        self._refuse_budget()
        self._build()

    def set_layer_ranking(self, layer_ranking: LayerRanking) -> None:
        """Draw from the top layers of `layer_ranking` from now on. Make the optimizer afterwards.

        Raises:
            ValueError: If it is of another architecture; names the first layer that doesn't match.
        """
        if self.costs is not None:
            layer_ranking.check(self.costs)
        self.layer_ranking = layer_ranking
        self._build()

    def rank_layers(self, dataloader: Iterable, **kwargs) -> LayerRanking:
        """Measure a ranking on `dataloader` and use it. Takes the arguments of [`rank_layers`] by keyword."""
        self._refuse_uncalibrated()
        self.set_layer_ranking(rank_layers(self.base_model, dataloader, costs=self.costs, **kwargs))
        return self.layer_ranking

    def draw(self, epoch: int) -> dict[str, Tensor]:
        """The channels of epoch `epoch`: layer name -> sorted indices, int64 `[n]`. Changes nothing."""
        self._refuse_unready()
        return draw(self.strategy, self.pool, self._channel_budget(), self.trady_config.seed, epoch)

    def resample(self, epoch: int, optimizer: torch.optim.Optimizer | None = None) -> SparsityReport:
        """Make the channels of epoch `epoch` the active ones.

        Args:
            epoch: Number of the draw. Where it is the current one, or the strategy is static, nothing changes.
            optimizer: The optimizer of this model. Its state of channels that leave is dropped; of those that stay,
                `config.optimizer_state` decides.
        """
        self._refuse_unready()
        if epoch != self.epoch and self.strategy.dynamic:
            self.active.assign(self.draw(epoch), optimizer, carry=self.trady_config.optimizer_state == "carry")
        self.epoch = epoch
        return self.report()

    def active_channels(self) -> dict[str, Tensor]:
        """The channels that train now: layer name -> sorted indices, int64 `[n]`."""
        self._refuse_unready()
        return dict(self.active.selection)

    def report(self) -> SparsityReport:
        """Sparsity and budget use of the current draw."""
        sizes = {name: modules[0].weight.element_size() for name, modules in self.layers.items()}
        return sparsity(self.costs, self.active_channels(), self.epoch, self.budget, sizes, self._bias_units())

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Number of elements that train (head, biases, active channels) and of all elements of the base model."""
        whole = sum(parameter.numel() for parameter in self._whole_parameters().values())
        channels = sum(self.costs[n].weight_per_channel * len(i) for n, i in self.active_channels().items())
        return whole + channels, sum(parameter.numel() for parameter in self.base_model.parameters())

    def print_trainable_parameters(self) -> None:
        """Print how much of the model trains, in PEFT's format."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    # ---- A module like the base model ---------------------------------------------------------------------------

    def forward(self, *args, labels=None, **kwargs):
        """The forward of the base model."""
        if labels is not None:  # named in the signature because a Trainer looks for it there
            kwargs["labels"] = labels
        return self.base_model(*args, **kwargs)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether a Trainer may pass `num_items_in_batch` to the forward."""
        parameters = inspect.signature(self.base_model.forward).parameters.values()
        any_keyword = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        return getattr(self.base_model, "accepts_loss_kwargs", any_keyword)

    def train(self, mode: bool = True) -> "TraDyModel":
        """Set training mode; batch-norms outside the head keep their statistics with `norm_mode='frozen'`."""
        super().train(mode)
        if self.trady_config.norm_mode == "frozen":
            for _, module in self._outside_heads(self.base_model):
                if isinstance(module, _NormBase) and module.track_running_stats:
                    module.eval()
        return self

    def state_dict(self, *args, **kwargs):
        """The state dict of the base model, with its keys."""
        self._write_back()
        return self.base_model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load a state dict of the base model."""
        self._write_back()
        touch_changed(self.layers, self.touched, state_dict)
        result = self.base_model.load_state_dict(state_dict, *args, **kwargs)
        if self.active is not None:
            self.active.load()
        return result

    def _get_name(self) -> str:
        return self.base_model._get_name()  # by this a Trainer tells a causal language model, whose labels it shifts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_model!r})"

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not set yet
                raise
            return getattr(self.base_model, name)

    # ---- Saving and leaving -------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write what training has changed, the config and the ranking into `save_directory`.

        Files: `trady_model.safetensors` (touched channels with their indices, head, biases, changed buffers),
        `trady_config.json`, `layer_ranking.json` where there is a ranking, and the base model's `config.json` where
        it has one. Each is written whole or not at all.
        """
        self._write_back()
        whole = self._whole_parameters()
        state = collect_state(self.base_model, self.layers, self.touched, whole, self._buffer_sums)
        save_state(state, save_directory)
        if self.layer_ranking is not None:
            self.layer_ranking.save_pretrained(save_directory)
        base_config = getattr(self.base_model, "config", None)
        if hasattr(base_config, "save_pretrained"):
            base_config.save_pretrained(save_directory)
        self.trady_config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, base_model: nn.Module, example_inputs: Any = None
    ) -> "TraDyModel":
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
        model._restore(state)
        return model

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
        self._restore(state)

    def merge_and_unload(self) -> nn.Module:
        """Turn the base model back into an ordinary one that holds what was trained, and return it."""
        self._write_back()
        for name in self.targets:
            for module in self.layers[name]:
                make_plain(module)
        self._hook.remove()
        for parameter, required in self._required_grad:
            parameter.requires_grad_(required)
        return self.base_model.train(self.training)

    # ---- Parts of the above -------------------------------------------------------------------------------------

    def _measure_costs(self, model: nn.Module, example_inputs: Any) -> CostTable:
        return cost_table(model, example_inputs).subset(self.layers)

    def _build(self) -> None:
        """Make the Parameters of the active channels, as soon as everything that they depend on is known."""
        if self.costs is None or (self.strategy.uses_ranking and self.layer_ranking is None):
            return
        pool, budget = self.pool, self._channel_budget()
        check_budget(pool, budget)
        if self.active is not None:
            self.active.assign({})
        groups: dict[tuple, list[str]] = {}
        for row in pool:
            weight = self.layers[row.name][0].weight
            groups.setdefault((weight.dtype, weight.device), []).append(row.name)
        layers = {row.name: self.layers[row.name] for row in pool}
        capacities = [max_weight_units(pool, budget, set(names)) for names in groups.values()]
        self.active = ActiveChannels(layers, list(groups.values()), capacities, self.touched)
        self.active.assign(self.draw(self.epoch))

    def _before_forward(self, module: nn.Module, args) -> None:
        if self.active is not None:
            self.active.attach()

    def _write_back(self) -> None:
        if self.active is not None:
            self.active.write_back()

    def _restore(self, state) -> None:
        restore_state(self.base_model, state)
        mark_touched(self.touched, self.layers, state)
        if self.active is not None:
            self.active.load()

    def _freeze(self) -> None:
        trained = set(self._whole_parameters().values())
        for parameter in self.base_model.parameters():
            parameter.requires_grad_(parameter in trained)

    def _whole_parameters(self) -> dict[str, nn.Parameter]:
        """State-dict key -> Parameter, of everything that trains whole."""
        heads = {
            f"{head}.{key}": parameter
            for head in self.heads
            for key, parameter in self.base_model.get_submodule(head).named_parameters()
        }
        return heads | self.biases

    def _find_biases(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """State-dict key -> bias of each target layer and of each normalization layer outside the head."""
        targets = {module for name in self.targets for module in self.layers[name]}
        return {
            f"{name}.bias": module.bias
            for name, module in self._outside_heads(model)
            if getattr(module, "bias", None) is not None and (module in targets or _is_norm(module))
        }

    def _outside_heads(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, module in model.named_modules():
            if not any(name == head or name.startswith(f"{head}.") for head in self.heads):
                yield name, module

    def _bias_units(self) -> int:
        return sum(bias.numel() for bias in self.biases.values())

    def _channel_budget(self) -> int:
        """Units for channels: what the biases leave of the budget."""
        return self.budget - self._bias_units()

    def _refuse_budget(self) -> None:
        """Refuse a budget or a ranking that doesn't fit."""
        if self.biases and self._channel_budget() < 1:
            raise ValueError(
                f"memory_budget of {self.budget:,} units does not even hold the {self._bias_units():,} biases of "
                "train_bias=True; raise it or leave the biases frozen"
            )
        if self.layer_ranking is not None:
            self.layer_ranking.check(self.costs)
        if not self.strategy.uses_ranking or self.layer_ranking is not None:
            check_budget(self.pool, self._channel_budget())

    def _refuse_uncalibrated(self) -> None:
        if self.costs is None:
            raise ValueError("the costs of channels are unknown yet; pass example_inputs or call calibrate(batch)")

    def _refuse_unready(self) -> None:
        self._refuse_uncalibrated()
        if self.active is None:
            raise ValueError(
                f"strategy '{self.trady_config.strategy}' needs a layer ranking; pass layer_ranking, call "
                "rank_layers(dataloader), or train with TraDyTrainer, which measures one"
            )


def _is_norm(module: nn.Module) -> bool:
    """Whether `module` is a normalization layer: torch's own, or one of those that every library calls so."""
    return "Norm" in type(module).__name__
