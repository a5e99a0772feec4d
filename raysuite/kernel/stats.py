"""Estimates with their intervals. Every draw comes from the generator that the caller passes.

Axis legend: N values, G groups (prompts), R and S runs (seeds) of two methods, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import expit, logit, stdtrit

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
    _check(resamples, confidence)
    sums_G, counts_G = _totals(values, groups)
    estimate = float(sums_G.sum() / counts_G.sum())
    if len(sums_G) == 1:
        return Interval(estimate, float("nan"), float("nan"))
    drawn_BG = _drawn(rng, len(sums_G), resamples)
    return _interval(estimate, drawn_BG @ sums_G / (drawn_BG @ counts_G), confidence)


def bootstrap_share(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> Interval:
    """`bootstrap_mean` of scores in [0, 1], with 95 %. Where all are 0, or all 1, nothing that is drawn from them differs, and the
    limit on the other side is the exact one for G groups of which none has another (`_unseen`).

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.

    Example:
        >>> found = bootstrap_share(np.zeros(96), np.repeat(np.arange(48), 2), np.random.default_rng(0))
        >>> found.low, round(found.high, 3)
        (0.0, 0.074)
    """
    found = bootstrap_mean(values, groups, rng)
    beyond = _unseen(len(np.unique(groups)), CONFIDENCE)
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

    A resample draws as many groups of each stratum as it has. What n groups drawn from n say of their mean has (n - 1)/n of the
    variance that it should have, which adds up over strata of few groups, so each stratum's part is widened by sqrt(n/(n - 1)).
    Limits stay within the values that were seen.

    Source: Davison and Hinkley, 1997, sections 2.3 (the factor) and 3.2 (several samples).

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
    _check(resamples, CONFIDENCE)
    if np.shape(strata) != np.shape(values):
        raise ValueError(f"expected a stratum for each of {len(values)} values, got shape {np.shape(strata)}")
    means, drawn, alone = [], np.zeros(resamples), False
    for stratum in np.unique(strata):
        inside = strata == stratum
        sums_G, counts_G = _totals(np.asarray(values)[inside], np.asarray(groups)[inside])
        mean, groups_inside = float(sums_G.sum() / counts_G.sum()), len(sums_G)
        means.append(mean)
        if groups_inside == 1:
            alone = True
            continue
        drawn_BG = _drawn(rng, groups_inside, resamples)
        drawn += math.sqrt(groups_inside / (groups_inside - 1)) * (drawn_BG @ sums_G / (drawn_BG @ counts_G) - mean)
    if not means:
        raise ValueError("expected values, got none")
    estimate = sum(means) / len(means)
    if alone:
        return Interval(estimate, float("nan"), float("nan"))
    return _interval(estimate, (estimate + drawn / len(means)).clip(np.min(values), np.max(values)), CONFIDENCE)


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

    Every run has the same pictures, so runs and prompts are crossed. The mean over them is off by what runs differ (a), by what
    prompts differ (b), and by what is left to each run on each prompt (e): var = a/R + b/G + e/(R G). Means of runs differ by a + e/G,
    means of prompts by b + e/R. So what is drawn is

        mean + s t + k (mean of G prompts drawn with replacement - mean)

    where s^2 = var(means of runs)/R, t is of Student's distribution with R - 1 degrees of freedom, and k takes e, which the part of
    the runs holds, out of the part of the prompts: k^2 = 1 - min(e/(R G), s^2)/(b/G + e/(R G)), or 0. It takes no more than the runs
    are seen to hold, so that an interval over both is not narrower than one over prompts. Where runs alone differ that is Student's
    interval, where prompts alone do it is `bootstrap_mean`, as it is of one run: its interval is about other prompts, not about
    other seeds. Limits stay within the values that were seen.

    Source: variance components of two crossed factors, Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4. Owen,
    "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007, says why not to draw both and multiply: that counts e
    three times. How often intervals hold the truth is in `tests/kernel/coverage.py`.

    Args:
        values_RN: finite numbers, a row a run, columns in the same order in every run.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: what `bootstrap_mean` refuses.
    """
    sums_RG, counts_G = _by_run(values_RN, groups_N)
    seen = float(np.min(values_RN)), float(np.max(values_RN))
    return _over_runs([_Sum((sums_RG,), *seen)], counts_G, rng, resamples, confidence)[0]


