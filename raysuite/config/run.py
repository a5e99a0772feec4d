"""A whole run: its sections, which agree."""

from __future__ import annotations

import json
from typing import Any

from pydantic import model_validator

from raysuite.config.checks import check
from raysuite.config.sections import Reward, Run

SETTLED_LATER = ("updates", "budget", "cluster", "guards", "trackers")
"""What may change between the parts of a run."""


class RunConfig(Run):
    """A run that contradicts itself nowhere."""

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        check(self)
        return self

    def canonical(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values: what config.json holds."""
        return json.loads(self.model_dump_json())

    def identity(self) -> dict[str, Any]:
        """What decides a run's numbers: all but where it runs, what watches it, how long it goes on and what stays of it, and
        how long it waits.
        """
        tree = self.canonical()
        del tree["checkpoints"]["keep"], tree["checkpoints"]["best"]
        watched = tree["evaluation"]["rewards"] = [entry.model_dump() for entry in self.watched]
        for reward in (*tree["rewards"], *watched):
            del reward["seconds"], reward["retries"]
        if not self.preferences.held_out:  # of whose rankings it is the number
            del tree["evaluation"]["rankings"]
        return {name: section for name, section in tree.items() if name not in SETTLED_LATER}

    def with_actors(self) -> RunConfig:
        """For work without learners."""
        return self.model_copy(update={"cluster": self.cluster.with_actors()})

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Names of all rewards, those that are trained first."""
        return tuple(dict.fromkeys(reward.name for reward in (*self.rewards, *self.watched)))

    def reward(self, name: str) -> Reward:
        """The settings of a reward, trained or only watched."""
        return next((reward for reward in (*self.rewards, *self.watched) if reward.name == name), Reward(name=name))
