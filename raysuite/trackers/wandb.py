"""Weights & Biases, on line or off: `wandb sync` sends what an off-line run left in its trackers/wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from raysuite.errors import UserError, in_a_line
from raysuite.trackers.tracker import Picture, TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """A W&B run that keeps its id, so that a run that goes on is one run there, too."""

    errors = (wandb.errors.Error,)

    def __init__(self, run: TrackedRun) -> None:
        wanted = run.config.trackers.wandb
        run.place.mkdir(exist_ok=True)
        mode: Any = wanted.mode or os.environ.get("WANDB_MODE")  # wandb reads it once a process
        try:
            self._run = wandb.init(
                project=wanted.project,
                entity=wanted.entity,
                group=wanted.group,
                name=run.name,
                id=run.identity,
                resume="allow",
                mode=mode,
                dir=run.place,
                config=run.config.canonical(),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"expected Weights & Biases to take the run, got: {in_a_line(error).rstrip('.')}: log in with "
                "`wandb login`, or set trackers.wandb.mode=offline"
            ) from error
        where = "offline" if self._run.offline else self._run.settings.base_url
        self.destination = f"{self._run.entity or ''}/{wanted.project} at {where}"
        self._run.define_metric("*", step_metric="update")

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        """Take metrics, by name."""
        self._run.log({"update": update, **values})

    def pictures(self, update: int, pictures: Sequence[Picture]) -> None:
        """Take an evaluation's pictures, each with its prompt."""
        shown = {picture.name: wandb.Image(str(picture.file), caption=picture.prompt) for picture in pictures}
        self._run.log({"update": update, **shown})

    def close(self, *, completed: bool) -> None:
        """Send what is left, and mark the run as finished or failed."""
        self._run.finish(exit_code=0 if completed else 1)