def difference_of_methods(
    lower_RN: np.ndarray,
    higher_SN: np.ndarray,
    groups_N: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of one method's runs minus that of another's, paired by picture, with an interval over runs and prompts.

    Column i of both is the same prompt and noise, so that what prompts add to both cancels. The interval has the parts of
    `mean_over_runs`: that of the runs adds the variances of both methods and has the degrees of freedom of their difference (Welch's),
    that of the prompts is of the differences of their means. A method with one run adds nothing to the part of the runs: with one
    run each this is `paired_difference`.

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
    """`difference_of_methods` of several pairs, each as if it were the only one: what is drawn is drawn once for all of them.

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
    lowest_M, highest_M = ([float(of(values_RN)) for values_RN in values_MRN] for of in (np.min, np.max))
    differences = [
        _Sum((sums_MRG[x], -sums_MRG[y]), lowest_M[x] - highest_M[y], highest_M[x] - lowest_M[y]) for x, y in pairs
    ]
    return _over_runs(differences, counts_G, rng, resamples, confidence)


def improvements(
    values_MRN: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    groups_N: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """The probability that a run of one method is better on a prompt than a run of another: P(X > Y) + P(X = Y) / 2, of several pairs.

    On every prompt each run of one is compared with each of the other by the mean over the prompt's pictures; the mean over
    prompts is the estimate. Its interval has the parts of `difference_of_methods`, a run's value being how often it wins, on the scale
    of log odds. Where X wins always, or never, nothing differs: then the other limit is the exact one for as many pairs of runs as
    there are with no run in two of them, or for the prompts where these are fewer or there is one run each.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021, section 4.3, with
    prompts for tasks.

    Args:
        values_MRN: of every method, as `mean_over_runs`.
        pairs: the places of X and of Y.
        groups_N: labels; equal labels belong to one prompt.
        rng: drawn from, once for all pairs.
        resamples: number of bootstrap resamples, at least 1.
        confidence: of the intervals, in (0, 1).

    Returns:
        Numbers in [0, 1]; limits are NaN where there is only one prompt and one run of each.

    Raises:
        ValueError: what `mean_over_runs` refuses.

    Example:
        >>> values = np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])
        >>> improvements(values, [(0, 1)], np.arange(2), np.random.default_rng(0))[0].estimate
        0.75
    """
    _, counts_G = _totals(values_MRN[0][0], groups_N)
    means_MRG = [_by_run(values_RN, groups_N)[0] / counts_G for values_RN in values_MRN]
    wins, unseen = [], []
    for x, y in pairs:
        x_SRG, y_SRG = means_MRG[x][:, None], means_MRG[y][None]
        # means of equal scores may round differently
        tied_SRG = np.abs(x_SRG - y_SRG) <= 1e-9 * np.maximum(np.abs(x_SRG), np.abs(y_SRG))
        won_SRG = np.where(tied_SRG, 0.5, x_SRG > y_SRG)
        wins.append(_Sum((won_SRG.mean(1), won_SRG.mean(0) - won_SRG.mean((0, 1)))))
        several = [runs for runs in won_SRG.shape[:2] if runs > 1]
        unseen.append(_unseen(min([len(counts_G), *several]), confidence))
    found = _over_runs(wins, np.ones(len(counts_G)), rng, resamples, confidence)
    return [_probability(*of) for of in zip(found, unseen, strict=True)]


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


def _check(resamples: int, confidence: float) -> None:
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected at least 1 resample and a confidence in (0, 1), got {resamples} and {confidence}")


def _drawn(rng: np.random.Generator, groups: int, resamples: int) -> np.ndarray:
    """How often each of G groups is among G that are drawn with replacement, (B, G)."""
    places_BG = rng.integers(groups, size=(resamples, groups)) + groups * np.arange(resamples)[:, None]
    return np.bincount(places_BG.ravel(), minlength=places_BG.size).reshape(places_BG.shape)


def _unseen(trials: int, confidence: float) -> float:
    """How likely something may be that none of so many independent trials has shown: Clopper and Pearson's upper limit."""
    return float(1 - ((1 - confidence) / 2) ** (1 / trials))


