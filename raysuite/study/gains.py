"""Predicted against realised gain: steps of equal KL along the objectives' directions, scored on common noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from raysuite.kernel.stats import NOTHING, bootstrap_mean, paired_difference
from raysuite.rng import Stage, numpy_generator
from raysuite.types import Rollouts

TOLERANCE = 0.1
"""A step is long enough when its KL is the wanted one within this share."""
TRIALS = 8

COLUMNS = pa.schema(
    {
        **{"rung": pa.int64(), "along": pa.string(), "value": pa.string(), "checkpoint": pa.int64()},
        "objective": pa.string(),
        **{f"{name}{end}": pa.float64() for name in ("kl", "predicted") for end in ("", "_low", "_high")},
        **{"split": pa.string(), "reward": pa.string()},
        **{f"realised{end}": pa.float64() for end in ("", "_low", "_high")},
        "note": pa.string(),
    }
)
"""Of a table of gains, whose numbers may all be unknown."""

Scored = Sequence[tuple[str, Rollouts]]
"""Evaluated blocks with their splits."""


class NoStep(Exception):
    """There is no step of the wanted KL along a direction; the message says why."""


def step_of_kl(kl_of: Callable[[float], float], wanted: float, *, first: float) -> float:
    """The length of a step whose KL is `wanted`. To second order it grows with the square of the length.

    Args:
        kl_of: measures the KL, nats a trajectory, after a step of a length.
        wanted: nats.
        first: a length to begin with.

    Raises:
        NoStep: no length was found.
    """
    step = first
    for _ in range(TRIALS):
        found = kl_of(step)
        if abs(found / wanted - 1) <= TOLERANCE:
            return step
        # far from the target the square law is no guide: not more than a factor of 30 at once
        step *= float(np.clip((wanted / found) ** 0.5, 1 / 30, 30)) if found > 0 else 30.0
    raise NoStep(f"no step of KL {wanted:g} was found in {TRIALS} trials, and the last had {found:.3g}")


def realised(before: Scored, after: Scored | None, rewards: Mapping[str, float], *, seed: int) -> list[dict[str, Any]]:
    """Change of every reward by split, paired by prompt and noise, with bootstrap intervals over prompts.

    Args:
        before, after: the same blocks under two policies; None where no step was taken.
        rewards: weight of each term of the trained reward, which is reported as their sum where there are several.
        seed: of the bootstrap.
    """
    rows = []
    for split in sorted({split for split, _ in before}):
        values = [_values([r for s, r in scored if s == split], rewards) for scored in (before, after or before)]
        prompts = [np.array([prompt for prompt, _ in keys]) for keys, _ in values]
        assert values[0][0] == values[1][0], "the same prompts and samples in the same order"
        for reward in values[0][1]:
            rng = numpy_generator(seed=seed, stage=Stage.BOOTSTRAP)
            found = paired_difference(values[0][1][reward], values[1][1][reward], prompts[0], rng) if after else NOTHING
            rows.append(
                {
                    "split": split,
                    "reward": reward,
                    "realised": found.estimate,
                    "realised_low": found.low,
                    "realised_high": found.high,
                }
            )
    return rows


def unpredicted(stochastic_K: Tensor) -> str:
    """Why the policy gradient does not foretell what a step along a direction gains; nothing where it does."""
    still = int((~stochastic_K).sum())
    # they change with the weights, too, but have no density: the policy gradient does not know of them
    return f"not predicted: {still} of {len(stochastic_K)} steps draw no noise" if still else ""


def measured_kl(scored: Scored | None, *, seed: int) -> dict[str, float]:
    """KL from the policy that was stepped from, nats a trajectory, with its interval over the samples that measured it; NaN where no
    step was taken.
    """
    if scored is None:
        return dict.fromkeys(("kl", "kl_low", "kl_high"), math.nan)
    kl_N = np.concatenate([r.kl_N for _, r in scored if r.kl_N is not None]).astype(float)
    found = bootstrap_mean(kl_N, np.arange(len(kl_N)), numpy_generator(seed=seed, stage=Stage.BOOTSTRAP))
    return {"kl": found.estimate, "kl_low": found.low, "kl_high": found.high}


def trained_reward(rewards: Mapping[str, float]) -> str:
    """Its name: the only term's, or that of the sum."""
    return next(iter(rewards)) if list(rewards.values()) == [1.0] else "weighted sum"


def _values(
    rollouts: Sequence[Rollouts], rewards: Mapping[str, float]
) -> tuple[list[tuple[str, int]], dict[str, np.ndarray]]:
    """(prompt, sample) of every picture in a fixed order, and the scores in it by reward, the trained one first."""
    ordered = sorted(rollouts, key=lambda r: (r.block.first_sample, r.block.index))
    keys = [(prompt, r.block.first_sample) for r in ordered for prompt in r.block.prompt_of_N]
    scores = {name: np.concatenate([r.scores[name] for r in ordered]) for name in ordered[0].scores}
    total = np.sum([weight * scores[name] for name, weight in rewards.items()], axis=0)
    return keys, {trained_reward(rewards): total, **{n: v for n, v in scores.items() if n != trained_reward(rewards)}}
