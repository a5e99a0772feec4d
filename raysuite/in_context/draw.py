"""Who draws descriptions: a model that was found by its name, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from raysuite.errors import UserError
from raysuite.families import Policy, open_policy
from raysuite.in_context.tasks import Task
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import Prompt, evaluation_block
from raysuite.stages.rollout import sample

EPISODES = 1_000_000
"""Of one task, at most: the noise of a picture has one number for its task and episode."""


class Drawer(Protocol):
    """Descriptions in, pictures out."""

    label: str

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3), of texts for episodes of these tasks and numbers, which decide the noise."""

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3) of the model's size, through its VAE and back."""


class PolicyDrawer:
    """A model of raysuite, opened in this process.

    Args:
        one: which.
        seed: of the noise, which is the same for every model that is compared (of equal latent shape).
        texts: all that will be drawn.
        size: height and width that its pictures have to have; None for any.
        beside: where text states are kept, with `cluster.encode_once`: encoders have then left memory before the network comes.

    Raises:
        UserError: it cannot be opened, or draws in another size.
    """

    def __init__(
        self, one: FoundModel, seed: int, texts: Sequence[str], *, beside: Path, size: tuple[int, int] | None = None
    ) -> None:
        self.label = one.label
        number = numpy_generator(seed=seed, stage=Stage.IN_CONTEXT_NOISE).integers(2**31)
        evaluation = one.config.evaluation.model_copy(update={"seed": int(number)})
        self._config = one.config.model_copy(update={"evaluation": evaluation})
        self.policy = self._opened(texts, beside / self.label)
        if size is not None and self.policy.image_size != size:
            raise UserError(
                f"expected a model that draws {size[0]} x {size[1]} pixels, as this world's judge reads, got {one.label}, which "
                f"draws {self.policy.image_size[0]} x {self.policy.image_size[1]}: name one that was trained on this world"
            )
        one.load(self.policy)

    def _opened(self, texts: Sequence[str], kept: Path) -> Policy:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not self._config.cluster.encode_once:
            return open_policy(self._config, device)
        open_policy(self._config, device, texts=kept, weights=False).text_states(dict.fromkeys(["", *texts]))
        return open_policy(self._config, device, texts=kept)

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3): one batch, whose size is part of what decides their bits."""
        numbers = [task.number * EPISODES + index for task, index in zip(tasks, indices, strict=True)]
        block = evaluation_block(self._config, [*map(Prompt, texts, numbers)], index=1)
        return sample(self.policy, block, self._config, version=0).previews_JN[-1]

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures through the VAE and back: what its decoder can show at best."""
        with torch.no_grad():
            return self.policy.decode(self.policy.encode(pictures))
