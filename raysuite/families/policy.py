"""What a model family implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.families.sharding import share_of, whole
from raysuite.families.text import TextStates
from raysuite.kernel.schedule import Schedule


class Policy(ABC):
    """A family with its trained parameters, guidance and sampler.

    Rollouts and learners evaluate the very same `predict`, so that the importance ratio starts at exactly 1.
    """

    schedule: Schedule
    """The sampler's table, on `device`; decisions are made with `table`, its copy on the CPU, for which nobody waits."""
    latent_shape: tuple[int, ...]
    """Shape of one latent."""
    image_size: tuple[int, int]
    """Height and width of a picture in pixels."""
    device: torch.device
    evaluations_per_prediction: int
    """Network evaluations that one prediction costs: 2 with classifier-free guidance, else 1."""
    draws_prompts: bool = False
    """Whether what a prompt means is drawn for each row. The draw is a function of the weights and of the row's label."""
    reference_weights: np.ndarray | None = None
    """What `set_reference` was given last; None while the reference is the network as it came."""

    @cached_property
    def table(self) -> Schedule:
        """The sampler's table on the CPU."""
        return self.schedule.to("cpu")

    @abstractmethod
    def predict(
        self,
        x_N: Tensor,
        t_N: Tensor,
        prompts_N: Sequence[str],
        *,
        reference: bool = False,
        base: bool = False,
        guided: bool = True,
        draws_N: Tensor | None = None,
    ) -> Tensor:
        """The network's output, float32, at noisy latents x_N (N, ...) and timesteps t_N (N,), which had better be on the CPU: whether
        rows are at one time is decided there.

        With `reference` the reference answers: the network as it was before any training, or what `set_reference` made
        it. With `base` it is the network as it was before any training, whatever the reference has become. Without `guided` the
        sampler's guidance is left out. `draws_N` (N,) are the labels of the rows' draws, where the policy `draws_prompts`: the
        policy, the reference and the base make of one label the draw that their own weights give it.
        """

    def regularise(self, prompts_U: Sequence[str], *, scale: float) -> Mapping[str, float]:
        """Add the gradient of what holds the trained parameters in shape, besides any objective: of a term for each unit's prompt,
        times `scale`. Returns the sum over units of what there is to tell.
        """
        return {}

    @abstractmethod
    def decode(self, latents_N: Tensor) -> np.ndarray:
        """Latents (N, ...) to images, uint8 (N, H, W, 3)."""

    @abstractmethod
    def encode(self, images_N: np.ndarray) -> Tensor:
        """Images, uint8 (N, H, W, 3) of the model's own size, to clean latents (N, ...): the inverse of `decode`, nearly."""

    @abstractmethod
    def text_states(self, prompts: Iterable[str]) -> dict[str, TextStates]:
        """What the text encoders make of each prompt; empty where the family has none."""

    @abstractmethod
    def remember(self, states: TextStates) -> None:
        """Take text states of a prompt that were computed before in place of computing them again."""

    @abstractmethod
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name, in a fixed order, float32."""

    @abstractmethod
    def replace_reference(self, values: Mapping[str, Tensor]) -> None:
        """Make these values, by name as in `trainable`, the reference's parameters."""

    @abstractmethod
    def write(self, directory: Path, values: Mapping[str, Tensor]) -> None:
        """Write values of the trained parameters, by name as in `trainable`, in the form that users of this family load."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Read what `save` wrote, bit for bit."""

    def shard(self) -> None:
        """Spread the trained network over the learners; `weights`, `predict` and its gradients are then asked of all of them.

        Raises:
            UserError: the family, or what is trained of it, cannot be.
        """
        raise UserError(
            "expected all weights of a diffusers pipeline with cluster.shard, got another model: leave it out"
        )

    def let_go(self) -> None:  # noqa: B027 - most families have nothing to let go
        """After predictions without gradients, keep no more than one's share of a network that is spread over the learners."""

    @final
    def weights(self) -> np.ndarray:
        """All trained parameters as one flat float32 array: the form in which they travel."""
        parameters = (whole(p.detach()) for p in self.trainable().values())
        return np.concatenate([p.float().cpu().numpy().ravel() for p in parameters])

    @final
    @torch.no_grad()
    def set_weights(self, flat: np.ndarray) -> None:
        """The inverse of `weights`.

        Raises:
            UserError: the array has another length.
        """
        parameters = self.trainable()
        for name, value in self._named(flat).items():
            parameters[name].copy_(share_of(value, parameters[name]))

    @final
    def save(self, directory: Path, flat: np.ndarray) -> None:
        """Write weights, as `weights` gives them, in the form that users of this family load.

        Raises:
            UserError: the array has another length.
        """
        self.write(directory, self._named(flat))

    @final
    def set_reference(self, flat: np.ndarray) -> None:
        """Make these weights, as `weights` gives them, the reference.

        Raises:
            UserError: the array has another length.
        """
        self.replace_reference(self._named(flat.copy()))  # which may be kept
        self.reference_weights = flat

    def _named(self, flat: np.ndarray) -> dict[str, Tensor]:
        """The array's pieces by name, to be read: they share its memory where that may be written to, without which torch warns."""
        parameters = self.trainable()
        expected = sum(p.numel() for p in parameters.values())
        if len(flat) != expected:
            raise UserError(
                f"expected {expected} trained parameters, got {len(flat)}: the weights are of another model"
            )
        sizes = [p.numel() for p in parameters.values()]
        pieces = torch.from_numpy(flat if flat.flags.writeable else flat.copy()).split(sizes)
        return {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}
