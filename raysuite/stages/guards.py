"""Watching a run: what the guards of a configuration say of its numbers, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.kernel import guards
from raysuite.kernel.stats import Interval, by_prompt, paired_difference
from raysuite.rng import Stage, numpy_generator
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory

Rows = Sequence[Mapping[str, Any]]
"""Of an evaluation's scores."""
NATS_A_NUMBER = 2.0
"""The KL is a sum over the numbers of a latent, of which models have 256 or 65,536."""


class Watch:
    """Looks at a run's numbers after every update and evaluation. Nothing that is drawn or learned depends on it."""

    def __init__(self, config: RunConfig, run: RunDirectory, *, latent_numbers: int) -> None:
        self._config, self._run, self._guards = config, run, config.guards
        self._kl_limit = config.guards.kl_limit or NATS_A_NUMBER * latent_numbers
        self._base: dict[str, float | None] = {}
        self.warnings: dict[str, str] = {}
        """The first sentence of every guard that warned, by its name."""

    def after_update(self, update: int, metrics: Mapping[str, float]) -> None:
        """Look at what update `update` (counted from 0) logged.

        Raises:
            UserError: a guard that stops the run has something to say.
        """
        found = {"finite": guards.finite(metrics), "diversity": self._diversity(metrics, "train/diversity")}
        rollouts = self._config.rollouts
        if "learn/ratio" in metrics and rollouts.staleness == 0 and rollouts.replay is None:
            clipped = metrics["learn/clipped_at_first"]
            tolerance = self._guards.ratio_tolerance
            found["ratio"] = guards.ratio(ratio=metrics["learn/ratio"], clipped=clipped, tolerance=tolerance)
        if "learn/prompt_spread" in metrics:
            found["prompts"] = guards.prompts(now=metrics["learn/prompt_spread"], share=self._guards.diversity_share)
        if "train/groups" in metrics:
            found["spread"] = guards.spread(
                without=metrics["train/groups_without_spread"], groups=metrics["train/groups"]
            )
        self._react(update + 1, found)

    def after_evaluation(self, updates: int, metrics: Mapping[str, float]) -> None:
        """Look at what the evaluation after so many updates logged.

        Raises:
            UserError: a guard that stops the run has something to say.
        """
        if not updates:
            return
        of_splits = (self._diversity(metrics, f"evaluation/diversity/{split}") for split in ("held_out", "training"))
        found = {"finite": guards.finite(metrics), "diversity": next(filter(None, of_splits), None)}
        if "evaluation/kl" in metrics:
            found["kl"] = guards.kl(nats=metrics["evaluation/kl"], limit=self._kl_limit)
        besides = [reward.name for reward in self._config.watched]
        if self._guards.held_out != "ignore" or (besides and self._guards.watched != "ignore"):
            scores = [pq.read_table(self._run.path / "scores" / f"{u:06d}.parquet").to_pylist() for u in (0, updates)]
            changes = self._changes(updates, scores, {term.name: term.weight for term in self._config.rewards})
            if "training" in changes and "held_out" in changes:
                found["held_out"] = guards.held_out(training=changes["training"], held_out=changes["held_out"])
            split = "held_out" if "held_out" in changes else "training"
            if besides and split in changes:
                watched = {name: self._changes(updates, scores, {name: 1.0})[split] for name in besides}
                found["watched"] = guards.watched(trained=changes[split], watched=watched)
        self._react(updates, found)

    def _diversity(self, metrics: Mapping[str, float], name: str) -> str | None:
        if name not in metrics:
            return None
        if name not in self._base:
            self._base[name] = self._run.metrics().get(name, {}).get(0)
        base = self._base[name]
        if not base:  # the first update drew one picture a prompt
            return None
        return guards.diversity(now=metrics[name], base=base, share=self._guards.diversity_share)

    def _react(self, updates: int, found: Mapping[str, str | None]) -> None:
        said = {n: sentence for n, sentence in found.items() if sentence and getattr(self._guards, n) != "ignore"}
        # under the number of the last update, so that going on from a checkpoint drops what will be said again
        self._run.log(updates - 1, {f"guard/{name}": 1.0 for name in said})
        for name, sentence in said.items():
            text = f"after {updates} update{'' if updates == 1 else 's'} {sentence}: {guards.REMEDIES[name]}"
            if getattr(self._guards, name) == "stop":
                there = checkpoint.completed(self._run.path / "checkpoints")
                last = f"Its last checkpoint is {there[-1]}" if there else "It has no checkpoint yet"
                raise UserError(
                    f"guards.{name}=stop ended the run: {text} {last}; to go on all the same, add --set guards.{name}=warn"
                )
            self.warnings.setdefault(name, f"{text[0].upper()}{text[1:]}")

    def _changes(self, updates: int, scores: Sequence[Rows], weights: Mapping[str, float]) -> dict[str, Interval]:
        """How a sum of rewards changed from one evaluation to another, by split, on the pictures that both have."""
        before, after = (_summed(rows, weights) for rows in scores)
        changes = {}
        for split in sorted({key[0] for key in after}):
            both = [key for key in after if key[0] == split and key in before]
            if both:
                rng = numpy_generator(seed=self._config.evaluation.seed, stage=Stage.BOOTSTRAP, update=updates)
                old, new = (np.array([rewards[key] for key in both]) for rewards in (before, after))
                prompts = np.array([key[1] for key in both])
                changes[split] = paired_difference(old, new, by_prompt(prompts), rng)
        return changes


def _summed(rows: Rows, weights: Mapping[str, float]) -> dict[tuple[str, str, int], float]:
    """A weighted sum of rewards by split, prompt and sample."""
    found: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if row["reward"] in weights:
            key = (row["split"], row["prompt"], row["sample"])
            found[key] = found.get(key, 0.0) + weights[row["reward"]] * row["value"]
    return found
