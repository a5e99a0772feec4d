"""What a model family implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.kernel.schedule import Schedule


class Policy(ABC):
    """A family with its trained parameters, guidance and sampler.

    Rollouts and learners evaluate the very same `predict`, so that the importance ratio starts at exactly 1.
    """

    schedule: Schedule
    """The sampler's table, on `device`."""
    latent_shape: tuple[int, ...]
    """Shape of one latent."""
    device: torch.device
    evaluations_per_prediction: int
    """Network evaluations that one prediction costs: 2 with classifier-free guidance, else 1."""

    @abstractmethod
    def predict(self, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], *, reference: bool = False) -> Tensor:
        """The network's (guided) output, float32, at noisy latents x_N (N, ...) and timesteps t_N (N,).

        With `reference` the network answers as it did before any training.
        """

    @abstractmethod
    def decode(self, latents_N: Tensor) -> np.ndarray:
        """Latents (N, ...) to images, uint8 (N, H, W, 3)."""

    @abstractmethod
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name, in a fixed order, float32."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the trained parameters in the form that users of this family load."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Read what `save` wrote, bit for bit."""

    @final
    def weights(self) -> np.ndarray:
        """All trained parameters as one flat float32 array: the form in which they travel."""
        return np.concatenate([p.detach().float().cpu().numpy().ravel() for p in self.trainable().values()])

    @final
    @torch.no_grad()
    def set_weights(self, flat: np.ndarray) -> None:
        """The inverse of `weights`.

        Raises:
            UserError: the array has another length.
        """
        parameters = self.trainable().values()
        expected = sum(p.numel() for p in parameters)
        if len(flat) != expected:
            raise UserError(
                f"expected {expected} trained parameters, got {len(flat)}: the weights are of another model"
            )
        start = 0
        for p in parameters:
            piece = flat[start : start + p.numel()]
            p.copy_(torch.from_numpy(piece.copy()).view_as(p))
            start += p.numel()
