"""Do two objectives push the same way? Estimates of agreement from inner products of per-unit gradients.

A unit is one prompt's group of samples; its gradients under all objectives come from the same rollouts. With g_{a,i} the
gradient of objective a on unit i, everything here derives from

    K_ab[i, j] = <g_{a,i}, g_{b,j}>,    (n, n),

or, where gradients are kept by timestep bin, from K_ab[i, s, j, t], (n, T, n, T): from their sums (`Gram`). The quantity of interest
is the direction E[g_a], what an update would do with infinitely many units; `batch_cosine` alone is about finite ones.

Axis legend: n units, T timestep bins, A objectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats

from raysuite.kernel.stats import Interval

CONFIDENCE = 0.95
FEWEST_UNITS = 8
"""Below this many units a jackknife says nothing."""
MOST_UNEQUAL = 0.8
"""The standard deviation of log |g_i| above which intervals of sizes are too narrow."""


@dataclass(frozen=True)
class Gram:
    """Inner products K[i, j] of unit i's gradient under one objective with unit j's under another, as sums.

    No estimate needs K itself, whose n^2 numbers are 8 MB for each bin and pair at 1,000 units. Its sums are inner products with
    the sum of all gradients. Axes after the units' may be anything, such as bins of both gradients (T, T).
    """

    total: np.ndarray
    """(...) sum of all K[i, j]."""
    diagonal_n: np.ndarray
    """(n, ...) K[i, i]."""
    own_n: np.ndarray
    """(n, ...) what unit i has a part in, K[i, i] counted twice: sum over j of K[i, j] + K[j, i]."""

    @classmethod
    def of(cls, a_nD: np.ndarray, b_nD: np.ndarray) -> Gram:
        """Of units' gradients under two objectives, (n, D) each, or (n, T, D) by bin."""
        bins = "ts" if a_nD.ndim == 3 else ""
        left, right = (f"{bins[:1]}d", f"{bins[1:]}d")
        a_D, b_D = a_nD.sum(0), b_nD.sum(0)
        return cls(
            total=np.einsum(f"{left},{right}->{bins}", a_D, b_D),
            diagonal_n=np.einsum(f"n{left},n{right}->n{bins}", a_nD, b_nD, optimize=True),
            own_n=np.einsum(f"n{left},{right}->n{bins}", a_nD, b_D, optimize=True)
            + np.einsum(f"{left},n{right}->n{bins}", a_D, b_nD, optimize=True),
        )

    @classmethod
    def stacked(cls, grams: Sequence[Gram]) -> Gram:
        """One with a last axis more: of the same units' other gradients, such as blocks of layers."""
        return cls(*(np.stack([getattr(gram, f.name) for gram in grams], -1) for f in fields(cls)))

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.diagonal_n)

    def __getitem__(self, index: Any) -> Gram:
        """Part of the axes after the units'."""
        rest = index if isinstance(index, tuple) else (index,)
        return Gram(self.total[rest], self.diagonal_n[(slice(None), *rest)], self.own_n[(slice(None), *rest)])

    def __add__(self, other: Gram) -> Gram:
        """Of gradients with the coordinates of both."""
        return Gram(self.total + other.total, self.diagonal_n + other.diagonal_n, self.own_n + other.own_n)

    def over_bins(self) -> Gram:
        """Of whole gradients from those by bin (T, T)."""
        return Gram(*(getattr(self, f.name).sum((-2, -1)) for f in fields(self)))


def off_diagonal_means(gram: Gram) -> np.ndarray:
    """U(K), the mean of K[i, j] over i != j: of all units, and then without each of them in turn, (1 + n, ...).

    U is an unbiased estimate of <E g_a, E g_b> where units are independent. Where they are drawn in rounds of m, without
    replacement from P prompts between which expected gradients have the covariance S_ab, it is too small by
    (m - 1) / (P - 1) tr S_ab / (n - 1): two units of one round are less alike than two of different ones.

    Units share their rollouts between objectives, so K[i, i] holds correlated noise: with it, a true cosine of 0 looks like
    a positive one, and one of 0.9 like a smaller one.
    """
    n = gram.units
    off = gram.total - gram.diagonal_n.sum(0)
    own_n = gram.own_n - 2 * gram.diagonal_n
    return np.concatenate([off[None] / (n * (n - 1)), (off - own_n) / ((n - 1) * (n - 2))])


