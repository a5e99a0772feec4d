"""Estimates with their intervals. Every draw comes from the generator that the caller passes.

Axis legend: N values, G groups (prompts), B bootstrap resamples.
"""

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
    values: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """The mean of `values` with a percentile interval from resampling whole groups.

    Pictures of one prompt are not independent, so prompts are what is resampled: with G groups, resample b draws G of
    them with replacement and takes mean_b = (sum of their values) / (number of their values).

    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8 (the cluster bootstrap).
    Percentile intervals are somewhat too narrow with few groups: below about ten, say so beside the number.

    Args:
        values: (N,) finite numbers, in any unit.
        groups: (N,) labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the interval, in (0, 1).

    Returns:
        The mean over N and its interval, in the unit of `values`. The limits are NaN where there is only one group: one
        prompt does not tell how prompts differ.

    Raises:
        ValueError: there are no values, one is not finite, the lengths differ, or an option is out of range.

    Example:
        >>> prompts = np.repeat(["a", "b", "c"], 2)
        >>> bootstrap_mean(np.ones(6), prompts, np.random.default_rng(0))
        Interval(estimate=1.0, low=1.0, high=1.0)
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected at least 1 resample and a confidence in (0, 1), got {resamples} and {confidence}")
    sums_G, counts_G = _totals(values, groups)
    estimate = float(sums_G.sum() / counts_G.sum())
    if len(sums_G) == 1:
        return Interval(estimate, float("nan"), float("nan"))
    drawn_BG = rng.integers(len(sums_G), size=(resamples, len(sums_G)))
    means_B = sums_G[drawn_BG].sum(1) / counts_G[drawn_BG].sum(1)
    low, high = np.quantile(means_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """The mean of after - before, where entry i of both is the same prompt and noise, as `bootstrap_mean`.

    What prompts and noise contribute to both cancels, so the interval is narrower than two separate ones suggest.

    Args:
        before: (N,) finite numbers.
        after: (N,) finite numbers, in the same unit and order.
        groups: (N,) labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: the lengths differ, or what `bootstrap_mean` refuses.
    """
    if len(before) != len(after):
        raise ValueError(f"expected pairs, got {len(before)} values before and {len(after)} after: keep what both have")
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return bootstrap_mean(difference, groups, rng, resamples=resamples, confidence=confidence)


def _totals(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of every group, (G,) each, after checking them."""
    values_N = np.asarray(values, dtype=float)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"expected a non-empty one-dimensional array of values, got shape {values_N.shape}")
    if np.shape(groups) != values_N.shape:
        raise ValueError(f"expected a group for each of {len(values_N)} values, got shape {np.shape(groups)}")
    if not np.isfinite(values_N).all():
        raise ValueError("expected finite values, got NaN or infinity: leave such pictures out and say so")
    _, index_N = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(index_N, weights=values_N), np.bincount(index_N)
