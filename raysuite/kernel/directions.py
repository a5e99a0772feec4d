"""Do two objectives push the same way? Estimates of agreement from inner products of per-unit gradients.

A unit is one prompt's group of samples; its gradients under all objectives come from the same rollouts. With g_{a,i} the
gradient of objective a on unit i, everything here derives from

    K_ab[i, j] = <g_{a,i}, g_{b,j}>,    (n, n),

or, where gradients are kept by timestep bin, from K_ab[i, s, j, t], (n, T, n, T). The quantity of interest is the
direction E[g_a], what an update would do with infinitely many units; `batch_cosine` alone is about finite ones.

Axis legend: n units, T timestep bins, A objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.stats

from raysuite.kernel.stats import Interval

CONFIDENCE = 0.95
FEWEST_UNITS = 8
"""Below this many units a jackknife says nothing."""


def off_diagonal_means(gram: np.ndarray) -> np.ndarray:
    """U(K), the mean of K[i, j] over i != j: of all units, and then without each of them in turn.

    U is an unbiased estimate of <E g_a, E g_b>. Units share their rollouts between objectives, so K[i, i] holds correlated
    noise: with it, a true cosine of 0 looks like a positive one, and one of 0.9 like a smaller one.

    Args:
        gram: (n, n, ...).

    Returns:
        (1 + n, ...).
    """
    n = len(gram)
    diagonal = np.moveaxis(np.diagonal(gram), -1, 0)
    off = gram.sum((0, 1)) - diagonal.sum(0)
    own = gram.sum(1) + gram.sum(0) - 2 * diagonal
    return np.concatenate([off[None] / (n * (n - 1)), (off - own) / ((n - 1) * (n - 2))])


def jackknife(values: np.ndarray) -> Interval:
    """A statistic of all units with its delete-one-unit interval (Student's t, n - 1 degrees of freedom).

    Source: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 3.

    Args:
        values: (1 + n,) the statistic of all units, then without each of them.
    """
    estimate, without = float(values[0]), values[1:]
    n = len(without)
    error = float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Interval(estimate, estimate - reach, estimate + reach)


def squared_norm(gram: np.ndarray) -> Interval:
    """|E g|^2 of one objective, from its K (n, n). A lower limit at or below 0 means: no direction was found."""
    return jackknife(off_diagonal_means(gram))


def has_direction(gram: np.ndarray) -> bool:
    """Whether the units show that E g is not zero, at 95 %. Where they do not, there is no cosine to speak of."""
    return squared_norm(gram).low > 0


def expected_cosine(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> Interval | None:
    """The cosine between E g_a and E g_b: U(K_ab) / sqrt(U(K_aa) U(K_bb)), jackknifed.

    Limits are taken on the cosine's own scale and cut off at 1: on that of atanh, intervals near 1 cover far too rarely (23 %
    of simulations where the truth is 1, against 100 % here; docs/log.md).

    Returns:
        None where one of the objectives shows no direction.

    Raises:
        ValueError: fewer than `FEWEST_UNITS` units, or matrices of different shapes.
    """
    _check(aa, bb, ab)
    if not (has_direction(aa) and has_direction(bb)):
        return None

    return _as_cosine(jackknife(_cosine(*map(off_diagonal_means, (aa, bb, ab)))))


def batch_cosine(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> float:
    """The cosine between the means of these very units' gradients: what one update of this size does.

    It grows with shared noise, and shrinks with noise that is not shared; it is no estimate of `expected_cosine`.
    """
    _check(aa, bb, ab)
    return float(ab.sum() / np.sqrt(aa.sum() * bb.sum()))


def signal_to_noise(aa: np.ndarray) -> Interval:
    """|E g|^2 over the variance of one unit's gradient: 1 / snr units make a mean whose noise equals its signal."""
    n, diagonal = len(aa), np.diagonal(aa)
    sizes = np.concatenate([[diagonal.mean()], (diagonal.sum() - diagonal) / (n - 1)])
    signal = off_diagonal_means(aa)
    return jackknife(signal / (sizes - signal))


@dataclass(frozen=True)
class Matched:
    """Agreement after every timestep bin was given the same norm under both objectives."""

    cosine: Interval
    bins: tuple[int, ...]
    """Bins in which both objectives show a direction; the others are left out."""


def matched_cosine(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> Matched | None:
    """`expected_cosine` of sum_t g^t / |E g^t|: what is left of disagreement once timestep weights are taken out.

    Args:
        aa, bb, ab: (n, T, n, T).

    Returns:
        None where no bin shows a direction under both objectives.
    """
    _check(aa, bb, ab)
    bins = tuple(t for t in range(aa.shape[1]) if all(has_direction(k[:, t, :, t]) for k in (aa, bb)))
    if not bins:
        return None
    held = np.array(bins)
    aa, bb, ab = (k[:, held][..., held] for k in (aa, bb, ab))

    products = [off_diagonal_means(k.transpose(0, 2, 1, 3)) for k in (aa, bb, ab)]  # (1 + n, T, T)
    scales = [np.clip(np.diagonal(u, axis1=1, axis2=2), np.finfo(float).tiny, None) ** -0.5 for u in products[:2]]
    sides = [(scales[0], scales[0]), (scales[1], scales[1]), (scales[0], scales[1])]
    weighted = [np.einsum("nst,ns,nt->n", u, *side) for u, side in zip(products, sides, strict=True)]
    return Matched(_as_cosine(jackknife(_cosine(*weighted))), bins)


def over_bins(gram: np.ndarray) -> np.ndarray:
    """K (n, n) of whole gradients from K by bin (n, T, n, T)."""
    return gram.sum((1, 3))


def principal_directions(cosines_AA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How few directions a set of objectives has: shares of the eigenvalues of their cosines, and the eigenvectors.

    Estimated cosines need not form a positive matrix; negative eigenvalues are noise and count as 0.

    Args:
        cosines_AA: symmetric, ones on the diagonal.

    Returns:
        (A,) shares in descending order, summing to 1, and (A, A) with one direction a row, in units of the objectives'
        directions.
    """
    values, vectors = scipy.linalg.eigh(cosines_AA)
    values = np.clip(values[::-1], 0, None)
    return values / values.sum(), vectors[:, ::-1].T


def _cosine(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> np.ndarray:
    tiny = np.finfo(float).tiny
    return ab / (np.sqrt(np.clip(aa, tiny, None)) * np.sqrt(np.clip(bb, tiny, None)))


def _as_cosine(found: Interval) -> Interval:
    """Nothing in the estimates keeps them within [-1, 1]; what is reported is."""
    return Interval(*(float(np.clip(value, -1.0, 1.0)) for value in (found.estimate, found.low, found.high)))


def _check(*grams: np.ndarray) -> None:
    shapes: Sequence[tuple[int, ...]] = [gram.shape for gram in grams]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected inner products of the same units, got shapes {shapes}")
    if shapes[0][0] < FEWEST_UNITS:
        raise ValueError(f"expected at least {FEWEST_UNITS} units, got {shapes[0][0]}")
