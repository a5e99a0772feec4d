"""What all workers know of an update's rollouts, and what the run tells of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysuite.config import RunConfig
from raysuite.kernel.credit import RewardScale, groups_without_spread, terminal_credit
from raysuite.kernel.diversity import pairwise_distance
from raysuite.types import Rollouts


def summary(rollouts: Rollouts) -> dict:
    """What every worker must know of a block: its rewards and credit, not its trajectories."""
    return {
        "block": rollouts.block.index,
        "numbers_N": rollouts.block.number_of_N,
        "credit_NK": rollouts.credit_NK,
        "reward_N": rollouts.reward_N,
        "learned_N": rollouts.reward_N,
        "rounding_N": None,  # follows from rewards as they are given
        "scores": dict(rollouts.scores),
        "distances_P": _distances(rollouts),
        "cost": rollouts.cost,
        "redone": rollouts.redone,
    }


def rescale(config: RunConfig, summaries: Sequence[dict], scale: RewardScale) -> list[dict]:
    """All blocks of an update, in their order, with what is learned from their rewards on one scale, which is shown them first."""
    names = [reward.name for reward in config.rewards]
    scores = {name: np.concatenate([s["scores"][name] for s in summaries]) for name in names}
    scale.show(scores)
    weights = {reward.name: reward.weight for reward in config.rewards}
    total_N, rounding_N = scale.total(scores, weights), scale.rounding(scores, weights)
    ends = np.cumsum([len(s["reward_N"]) for s in summaries])[:-1]
    steps = config.sampler.steps
    return [
        {**s, "learned_N": learned_N, "rounding_N": off_N, "credit_NK": terminal_credit(learned_N, steps=steps)}
        for s, learned_N, off_N in zip(summaries, np.split(total_N, ends), np.split(rounding_N, ends), strict=True)
    ]


def _distances(rollouts: Rollouts) -> list[float]:
    """How different the pictures of each prompt are, grey levels."""
    samples = rollouts.block.samples_per_prompt
    if rollouts.thumbnails_N is None or samples < 2:
        return []
    return [
        pairwise_distance(rollouts.thumbnails_N[first : first + samples])
        for first in range(0, rollouts.block.size, samples)
    ]


def reward_metrics(summaries: Sequence[dict]) -> dict[str, float]:
    """What is logged of an update's rewards."""
    ordered = sorted(summaries, key=lambda s: s["block"])
    reward_N = np.concatenate([s["reward_N"] for s in ordered])
    metrics = {"train/reward": float(reward_N.mean()), "train/reward_std": float(reward_N.std())}
    learned_N = np.concatenate([s["learned_N"] for s in ordered])
    known = [s["rounding_N"] for s in ordered if s["rounding_N"] is not None]
    numbers = [number for s in ordered for number in s["numbers_N"]]
    without, groups = groups_without_spread(learned_N, numbers, np.concatenate(known) if known else None)
    if groups:
        metrics |= {"train/groups": float(groups), "train/groups_without_spread": float(without)}
    for name in summaries[0]["scores"]:
        values = np.concatenate([s["scores"][name] for s in ordered])
        metrics[f"train/reward/{name}"] = float(values.mean())
    if distances := [d for s in ordered for d in s["distances_P"]]:
        metrics["train/diversity"] = float(np.mean(distances))
    return metrics
