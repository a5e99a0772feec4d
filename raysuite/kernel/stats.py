"""Estimates with their intervals. Every draw comes from the generator that the caller passes.

Axis legend: N values, G groups (prompts), R and S runs (seeds) of two methods, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import stdtrit

RESAMPLES, CONFIDENCE = 2_000, 0.95
"""Of every interval unless told otherwise: bootstrap resamples, and its coverage."""
ENOUGH_POWER = 0.8
"""Below this chance that a study like it finds the same again, it is said beside what was found."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits, in the unit of what was measured."""

    estimate: float
    low: float
    high: float

    @property
    def direction(self) -> int:
        """+1 or -1 where both limits lie on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


NOTHING = Interval(math.nan, math.nan, math.nan)
"""Of what was not measured, or has no interval."""


def by_prompt(prompts: np.ndarray) -> np.ndarray:
    """What is resampled: prompts, or where there is only one its pictures: the interval is then about that prompt."""
    return prompts if len(np.unique(prompts)) > 1 else np.arange(len(prompts))


def bootstrap_mean(
    values: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
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
    return _interval(estimate, means_B, confidence)


def bootstrap_share(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> Interval:
    """`bootstrap_mean` of scores in [0, 1], with 95 %. Where all are 0, or all 1, nothing that is drawn from them differs, and the
    limit on the other side is the exact one for G groups of which none has another: 1 - 0.025^(1 / G) from there.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.

    Example:
        >>> found = bootstrap_share(np.zeros(96), np.repeat(np.arange(48), 2), np.random.default_rng(0))
        >>> found.low, round(found.high, 3)
        (0.0, 0.074)
    """
    found = bootstrap_mean(values, groups, rng)
    beyond = 1 - 0.025 ** (1 / len(np.unique(groups)))
    if np.all(np.asarray(values) == 0):
        return Interval(0.0, 0.0, beyond)
    if np.all(np.asarray(values) == 1):
        return Interval(1.0, 1 - beyond, 1.0)
    return found


def mean_over_strata(
    values: np.ndarray,
    groups: np.ndarray,
    strata: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of the strata's means, each of which counts the same whatever its size, as `bootstrap_mean` otherwise.

    A resample draws as many groups of each stratum as it has.

    Source: Davison and Hinkley, 1997, section 3.2 (several samples).

    Args:
        values: (N,) finite numbers, in any unit.
        groups: (N,) labels; equal labels belong to one prompt.
        strata: (N,) labels; a group in two strata is one in each.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.

    Returns:
        The mean and its interval, in the unit of `values`. The limits are NaN where a stratum has only one group.

    Raises:
        ValueError: what `bootstrap_mean` refuses.

    Example:
        >>> strata = np.array(["count", "colour", "colour", "colour"])
        >>> mean_over_strata(np.array([0.0, 1, 1, 1]), np.arange(4), strata, np.random.default_rng(0)).estimate
        0.5
    """
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}")
    if np.shape(strata) != np.shape(values):
        raise ValueError(f"expected a stratum for each of {len(values)} values, got shape {np.shape(strata)}")
    means, drawn, alone = [], np.zeros(resamples), False
    for stratum in np.unique(strata):
        inside = strata == stratum
        sums_G, counts_G = _totals(np.asarray(values)[inside], np.asarray(groups)[inside])
        drawn_BG = rng.integers(len(sums_G), size=(resamples, len(sums_G)))
        drawn += sums_G[drawn_BG].sum(1) / counts_G[drawn_BG].sum(1)
        means.append(float(sums_G.sum() / counts_G.sum()))
        alone |= len(sums_G) == 1
    if not means:
        raise ValueError("expected values, got none")
    estimate = sum(means) / len(means)
    return (
        Interval(estimate, float("nan"), float("nan")) if alone else _interval(estimate, drawn / len(means), CONFIDENCE)
    )


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
) -> Interval:
    """The mean of after - before, where entry i of both is the same prompt and noise, as `bootstrap_mean`.

    What prompts and noise contribute to both cancels, so the interval is narrower than two separate ones suggest.

    Args:
        before: (N,) finite numbers.
        after: (N,) finite numbers, in the same unit and order.
        groups: (N,) labels; equal labels belong to one prompt.
        rng: drawn from.

    Raises:
        ValueError: the lengths differ, or what `bootstrap_mean` refuses.
    """
    if len(before) != len(after):
        raise ValueError(f"expected pairs, got {len(before)} values before and {len(after)} after: keep what both have")
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return bootstrap_mean(difference, groups, rng)