def jackknife(values: np.ndarray) -> Interval:
    """A statistic of all units with its delete-one-unit interval on the statistic's own scale.

    Student's t has as many degrees of freedom as the spread over units lets the standard error have: n - 1 where units are normal,
    2 n / (kurtosis - 1) where few of them decide, at least 2.

    Source: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 3; the degrees of freedom after
    Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", 1946.

    Args:
        values: (1 + n,) the statistic of all units, then without each of them.
    """
    estimate, reach = float(values[0]), _reach(values)
    return Interval(estimate, estimate - reach, estimate + reach)


def positive_jackknife(values: np.ndarray) -> Interval:
    """The same for a quantity that is positive: the upper limit is on a logarithmic scale where the lower one is above 0.

    The larger such a quantity is, the more its estimate spreads, so that the truth lies above symmetrical limits far more often
    than below. Limits of simulated studies covered 94 to 98 % in place of 90 where units' sizes were spread
    lognormally by 0.7, and 86 to 98 in place of 80 where by 1.2 (docs/log.md).
    """
    found = jackknife(values)
    if found.low <= 0:
        return found
    return Interval(found.estimate, found.low, found.estimate * math.exp((found.estimate - found.low) / found.estimate))


def _reach(values: np.ndarray) -> float:
    """Half the width of a jackknife's interval."""
    n, off = len(values) - 1, values[1:] - values[1:].mean()
    squares = float(np.sum(off**2))
    if not squares:
        return 0.0
    kurtosis = n * float(np.sum(off**4)) / squares**2
    freedom = min(n - 1.0, max(2.0, 2 * n / (kurtosis - 1))) if kurtosis > 1 else n - 1.0
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt((n - 1) / n * squares)


def squared_norm(gram: Gram) -> Interval:
    """|E g|^2 of one objective, from its K. A lower limit at or below 0 means: no direction was found."""
    return positive_jackknife(off_diagonal_means(gram))


def has_direction(gram: Gram) -> bool:
    """Whether the units show that E g is not zero. Where they do not, there is no cosine to speak of.

    That is where the lower limit of `squared_norm` is above 0. At E g = 0 a jackknife takes the variance of U for twice what it is, so
    that noise alone passes in at most 0.5 % of studies, not in the 2.5 % of other intervals here. It is left so: a cosine with
    a direction found by luck misleads more than a dash.
    """
    return squared_norm(gram).low > 0


def power(gram: Gram) -> Interval:
    """The probability that another study of as many units finds this objective's direction (`has_direction`), in [0, 1].

    From the squared norm and its limits, by the normal approximation. A direction that was found has an estimate of at least 1/2
    however weak it is: where it is below `stats.ENOUGH_POWER`, it may have been found by luck, and then what it shares with another
    objective's noise looks like agreement.
    """
    norm = squared_norm(gram)
    reach = _reach(off_diagonal_means(gram))
    if not reach:
        return Interval(*([1.0 if norm.estimate > 0 else 0.0] * 3))
    quantile = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)
    strength = np.array([norm.estimate, norm.low, norm.high]) / reach
    return Interval(*(float(p) for p in scipy.stats.norm.cdf(quantile * (strength - 1))))


def unequal(gram: Gram) -> bool:
    """Whether units differ so much in size that intervals of squared norm and signal-to-noise are too narrow.

    That is where the logarithms of |g_i| have a standard deviation above `MOST_UNEQUAL`: a few units that were not drawn may
    then decide, and no interval can know of them.
    """
    squares = gram.diagonal_n
    return bool(0.5 * np.log(squares[squares > 0]).std() > MOST_UNEQUAL) if (squares > 0).any() else False


def expected_cosine(aa: Gram, bb: Gram, ab: Gram) -> Interval | None:
    """The cosine between E g_a and E g_b: U(K_ab) / sqrt(U(K_aa) U(K_bb)), with the interval of `_cosine_interval`.

    Returns:
        None where one of the objectives shows no direction.

    Raises:
        ValueError: fewer than `FEWEST_UNITS` units, or matrices of different shapes.
    """
    _check(aa, bb, ab)
    if not (has_direction(aa) and has_direction(bb)):
        return None
    return _cosine_interval(*map(off_diagonal_means, (aa, bb, ab)))