def _probability(found: Interval, unseen: float) -> Interval:
    """With limits as far away on the scale of log odds, by its slope at the estimate; `unseen` away from 0 and 1, which have none."""
    p = found.estimate
    if math.isnan(found.low):
        return found
    if p in (0, 1):
        return Interval(p, min(p, 1 - unseen), max(p, unseen))
    return Interval(p, *(float(expit(logit(p) + (limit - p) / (p * (1 - p)))) for limit in (found.low, found.high)))


@dataclass(frozen=True, eq=False)
class _Sum:
    """A quantity that is the sum of means over runs and prompts."""

    parts: tuple[np.ndarray, ...]
    """(R, G) each: sums over the values of every run and prompt."""
    lowest: float = -math.inf
    highest: float = math.inf
    """Between which it can be."""


def _over_runs(
    sums: Sequence[_Sum], counts_G: np.ndarray, rng: np.random.Generator, resamples: int, confidence: float
) -> list[Interval]:
    """Intervals over runs and prompts, as `mean_over_runs` says; what is drawn is drawn once for all of them."""
    _check(resamples, confidence)
    drawn_BG = _drawn(rng, len(counts_G), resamples).astype(float)
    counts_B = drawn_BG @ counts_G
    # every level once, so that limits are exactly Student's where runs alone differ
    levels_B = (rng.permutation(resamples) + 0.5) / resamples

    def one(of: _Sum) -> Interval:
        total_G = np.sum([part_RG.mean(0) for part_RG in of.parts], axis=0)
        estimate = float(total_G.sum() / counts_G.sum())
        several = [part_RG for part_RG in of.parts if len(part_RG) > 1]
        if len(counts_G) == 1 and not several:
            return Interval(estimate, float("nan"), float("nan"))
        prompts_B = drawn_BG @ total_G / counts_B - estimate
        error, freedom = _student([part_RG.sum(1) / counts_G.sum() for part_RG in several])
        left = sum(_left(part_RG, counts_G) for part_RG in several)
        spread = float(((total_G - estimate * counts_G) ** 2).sum())
        held = min(
            left, error**2 * counts_G.sum() ** 2 * (1 - 1 / len(counts_G))
        )  # both as squares, summed over prompts
        kept = math.sqrt(max(0.0, 1 - held / spread)) if spread else 0.0
        resampled_B = estimate + kept * prompts_B + (error * stdtrit(freedom, levels_B) if error else 0.0)
        return _interval(estimate, resampled_B.clip(of.lowest, of.highest), confidence)

    return [one(of) for of in sums]


def _left(part_RG: np.ndarray, counts_G: np.ndarray) -> float:
    """What neither runs nor prompts explain of the squared deviations of the mean over runs, summed over prompts."""
    runs = len(part_RG)
    means_R = part_RG.sum(1) / counts_G.sum()
    left_RG = part_RG - part_RG.mean(0) - np.outer(means_R - means_R.mean(), counts_G)
    return float((left_RG**2).sum() / (runs * (runs - 1)))


def _student(means: Sequence[np.ndarray]) -> tuple[float, float]:
    """The standard error of a sum of means, from the (R,) values of each, and its degrees of freedom: Welch, "The generalization of
    'Student's' problem when several different population variances are involved", Biometrika 34, 1947.
    """
    squares = [float(values_R.var(ddof=1)) / len(values_R) for values_R in means]
    if not any(squares):
        return 0.0, math.inf
    each = (square**2 / (len(values_R) - 1) for square, values_R in zip(squares, means, strict=True))
    return math.sqrt(sum(squares)), sum(squares) ** 2 / sum(each)


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
