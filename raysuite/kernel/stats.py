"""Estimates with their intervals. Every draw comes from the generator that the caller passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits, in the unit of what was measured."""

    estimate: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray, groups: np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """The mean of `values` with a percentile interval from resampling whole groups.

    Pictures of one prompt are not independent, so prompts are what is resampled.

    Args:
        values: (N,) numbers.
        groups: (N,) labels, one prompt each.
        rng: drawn from.
        resamples: number of bootstrap resamples.
        confidence: in (0, 1).

    Raises:
        ValueError: there are no values, one is not finite, or the lengths differ.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a non-empty one-dimensional array of values, got shape {values.shape}")
    if len(groups) != len(values):
        raise ValueError(f"expected a group for each of {len(values)} values, got {len(groups)}")
    if not np.isfinite(values).all():
        raise ValueError("expected finite values, got NaN or infinity: leave such pictures out and say so")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    rows = rng.integers(len(sums), size=(resamples, len(sums)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
    before: np.ndarray, after: np.ndarray, groups: np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """The mean of after - before where row i of both is the same prompt and noise, as `bootstrap_mean`.

    Raises:
        ValueError: the lengths differ, or what `bootstrap_mean` refuses.
    """
    if len(before) != len(after):
        raise ValueError(f"expected pairs, got {len(before)} values before and {len(after)} after")
    return bootstrap_mean(np.asarray(after, float) - np.asarray(before, float), groups, rng, resamples=resamples, confidence=confidence)
