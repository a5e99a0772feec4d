"""Models that commands are told of by a name: a recipe's as it came, a run's, or a checkpoint's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raysuite import config as configuration, places
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import Policy, check_model
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory, digest

BARE = {"scenes": "scenes-ddpo", "scenes-flow": "scenes-flow-ddpo"}
"""Bundled models by their names, and the recipe whose sampler they are drawn with."""


@dataclass(frozen=True)
class FoundModel:
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
            "ema": self.ema,
        }

    def load(self, policy: Policy) -> None:
        """Put a checkpoint's weights, or their average, into a policy as it came."""
        if self.model is not None:
            checkpoint.load(self.model, policy)
            if self.ema:
                policy.load(checkpoint.weights(self.model, ema=True))

    def _method(self, model: Path) -> str:
        """A digest of all that decides the model but the seed of its run: models that have it in common are repetitions."""
        settings = {
            **self.config.identity(),
            "seed": None,
            "checkpoint": model.name,
            "ema": self.ema,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def find_model(name: str, *, ema: bool = False) -> FoundModel:
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
        return FoundModel(name.removesuffix(".yaml").rpartition("/")[2], config, None)
    state = checkpoint.read_state(model)
    config, label = RunDirectory(run).config(), f"{run.name} after {state.updates}"
    if not state.updates:
        return FoundModel(label, config, None)
    checkpoint.weights(model, ema=ema)
    return FoundModel(f"{label}, average" if ema else label, config, model, ema)


def check_average(found: Sequence[FoundModel]) -> None:
    """Refuse models of which none is an average of weights.

    Raises:
        UserError: none is.
    """
    if not any(one.ema for one in found):
        labels = ", ".join(one.label for one in found) or "none"
        raise UserError(f"expected a trained run with --ema, got {labels}: name one, or leave --ema out")


def find_models(names: Sequence[str], *, ema: bool = False) -> list[FoundModel]:
    """All of them, by labels that differ.

    Raises:
        UserError: two are the same, or averages are meant and there is no run.
    """
    found = [find_model(name, ema=ema) for name in names]
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
