"""How fast the outputs of neurons change from epoch to epoch."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .selection import ChannelScores
from .selection.measuring import batches_of, default_loss
from .tensor_files import write_tensors


INERTIA = 0.5
VELOCITIES_NAME = "neuron_velocities.safetensors"


class NeuronVelocities:
    """Velocities of the output neurons of some layers (Bragagnolo et al., 2022; Velocity, WACV-W 2024).

    With phi_t the cosine similarity of a neuron's outputs, over all samples and positions, with those of the epoch
    before, the velocity is `v_t = phi_t - phi_(t-1) - 0.5 * v_(t-1)`, from `phi_0 = 1` and `v_0 = 0`. All outputs of
    the samples are kept from epoch to epoch.

    Args:
        layers: By name, the layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module]):
        self.layers = dict(layers)
        self._outputs: dict[str, Tensor] = {}
        self._similarity: dict[str, Tensor] = {}
        self._velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(
        self,
        model: nn.Module,
        dataloader: Iterable,
        num_steps: int,
        compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> ChannelScores:
        """Go on by an epoch: the size of each neuron's velocity, NaN the first time.

        Args:
            model: Called by `compute_loss`, in eval mode.
            dataloader: Yields the same held-out batches every time.
            num_steps: How many of them.
            compute_loss: As in [`measure_gradients`].
        """
        outputs = self._forward(model, dataloader, num_steps, compute_loss or default_loss)
        before, self._outputs = self._outputs, outputs
        if any(name not in before or before[name].shape != y.shape for name, y in outputs.items()):
            self._similarity, self._velocity = {}, {}
            return ChannelScores({name: torch.full((y.shape[1],), torch.nan) for name, y in outputs.items()})
        for name, y in outputs.items():
            similarity = torch.cosine_similarity(y, before[name], dim=0)
            last = self._similarity.get(name, torch.ones_like(similarity))
            slowed = INERTIA * self._velocity.get(name, torch.zeros_like(similarity))
            self._velocity[name], self._similarity[name] = similarity - last - slowed, similarity
        return ChannelScores({name: velocity.abs() for name, velocity in self._velocity.items()})

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `neuron_velocities.safetensors` into `save_directory`: all outputs, so as large as these."""
        tensors = {f"{part}.{name}": value.contiguous() for part, of in self._parts() for name, value in of.items()}
        write_tensors(Path(save_directory) / VELOCITIES_NAME, tensors)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, layers: Mapping[str, nn.Module]) -> "NeuronVelocities | None":
        """Read `neuron_velocities.safetensors` from the directory `path`; None if there is none.

        Args:
            path: The directory.
            layers: Those that it may name.

        Raises:
            ValueError: If the file is corrupt, names other layers or holds tensors that don't fit each other.
        """
        file = Path(path) / VELOCITIES_NAME
        if not file.is_file():
            return None
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{file}' does not hold velocities ({error}); delete it to start anew") from None
        velocities = cls({})
        for part, of in velocities._parts():
            of |= {key.removeprefix(f"{part}."): tensors[key] for key in tensors if key.startswith(f"{part}.")}
        unknown = velocities._outputs.keys() - layers.keys()
        if unknown:
            raise ValueError(f"'{file}' holds velocities of a layer '{min(unknown)}', which this model does not have")
        for part, of in velocities._parts():
            for name, value in of.items():
                outputs = velocities._outputs.get(name)
                fits = outputs is not None and outputs.dim() == 2 and value.is_floating_point()
                if not fits or (value is not outputs and value.shape != outputs.shape[1:]):
                    raise ValueError(
                        f"'{file}' holds a '{part}.{name}' of {value.dtype} {list(value.shape)}, which are no "
                        "values of the neurons that it holds outputs of; delete it to start anew"
                    )
        velocities.layers = {name: layers[name] for name in velocities._outputs}
        return velocities

    def _parts(self) -> list[tuple[str, dict[str, Tensor]]]:
        return [("outputs", self._outputs), ("similarity", self._similarity), ("velocity", self._velocity)]

    def _forward(self, model, dataloader, num_steps, compute_loss) -> dict[str, Tensor]:
        """Outputs of every layer, float32 `[samples * positions, C']`."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.layers}

        def keep(name: str):
            def hook(layer: nn.Module, args: tuple, output: Tensor) -> None:
                y = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
                parts[name].append(y.flatten(0, -2).float().cpu())

            return hook

        handles = [layer.register_forward_hook(keep(name)) for name, layer in self.layers.items()]
        training = model.training
        model.eval()
        try:
            batches = batches_of(dataloader)
            for _ in range(num_steps):
                compute_loss(model, next(batches))
        finally:
            model.train(training)
            for handle in handles:
                handle.remove()
        return {name: torch.cat(ys) for name, ys in parts.items() if ys}