def mean_over_runs(
    values_RN: np.ndarray,
    groups_N: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean over a method's runs and their pictures, with an interval over runs and prompts.

    Every run has the same pictures, so runs and prompts are crossed: a resample draws R runs and, apart from them, G prompts, with
    replacement. One run is `bootstrap_mean`: its interval is about other prompts, not about other seeds. Limits stay within the
    values that were seen.

    Source: the two-way ("pigeonhole") bootstrap, Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007. Of few
    runs it knows too little: a resample of R has (R - 1)/R of their variance and normal tails. So each run counts 1 + c (w - 1)
    times, w how often it was drawn, c = sqrt(R/(R - 1)) t/z with the quantiles t and z of the upper limit, of Student's distribution
    with R - 1 degrees of freedom and of the normal one: where runs alone differ, that is nearly Student's interval, and with two
    runs, whose resamples have three values, 0.72 of it.

    Args:
        values_RN: finite numbers, a row a run, columns in the same order in every run.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: what `bootstrap_mean` refuses.
    """
    options: Mapping[str, Any] = {"resamples": resamples, "confidence": confidence}
    if len(values_RN) == 1:
        return bootstrap_mean(values_RN[0], groups_N, rng, **options)
    sums_RG, counts_G = _by_run(values_RN, groups_N)
    runs_BR = _drawn_runs(rng, len(sums_RG), resamples, confidence, freedom=len(sums_RG) - 1)
    prompts_BG = _drawn(rng, len(counts_G), resamples)
    means_B = _weighted(runs_BR, sums_RG, prompts_BG) / (prompts_BG @ counts_G)
    estimate = float(sums_RG.mean(0).sum() / counts_G.sum())
    return _interval(estimate, means_B.clip(np.min(values_RN), np.max(values_RN)), confidence)


def difference_of_methods(
    lower_RN: np.ndarray,
    higher_SN: np.ndarray,
    groups_N: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of one method's runs minus that of another's, paired by picture, with an interval over runs and prompts.

    Column i of both is the same prompt and noise, so a resample draws its prompts once for both methods, and the runs of each apart,
    widened as by `mean_over_runs` with the degrees of freedom of their difference (Welch's). With one run each it is
    `paired_difference`.

    Args:
        lower_RN: what is subtracted; as `mean_over_runs`.
        higher_SN: from what.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.

    Raises:
        ValueError: what `paired_difference` refuses.
    """
    methods = (lower_RN, higher_SN)
    (found,) = differences_of_methods(methods, [(1, 0)], groups_N, rng, resamples=resamples)
    return found


def differences_of_methods(
    values_MRN: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    groups_N: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """`difference_of_methods` of several pairs, each as if it were the only one: prompts are drawn once for all of them.

    Args:
        values_MRN: of every method, as `mean_over_runs`.
        pairs: the places of what is higher and of what is subtracted.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: what `paired_difference` refuses.

    Example:
        >>> one, two = np.zeros((1, 4)), np.ones((3, 4))
        >>> differences_of_methods((one, two), [(1, 0)], np.arange(4), np.random.default_rng(0))
        [Interval(estimate=1.0, low=1.0, high=1.0)]
    """
    sums_MRG = [_by_run(values_RN, groups_N)[0] for values_RN in values_MRN]
    _, counts_G = _totals(values_MRN[0][0], groups_N)
    begin = rng.bit_generator.state

    @cache
    def places() -> tuple[np.ndarray, np.ndarray]:
        rng.bit_generator.state = begin
        drawn_BG = rng.integers(len(counts_G), size=(resamples, len(counts_G)))
        return drawn_BG, counts_G[drawn_BG].sum(1)

    @cache
    def counted() -> tuple[np.ndarray, np.ndarray, Any]:
        rng.bit_generator.state = begin
        prompts_BG = _drawn(rng, len(counts_G), resamples)
        return prompts_BG, prompts_BG @ counts_G, rng.bit_generator.state

    def one(higher: int, lower: int) -> Interval:
        if len(values_MRN[higher]) == len(values_MRN[lower]) == 1:
            sums_G, _ = _totals(values_MRN[higher][0] - values_MRN[lower][0], groups_N)
            estimate = float(sums_G.sum() / counts_G.sum())
            if len(counts_G) == 1:
                return Interval(estimate, float("nan"), float("nan"))
            drawn_BG, number_B = places()
            return _interval(estimate, sums_G[drawn_BG].sum(1) / number_B, confidence)
        prompts_BG, number_B, rng.bit_generator.state = counted()
        freedom = _freedom(*(sums_MRG[method].sum(1) for method in (higher, lower)))
        higher_B, lower_B = (
            _weighted(
                _drawn_runs(rng, len(sums_MRG[method]), resamples, confidence, freedom=freedom),
                sums_MRG[method],
                prompts_BG,
            )
            for method in (higher, lower)
        )
        estimate = float((sums_MRG[higher].mean(0) - sums_MRG[lower].mean(0)).sum() / counts_G.sum())
        both = (values_MRN[higher], values_MRN[lower])
        reach = max(map(np.max, both)) - min(map(np.min, both))
        return _interval(estimate, ((higher_B - lower_B) / number_B).clip(-reach, reach), confidence)

    return [one(higher, lower) for higher, lower in pairs]


def improvement(
    lower_RN: np.ndarray,
    higher_SN: np.ndarray,
    groups_N: np.ndarray,
    rng: np.random.Generator,
) -> Interval:
    """The probability that a run of one method is better on a prompt than a run of another: P(X > Y) + P(X = Y) / 2.

    On every prompt each run of one is compared with each of the other by the mean over the prompt's pictures; the mean over
    prompts is the estimate, its interval resamples runs and prompts as `difference_of_methods`.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021, section 4.3, with
    prompts for tasks.

    Args:
        lower_RN: Y; as `mean_over_runs`.
        higher_SN: X.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from.

    Returns:
        A number in [0, 1]; limits are NaN where there is only one prompt and one run of each.

    Raises:
        ValueError: what `mean_over_runs` refuses.

    Example:
        >>> improvement(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]), np.arange(2), np.random.default_rng(0)).estimate
        0.75
    """
    (lower_RG, counts_G), (higher_SG, _) = _by_run(lower_RN, groups_N), _by_run(higher_SN, groups_N)
    x_SRG, y_SRG = (higher_SG / counts_G)[:, None], (lower_RG / counts_G)[None]
    won_SRG = (x_SRG > y_SRG) + 0.5 * (x_SRG == y_SRG)
    runs_S, runs_R, prompts = won_SRG.shape
    if won_SRG.size == 1:
        return Interval(float(won_SRG.mean()), float("nan"), float("nan"))
    drawn_BG = _drawn(rng, prompts, RESAMPLES)
    freedom = _freedom(won_SRG.mean((1, 2)), won_SRG.mean((0, 2)))
    drawn_BS, drawn_BR = (_drawn_runs(rng, runs, RESAMPLES, CONFIDENCE, freedom=freedom) for runs in (runs_S, runs_R))
    wins_B = sum(
        drawn_BS[:, s] * drawn_BR[:, r] * (drawn_BG @ won_SRG[s, r]) for s in range(runs_S) for r in range(runs_R)
    )
    return _interval(float(won_SRG.mean()), (np.asarray(wins_B) / won_SRG.size).clip(0, 1), CONFIDENCE)


def rank_correlation(x_M: np.ndarray, y_M: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """Whether two measures put the same things in the same order: Spearman's rho, ties at their mean rank.

    The interval is about things like these M, each measured as well as these were: noise in either measure pulls rho towards 0.
    With z = artanh(rho) it is tanh(z ± q sqrt((1 + rho^2 / 2) / (M - 3))), q the normal quantile.

    Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65, 2000.

    Args:
        x_M: finite numbers, one for each of at least 4 things.
        y_M: another measure of the same things.
        confidence: of the interval, in (0, 1).

    Returns:
        Rho in [-1, 1]. It and its limits are NaN where a measure is the same for all; limits are NaN at exactly 1 and -1, where
        the formula has none.

    Raises:
        ValueError: fewer than 4 things, different lengths, or a number that is not finite.

    Example:
        >>> found = rank_correlation(np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 2, 3, 5, 4]))
        >>> round(found.estimate, 3), round(found.low, 2), round(found.high, 2)
        (0.9, -0.17, 1.0)
    """
    if np.shape(x_M) != np.shape(y_M) or np.ndim(x_M) != 1 or len(x_M) < 4:
        raise ValueError(f"expected two measures of at least 4 things, got shapes {np.shape(x_M)} and {np.shape(y_M)}")
    if not (np.isfinite(x_M).all() and np.isfinite(y_M).all()):
        raise ValueError("expected finite numbers, got some that are not: leave out what was not measured")
    nothing = float("nan")
    if len(np.unique(x_M)) == 1 or len(np.unique(y_M)) == 1:
        return Interval(nothing, nothing, nothing)
    rho = float(np.corrcoef(_ranks(x_M), _ranks(y_M))[0, 1])
    if abs(rho) > 1 - 1e-12:
        return Interval(float(np.sign(rho)), nothing, nothing)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt((1 + rho**2 / 2) / (len(x_M) - 3))
    return Interval(rho, *(float(np.tanh(np.arctanh(rho) + sign * reach)) for sign in (-1, 1)))


def _ranks(x_M: np.ndarray) -> np.ndarray:
    """From 1, equal values at the mean of their ranks."""
    _, place_M, counts = np.unique(x_M, return_inverse=True, return_counts=True)
    ranks_M: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place_M]
    return ranks_M


def _by_run(values_RN: np.ndarray, groups_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values of every run and group, (R, G), and their number, (G,)."""
    totals = [_totals(values_N, groups_N) for values_N in values_RN]
    return np.stack([sums_G for sums_G, _ in totals]), totals[0][1]


def _drawn(rng: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """How often each of n is drawn in each resample, (B, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples)


def _drawn_runs(rng: np.random.Generator, n: int, resamples: int, confidence: float, *, freedom: float) -> np.ndarray:
    """The same of runs, of which there are few: further from 1 than they were drawn, as `mean_over_runs` says, (B, n)."""
    drawn_BR = _drawn(rng, n, resamples)
    if n == 1:
        return drawn_BR
    upper = (1 + confidence) / 2
    wider = np.sqrt(n / (n - 1)) * stdtrit(freedom, upper) / NormalDist().inv_cdf(upper)
    return 1 + wider * (drawn_BR - 1)


def _freedom(*means: np.ndarray) -> float:
    """Degrees of freedom of a difference of two means, from the (R,) values of each: Welch, "The generalization of 'Student's' problem
    when several different population variances are involved", Biometrika 34, 1947. A single value has no variance of its own.
    """
    several = [values_R for values_R in means if len(values_R) > 1]
    squares = [values_R.var(ddof=1) / len(values_R) for values_R in several]
    if not any(squares):
        return float(sum(len(values_R) - 1 for values_R in several))
    each = (square**2 / (len(values_R) - 1) for square, values_R in zip(squares, several, strict=True))
    return float(sum(squares) ** 2 / sum(each))


def _weighted(runs_BR: np.ndarray, sums_RG: np.ndarray, prompts_BG: np.ndarray) -> np.ndarray:
    """Of every resample the sum over its prompts, as the mean over its runs, (B,)."""
    return ((runs_BR @ sums_RG) * prompts_BG).sum(1) / len(sums_RG)


def _interval(estimate: float, resampled_B: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(resampled_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


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
