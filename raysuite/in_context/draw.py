"""Who draws descriptions: a recipe's model as it came, a run, or one of its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from raysuite import config as configuration, places
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import Policy, check_model, open_policy
from raysuite.in_context.tasks import Task
from raysuite.rng import Stage, numpy_generator
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory, digest
from raysuite.stages.rollout import sample
from raysuite.types import Block

EPISODES = 1_000_000
"""Of one task, at most: the noise of a picture has one number for its task and episode."""
BARE = {"scenes": "scenes-ddpo", "scenes-flow": "scenes-flow-ddpo"}
"""Bundled models by their names, and the recipe whose sampler they are drawn with."""


class Drawer(Protocol):
    """Descriptions in, pictures out."""

    label: str

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3), of texts for episodes of these tasks and numbers, which decide the noise."""

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3) of the model's size, through its VAE and back."""


@dataclass(frozen=True)
class Named:
    """A model that draws, found but not opened."""

    label: str
    config: RunConfig
    model: Path | None
    """Of a checkpoint; None is the model as it came."""
    ema: bool = False
    """Whether the average of its weights is meant."""

    def settings(self) -> dict[str, object]:
        """What decides its pictures, for the record."""
        canonical = self.config.canonical()
        return {
            "label": self.label,
            "checkpoint": str(self.model) if self.model else None,
            "sha256": digest(self.model / "state.json") if self.model else None,
            "objective": self.config.objective["name"] if self.model else None,
            "method": self._method(self.model) if self.model else None,
            **{section: canonical[section] for section in ("model", "sampler", "parameters")},
            **({"ema": True} if self.ema else {}),
        }

    def load(self, policy: Policy) -> None:
        """Put a checkpoint's weights, or their average, into a policy as it came."""
        if self.model is not None:
            checkpoint.load(self.model, policy)
            if self.ema:
                policy.load(self.model / checkpoint.EMA)

    def _method(self, model: Path) -> str:
        """A digest of all that decides the model but the seed of its run: models that have it in common are repetitions."""
        settings = {
            **self.config.identity(),
            "seed": None,
            "checkpoint": model.name,
            **({"ema": True} if self.ema else {}),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def find(name: str, *, ema: bool = False) -> Named:
    """Who is meant: a run (its last checkpoint), a checkpoint, a recipe or YAML file, or a bundled model's name.

    Args:
        name: of them.
        ema: whether the average of a checkpoint's weights is meant.

    Raises:
        UserError: there is nothing like it, it is damaged, or it has no average.
    """
    path = places.whole(name)
    if (path / "state.json").is_file():
        run, model = path.parents[1], path
    elif (path / "config.json").is_file():
        run, model = path, checkpoint.find(path)
    elif path.is_dir():
        raise UserError(
            f"expected a run or one of its checkpoints, got {name}, where there is neither config.json nor state.json: check the path"
        )
    else:
        config = configuration.load(BARE.get(name, name))
        return Named(name.removesuffix(".yaml").rpartition("/")[2], config, None)
    state = checkpoint.read_state(model)
    config, label = RunDirectory(run).config(), f"{run.name} after {state.updates}"
    if not state.updates:
        return Named(label, config, None)
    checkpoint.weights(model, ema=ema)
    return Named(f"{label}, average" if ema else label, config, model, ema)


def check_average(found: Sequence[Named]) -> None:
    """Refuse models of which none is an average of weights.

    Raises:
        UserError: none is.
    """
    if not any(one.ema for one in found):
        labels = ", ".join(one.label for one in found) or "none"
        raise UserError(f"expected a trained run with --ema, got {labels}: name one, or leave --ema out")


def named(names: Sequence[str], *, ema: bool = False) -> list[Named]:
    """All of them, by labels that differ.

    Raises:
        UserError: two are the same, or averages are meant and there is no run.
    """
    found = [find(name, ema=ema) for name in names]
    if ema:
        check_average(found)
    labels = [one.label for one in found]
    if len({*labels}) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(
            f"expected models of different names, got {twice} twice: leave one out, or rename its directory"
        )
    for one in found:
        check_model(one.config.model)
    return found


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
        self, one: Named, seed: int, texts: Sequence[str], *, beside: Path, size: tuple[int, int] | None = None
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
        block = Block(
            update=0,
            index=1,
            prompts=tuple(texts),
            prompt_ids=tuple(task.number * EPISODES + index for task, index in zip(tasks, indices, strict=True)),
            samples_per_prompt=1,
            metadata=({},) * len(texts),
            evaluation=True,
            window=self._config.sampler.evaluated_window,
        )
        return sample(self.policy, block, self._config, version=0).previews_JN[-1]

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures through the VAE and back: what its decoder can show at best."""
        with torch.no_grad():
            return self.policy.decode(self.policy.encode(pictures))