def batch_cosine(aa: Gram, bb: Gram, ab: Gram) -> float:
    """The cosine between the means of these very units' gradients: what one update of this size does.

    It grows with shared noise, and shrinks with noise that is not shared; it is no estimate of `expected_cosine`.
    """
    _check(aa, bb, ab)
    return float(ab.total / np.sqrt(aa.total * bb.total))


def signal_to_noise(aa: Gram) -> Interval:
    """|E g|^2 over the variance of one unit's gradient: 1 / snr units make a mean whose noise equals its signal."""
    n, diagonal = aa.units, aa.diagonal_n
    sizes = np.concatenate([[diagonal.mean()], (diagonal.sum() - diagonal) / (n - 1)])
    signal = off_diagonal_means(aa)
    return positive_jackknife(signal / (sizes - signal))


@dataclass(frozen=True)
class Matched:
    """Agreement after every timestep bin was given the same norm under both objectives."""

    cosine: Interval
    bins: tuple[int, ...]
    """Bins in which both objectives show a direction; the others are left out."""


def matched_cosine(aa: Gram, bb: Gram, ab: Gram) -> Matched | None:
    """`expected_cosine` of sum_t g^t / |E g^t|: what is left of disagreement once timestep weights are taken out.

    Args:
        aa: K of the first objective, by bin (T, T).
        bb: of the second.
        ab: of both.

    Returns:
        None where no bin shows a direction under both objectives.
    """
    _check(aa, bb, ab)
    bins = tuple(t for t in range(len(aa.total)) if all(has_direction(k[t, t]) for k in (aa, bb)))
    if not bins:
        return None
    products = [off_diagonal_means(k[np.ix_(bins, bins)]) for k in (aa, bb, ab)]  # (1 + n, T, T)
    scales = [np.clip(np.diagonal(u, axis1=1, axis2=2), np.finfo(float).tiny, None) ** -0.5 for u in products[:2]]
    sides = [(scales[0], scales[0]), (scales[1], scales[1]), (scales[0], scales[1])]
    weighted = [np.einsum("nst,ns,nt->n", u, *side) for u, side in zip(products, sides, strict=True)]
    # norms that are divided out in every estimate no longer say how uncertain they are: that is asked with fixed weights
    fixed = [np.einsum("nst,s,t->n", u, s[0], t[0]) for u, (s, t) in zip(products, sides, strict=True)]
    found, moving = _cosine_interval(*fixed), jackknife(_cosine(*weighted))
    limits = Interval(found.estimate, min(found.low, moving.low), max(found.high, moving.high))
    return Matched(_as_cosine(limits), bins)


