"""TraDyModel: the object that ties selection, sparse layers and saving to one base model."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .accounting import AccountedMixin
from .calibration import CalibratedMixin
from .config import TraDyConfig
from .conversion import Conversion
from .hooks import HookedMixin
from .layers import ActiveChannels, SparseLayer, is_fully_sharded, is_sharded, reshard
from .rankings import find_ranking
from .recalibration import recalibrate
from .sampler import ChannelSampler
from .saving import (
    PretrainedMixin,
    TrainedState,
    buffer_checksums,
    collect_state,
    make_saveable,
    mark_touched,
    restore_state,
)
from .selection import LayerRanking, SparsityReport
from .targets import (
    find_biases,
    find_heads,
    find_layers,
    refuse_output_channels,
    refuse_quantization,
    select_targets,
)


logger = logging.get_logger(__name__)


class TraDyModel(CalibratedMixin, AccountedMixin, PretrainedMixin, HookedMixin):
    """A model of which every epoch trains only as many input channels as a memory budget allows.

    The base model is changed in place, reversibly: its layers get a sparse backward and keep their Parameters and
    state-dict keys; everything but the head and the active channels is frozen. `state_dict` is that of the base
    model, so checkpoints load into the plain model and back.

    Args:
        base_model: Any timm or transformers model or plain module.
        config: What the user chooses.
        example_inputs: A batch (tensor, tuple or dict of inputs) from which the costs of channels are learned, on
            fake tensors. Without it call `calibrate` before training; [`TraDyTrainer`] does.
        layer_ranking: The ranking for strategies that draw from the top layers; by default the one that
            `config.layer_ranking` names. Without any, call `measure` before training; [`TraDyTrainer`] does.

    Raises:
        ValueError: If the config does not fit the model or the budget is too small; the model is then unchanged.
        FileNotFoundError: If `config.layer_ranking` names nothing that is there.

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
        if not isinstance(config, TraDyConfig):
            raise ValueError(f"config must be a TraDyConfig, not a {type(config).__name__}; pass TraDyConfig(...)")
        if any(isinstance(module, TraDyModel | SparseLayer) for module in base_model.modules()):
            raise ValueError("base_model is already a TraDyModel; pass the plain model, or merge_and_unload() first")
        self.trady_config = copy.deepcopy(config)  # one that is changed later must not change the draws
        refuse_quantization(base_model)
        self._heads = find_heads(base_model, config.modules_to_save)
        self._layers = find_layers(base_model, self._heads, config.exclude_modules)
        self._targets = select_targets(base_model, self._layers, self._heads, config.target_modules)
        biases = find_biases(base_model, self._sparse_modules(), self._heads, config.train_bias)
        self._biases = list(biases)
        if layer_ranking is None and config.layer_ranking is not None:
            prefix = getattr(base_model, "base_model_prefix", "")
            layer_ranking = find_ranking(config.layer_ranking, self._layers, prefix)
        bias_units = sum(bias.numel() for bias in biases.values())
        self._sampler = ChannelSampler(self.trady_config, self._targets, bias_units, layer_ranking)
        if self._sampler.strategy.by_output:
            refuse_output_channels(config.strategy, self._sparse_modules())
        if example_inputs is not None:
            costs = self._cost_table(base_model, example_inputs)
            self._sampler.costs, self._sampler.scores = costs, self._first_scores(costs)
        self._sampler.check()
        self.active: ActiveChannels | None = None
        self.epoch = 0
        self.touched: dict[str, Tensor] = {}  # layer name -> bool [C]: channels that training may have changed

        self.base_model = base_model
        self._buffer_sums = buffer_checksums(base_model)
        # By name: held here, whole Parameters would outlive `fully_shard`, which puts others in their place.
        self._required_grad = {name: parameter.requires_grad for name, parameter in base_model.named_parameters()}
        self._freeze()
        frozen_norms = config.norm_mode == "frozen"
        self._conversion = Conversion(
            base_model, self._heads, self._sparse_modules(), config.lean_backward, frozen_norms
        )
        for module in self._sparse_modules():
            module.by_output = self._sampler.strategy.by_output
        if example_inputs is not None:
            self._conversion.join(example_inputs)
        self._own_forward = vars(base_model).get("forward")
        self._hooks = self._add_hooks()
        self.train(base_model.training)
        self._build()
        if example_inputs is not None and self.byte_budget is not None:
            self._batch = example_inputs, None
            try:
                self._fit_when_possible()
            except Exception:
                self.merge_and_unload()
                raise

    def __call__(self, *args, **kwargs):
        if self.active is None and self._hooks and self.training and torch.is_grad_enabled():
            logger.warning_once(
                "No channels are active, so only the head trains: this model doesn't know yet what it draws from. "
                "Pass example_inputs or call calibrate(batch) before you make the optimizer, or use a TraDyTrainer."
            )
        if is_fully_sharded(self):
            self._write_back()  # before the hooks of FSDP, which gather the weights
        return super().__call__(*args, **kwargs)

    # ---- What is trained ----------------------------------------------------------------------------------------

    def draw(self, epoch: int) -> dict[str, Tensor]:
        """The channels of epoch `epoch`: layer name -> sorted indices, int64 `[n]`. Changes nothing."""
        return self._sampler.draw(epoch)

    def resample(self, epoch: int, optimizer: torch.optim.Optimizer | None = None) -> SparsityReport:
        """Make the channels of epoch `epoch` the active ones.

        Args:
            epoch: Number of the draw. Where it is the current one, or the strategy is static, nothing changes.
            optimizer: The optimizer of this model. Its state of channels that leave is dropped; of those that stay,
                `config.optimizer_state` decides.

        Raises:
            ValueError: If it is not ready to draw, or was merged, or if `optimizer` was made too early.
        """
        self._refuse_merged()
        self._sampler.refuse_unready()
        self._sampler.refuse_number(epoch)
        if optimizer is not None:
            self.refuse_early(optimizer)
        if epoch != self.epoch and self._sampler.differs(epoch, self.epoch):
            self._sampler.settle(epoch)
            reshard(self)
            self.active.assign(self.draw(epoch), optimizer, carry=self.trady_config.optimizer_state == "carry")
        self.epoch = epoch
        return self.report()

    def refuse_early(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if `optimizer` was made before this model knew what it draws from."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        flat = [parameter for parameter in self.active.flat if parameter.numel() and not is_sharded(parameter)]
        if any(id(parameter) not in held for parameter in flat):
            raise ValueError(
                "the optimizer lacks the Parameter of the active channels, so it would train the head alone: it was "
                "made before the model knew what it draws from; pass optimizer_cls_and_kwargs= to a Trainer, or make "
                "it once model.is_ready"
            )

    def observe(self) -> None:
        """Take in the gradients of the active channels, where the strategy goes by them in its next draws.

        Call it after the backward and before the optimizer's step; [`TraDyCallback`] does.
        """
        self._sampler.refuse_unready()
        self._sampler.observe(self.active.selection, self.active.gradient_norms)

    def active_channels(self) -> dict[str, Tensor]:
        """The channels that train now: layer name -> sorted indices, int64 `[n]`."""
        self._sampler.refuse_unready()
        return dict(self.active.selection)

    # ---- Modes, norms and weights ---------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "TraDyModel":
        """Set training mode; batch-norms outside the head keep their statistics with `norm_mode='frozen'`."""
        super().train(mode)
        self._conversion.freeze_norms()
        return self

    @property
    def moves_buffers(self) -> bool:
        """Whether a training step moves the statistics of a batch-norm."""
        return self._conversion.moves_buffers()

    def recalibrate_norms(self, dataloader: Iterable) -> None:
        """Move the statistics of the batch-norms outside the head to the domain of `dataloader`, by forwards alone.

        Args:
            dataloader: Yields `(inputs, labels)` or dicts of keywords; every batch weighs the same.

        Raises:
            ValueError: If there is no batch. Then, and if a forward fails, the statistics stay as they were.
        """
        was_training = self.training
        try:
            recalibrate(self.base_model, self._conversion.norms(), dataloader)
        finally:
            self.train(was_training)

    def state_dict(self, *args, **kwargs):
        """The state dict of the base model, with its keys, as safetensors takes it: every tensor contiguous, a copy
        for each further name of a tied weight. `keep_vars=True` gives the Parameters as they are."""
        self._write_back()
        state = self.base_model.state_dict(*args, **kwargs)
        return state if kwargs.get("keep_vars") else make_saveable(state)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load a state dict of the base model.

        Raises:
            ValueError: If the model is sharded over processes; nothing is changed then.
        """
        return self.base_model.load_state_dict(state_dict, *args, **kwargs)

    # ---- Saving and leaving -------------------------------------------------------------------------------------

    def trained_state(self) -> TrainedState:
        """What training has changed in the base model."""
        self._write_back()
        whole = self._whole_parameters()
        return collect_state(self.base_model, self._layers, self.touched, whole, self._buffer_sums)

    def restore(self, state: TrainedState) -> None:
        """Put `state`, which fits, into the base model."""
        reshard(self)
        restore_state(self.base_model, state)
        mark_touched(self.touched, self._layers, state)
        if self.active is not None:
            self.active.load()

    def merge_and_unload(self, dequantize: bool = False) -> nn.Module:
        """Turn the base model back into an ordinary one that holds what was trained, and return it.

        Args:
            dequantize: Of a model with quantized weights: make plain layers of those, in the model's own dtype, which
                hold what was trained as it is. By default they are quantized anew, as PEFT does it: the model stays
                as small as it was, but what was trained is rounded.

        Raises:
            ValueError: If it is sharded over processes; nothing is changed then.
        """
        if is_fully_sharded(self):
            raise ValueError(
                "a model that fully_shard has split over processes can't be unloaded; save_pretrained it on every "
                "process and load that into a plain base model: TraDyModel.from_pretrained(path, base_model)"
            )
        self._write_back()
        for name, parameter in self.base_model.named_parameters():
            parameter.requires_grad_(self._required_grad.get(name, parameter.requires_grad))
        self._conversion.undo(dequantize)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.active = [], None
        self.forward = self._own_forward  # a Trainer may have exchanged it
        return self.base_model.train(self.training)

    # ---- Parts of the above -------------------------------------------------------------------------------------

    def _refuse_merged(self) -> None:
        if not self._hooks:
            raise ValueError("this model was merged and unloaded; wrap its base_model in a new TraDyModel")

    def _freeze(self) -> None:
        trained = set(self._whole_parameters().values())
        for parameter in self.base_model.parameters():
            parameter.requires_grad_(parameter in trained)

    def _whole_parameters(self) -> dict[str, nn.Parameter]:
        """State-dict key -> Parameter, of everything that trains whole."""
        heads = {
            f"{head}.{key}": parameter
            for head in self._heads
            for key, parameter in self.base_model.get_submodule(head).named_parameters()
        }
        return heads | {key: self.base_model.get_parameter(key) for key in self._biases}

    def _sparse_modules(self) -> list[nn.Module]:
        return [module for name in self._targets for module in self._layers[name]]