def principal_directions(cosines_AA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How few directions a set of objectives has: shares of the eigenvalues of their cosines, and the eigenvectors.

    Estimated cosines need not form a positive matrix; negative eigenvalues are noise and count as 0. Noise makes the largest share too
    large: of six orthogonal directions, each 1/6 of all, it is 0.22 on average with clear directions and 0.27 with weak ones.
    There is no interval, since where eigenvalues are equal a jackknife's holds the truth in a third to three fifths of cases.

    Args:
        cosines_AA: symmetric, ones on the diagonal.

    Returns:
        (A,) shares in descending order, summing to 1, and (A, A) with one direction a row, in units of the objectives'
        directions.
    """
    values, vectors = scipy.linalg.eigh(cosines_AA)
    values = np.clip(values[::-1], 0, None)
    return values / values.sum(), vectors[:, ::-1].T


def _cosine_interval(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> Interval:
    """U(K_ab) / sqrt(U(K_aa) U(K_bb)) with all cosines that no norms can be ruled out with.

    The three U have a jackknife covariance S. A cosine c is held if for some norms u, v >= 0 the point (u^2, v^2, c u v) lies within
    the 95 % quantile of what was found, in the metric of S. With strong directions that is the jackknife's interval on the
    cosine's own scale. With weak ones it is wider, and at last holds all of [-1, 1]: where noise that two objectives share
    made both norms large enough to be found, it made the product large, too, and S knows.

    Source: Fieller, "Some Problems in Interval Estimation", 1954, for a ratio of two means; here with two norms, over which the
    distance is minimised (profiled). Simulated coverage is in docs/log.md.

    Args:
        aa, bb, ab: (1 + n,) each, of all units and without each of them.
    """
    found = np.stack([aa, bb, ab])
    n, off = found.shape[1] - 1, found[:, 1:] - found[:, 1:].mean(1, keepdims=True)
    covariance = (n - 1) / n * off @ off.T
    scale = np.maximum(np.sqrt(np.diagonal(covariance)), 1e-9 * np.abs(found[:, 0]) + np.finfo(float).tiny)
    metric = np.linalg.inv(covariance / np.outer(scale, scale) + 1e-9 * np.eye(3))
    estimate = float(np.clip(_cosine(aa, bb, ab)[0], -1, 1))
    reach = np.geomspace(1e-7, 2, 120)
    tried = np.unique(
        np.clip(np.concatenate([np.linspace(-1, 1, 41), estimate - reach, [estimate], estimate + reach]), -1, 1)
    )
    distance = _profile(found[:, 0] / scale, metric, scale, tried)
    limit = distance.min() + float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) ** 2
    held = np.flatnonzero(distance <= limit)

    def crossing(inside: int, outside: int) -> float:
        share = (limit - distance[inside]) / (distance[outside] - distance[inside])
        return float(tried[inside] + share * (tried[outside] - tried[inside]))

    low = crossing(held[0], held[0] - 1) if held[0] else -1.0
    high = crossing(held[-1], held[-1] + 1) if held[-1] + 1 < len(tried) else 1.0
    return Interval(estimate, min(low, estimate), max(high, estimate))


def _profile(found: np.ndarray, metric: np.ndarray, scale: np.ndarray, cosines_C: np.ndarray) -> np.ndarray:
    """The least squared distance from `found` to (u^2, v^2, c u v) / scale over u, v >= 0, for every cosine c, (C,).

    For a ratio r = v / u the points are u^2 (1, r^2, c r), a ray, to which the distance is known in closed form. The best ratio is
    looked for on a grid of logarithms, four times finer around the best of the time before.
    """
    whole = float(found @ metric @ found)
    middle = 0.5 * math.log(max(found[1], 1.0) * scale[1] / (max(found[0], 1.0) * scale[0]))
    centre_C, width, best_C = np.full(len(cosines_C), middle), 6.0, np.full(len(cosines_C), whole)
    for points in (121, 9, 9, 9, 9, 9, 9):
        log_r = centre_C + width * np.linspace(-1, 1, points)[:, None]
        r = np.exp(log_r)
        ray = np.stack([np.ones_like(r), r**2, cosines_C * r]) / scale[:, None, None]
        along = np.einsum("i,irc->rc", metric @ found, ray)
        length = np.einsum("irc,ij,jrc->rc", ray, metric, ray)
        distance = whole - np.where(along > 0, along, 0.0) ** 2 / length
        best = distance.argmin(0)
        best_C = np.minimum(best_C, np.take_along_axis(distance, best[None], 0)[0])
        centre_C = np.take_along_axis(log_r, best[None], 0)[0]
        width *= 2 / (points - 1)
    return best_C


def _cosine(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> np.ndarray:
    tiny = np.finfo(float).tiny
    return ab / (np.sqrt(np.clip(aa, tiny, None)) * np.sqrt(np.clip(bb, tiny, None)))


def _as_cosine(found: Interval) -> Interval:
    """Nothing in the estimates keeps them within [-1, 1]; what is reported is."""
    return Interval(*(float(np.clip(value, -1.0, 1.0)) for value in (found.estimate, found.low, found.high)))


def _check(*grams: Gram) -> None:
    shapes = [gram.diagonal_n.shape for gram in grams]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected inner products of the same units, got shapes {shapes}")
    if grams[0].units < FEWEST_UNITS:
        raise ValueError(f"expected at least {FEWEST_UNITS} units, got {grams[0].units}")
