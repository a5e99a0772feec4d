"""Estimates of agreement on synthetic gradients whose expected directions are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from raysuite.kernel.directions import (
    Gram,
    batch_cosine,
    expected_cosine,
    has_direction,
    jackknife,
    matched_cosine,
    off_diagonal_means,
    power,
    principal_directions,
    signal_to_noise,
    squared_norm,
    unequal,
)
from raysuite.kernel.stats import ENOUGH_POWER, Interval
from tests.kernel.coverage import World, holds

DIMENSIONS = 40


def directions(cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors with this cosine."""
    a, b = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
    a[0], b[0], b[1] = 1.0, cosine, np.sqrt(1 - cosine**2)
    return a, b


def units(
    cosine: float, n: int, rng: np.random.Generator, *, shared: float = 0.7, noise: float = 0.5
) -> list[np.ndarray]:
    """Gradients (n, D) of two objectives whose noise is partly the same, as it is where they share rollouts."""
    common = rng.normal(size=(n, DIMENSIONS))
    return [
        mean + noise * (shared * common + np.sqrt(1 - shared**2) * rng.normal(size=(n, DIMENSIONS)))
        for mean in directions(cosine)
    ]


def grams(g: list[np.ndarray]) -> tuple[Gram, Gram, Gram]:
    """Of each with itself, and of both; by bin where gradients are."""
    return Gram.of(g[0], g[0]), Gram.of(g[1], g[1]), Gram.of(g[0], g[1])


def summed(k: np.ndarray) -> Gram:
    """Of all inner products of units, (n, n, ...)."""
    return Gram(k.sum((0, 1)), np.moveaxis(np.diagonal(k), -1, 0), k.sum(0) + k.sum(1))


def test_sums_of_inner_products_are_those_of_all_of_them() -> None:
    rng = np.random.default_rng(12)
    a, b = (rng.normal(size=(9, 3, DIMENSIONS)) for _ in range(2))
    k = np.einsum("isd,jtd->ijst", a, b)
    whole, of_bin = k.sum((2, 3)), k[:, :, 1, 2]
    held = k[:, :, [0, 2]][..., [0, 2]]
    for found, expected in (
        (Gram.of(a, b), k),
        (Gram.of(a, b).over_bins(), whole),
        (Gram.of(a.sum(1), b.sum(1)), whole),
        (Gram.of(a, b)[1, 2], of_bin),
        (Gram.of(a, b)[np.ix_([0, 2], [0, 2])], held),
        (Gram.of(a[..., :7], b[..., :7]) + Gram.of(a[..., 7:], b[..., 7:]), k),
        (Gram.stacked([Gram.of(a[:, 0], b[:, 0]), Gram.of(a[:, 1], b[:, 2])])[1], of_bin),
    ):
        for name, values in vars(summed(expected)).items():
            np.testing.assert_allclose(vars(found)[name], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("truth", [0.0, 0.5, 0.9])
def test_expected_cosine_is_unbiased_and_covers(truth: float) -> None:
    """240 studies of 48 units: bias below 0.01, and the 95 % interval holds the truth in 92 % to 99 % of them."""
    rng = np.random.default_rng(int(100 * truth))
    found = [expected_cosine(*grams(units(truth, 48, rng))) for _ in range(240)]
    assert all(f is not None for f in found)
    estimates = np.array([f.estimate for f in found if f])
    assert abs(estimates.mean() - truth) < 0.01
    covered = np.mean([f.low <= truth <= f.high for f in found if f])
    assert 0.92 <= covered <= 0.99


@pytest.mark.parametrize("truth", [0.98, 1.0])
def test_intervals_cover_near_1_too(truth: float) -> None:
    """Where the limit of 1 cuts intervals off they may cover more often than 99 %, but they stay narrow."""
    rng = np.random.default_rng(6)
    found = [f for _ in range(200) if (f := expected_cosine(*grams(units(truth, 48, rng, noise=0.3))))]
    assert len(found) == 200
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.92
    assert np.median([f.high - f.low for f in found]) < 0.06


def test_the_naive_cosine_is_not_that() -> None:
    """With shared noise a true 0 looks like agreement, more so with fewer units."""
    rng = np.random.default_rng(0)
    naive = [np.mean([batch_cosine(*grams(units(0.0, n, rng))) for _ in range(100)]) for n in (8, 64)]
    assert naive[0] > naive[1] > 0.05
    mean = [g.mean(0) for g in units(0.3, 16, rng)]
    one = [m[None] * np.ones((16, 1)) for m in mean]
    expected = mean[0] @ mean[1] / np.linalg.norm(mean[0]) / np.linalg.norm(mean[1])
    assert batch_cosine(*grams(one)) == pytest.approx(expected)


def test_without_a_direction_there_is_no_cosine() -> None:
    """Pure noise: a direction is claimed in at most 0.5 % of studies, within error."""
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=(32, DIMENSIONS)) for _ in range(1000)]
    claimed = np.mean([has_direction(Gram.of(g, g)) for g in noise])
    assert claimed < 0.01
    real = units(0.5, 32, rng)[0]
    quiet = next(g for g in noise if not has_direction(Gram.of(g, g)))
    assert expected_cosine(*grams([real, quiet])) is None


@pytest.mark.parametrize(
    "world",
    [World(), World(heavy=True), World(spread=0.7), World(spread=0.7, noise=1.0)],
    ids=["normal", "heavy tails", "unequal units", "unequal units, more noise"],
)
def test_intervals_of_sizes_cover_with_unequal_units_and_heavy_tails_too(world: World) -> None:
    """240 studies of 48 units each. With symmetrical limits the third covered 88 to 90 %."""
    rng = np.random.default_rng(8)
    drawn = [world.grams(rng)[0] for _ in range(240)]
    assert np.mean([holds(squared_norm(gram), 1.0) for gram in drawn]) >= 0.92
    assert np.mean([holds(signal_to_noise(gram), world.snr) for gram in drawn]) >= 0.9


def test_units_whose_sizes_no_interval_knows_are_marked() -> None:
    """Sizes spread lognormally by 1.2, where the largest of a thousand units is 60 times the median; and by 0.3."""
    rng = np.random.default_rng(9)
    assert np.mean([unequal(World(spread=1.2, noise=1.0).grams(rng)[0]) for _ in range(50)]) > 0.9
    assert not any(unequal(World(spread=0.3, noise=1.0).grams(rng)[0]) for _ in range(50))


@pytest.mark.parametrize("truth", [0.0, 0.5])
def test_a_cosine_found_by_luck_has_an_interval_that_says_so(truth: float) -> None:
    """Shared noise of .95 and a direction that one study in ten finds: those that find it overrate agreement, and the jackknife's
    intervals would hold the truth in less than two thirds of them. Power is told to be low."""
    rng = np.random.default_rng(10)
    drawn = [World(cosine=truth, noise=1.45, shared=0.95).grams(rng) for _ in range(700)]
    passed = [study for study in drawn if has_direction(study[0]) and has_direction(study[1])]
    assert 0.05 < len(passed) / len(drawn) < 0.25
    found = [f for study in passed if (f := expected_cosine(*study))]
    plain = [jackknife(ab / np.sqrt(aa * bb)) for aa, bb, ab in (map(off_diagonal_means, study) for study in passed)]
    assert np.mean([f.estimate for f in found]) > truth + 0.1
    assert np.mean([f.low <= truth <= f.high for f in plain]) < 0.75
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.9
    assert np.mean([min(power(study[k]).estimate for k in (0, 1)) < ENOUGH_POWER for study in passed]) > 0.8


def test_power_by_arithmetic() -> None:
    """U = 4 and a standard error of 2 / t: twice as far from 0 as is needed. Power Phi(2 q - q) with q = 1.96, which is 97.5 %; at the
    lower limit, U - t e = 2, it is 1/2."""
    n = 400
    effect = np.where(np.arange(n) % 2, 1.0, -1.0)
    gram = summed(4 + (effect[:, None] + effect[None]) * 1.0)
    values = off_diagonal_means(gram)
    reach = values[0] - jackknife(values).low
    gram = summed(4 + (effect[:, None] + effect[None]) * 2 / reach)
    found = power(gram)
    assert squared_norm(gram).low == pytest.approx(2.0, rel=0.01)
    assert (found.estimate, found.low) == pytest.approx((0.975, 0.5), abs=0.005)
    assert found.high > 0.999


def test_the_same_gradients_have_cosine_1() -> None:
    gram = World().grams(np.random.default_rng(11))[0]
    assert expected_cosine(gram, gram, gram) == Interval(1.0, pytest.approx(1.0, abs=1e-4), 1.0)
    against = Gram(-gram.total, -gram.diagonal_n, -gram.own_n)
    assert expected_cosine(gram, gram, against) == Interval(-1.0, -1.0, pytest.approx(-1.0, abs=1e-4))


def test_signal_to_noise_by_arithmetic() -> None:
    """Signal 1, noise 0.5^2 in each of 40 dimensions: 1 / 10."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(100):
        g = units(0.0, 48, rng)[0]
        found.append(signal_to_noise(Gram.of(g, g)))
    assert np.mean([f.estimate for f in found]) == pytest.approx(0.1, rel=0.03)
    assert np.mean([f.low <= 0.1 <= f.high for f in found]) > 0.85


def test_off_diagonal_mean_by_arithmetic() -> None:
    gram = np.array([[100.0, 1.0, 2.0], [3.0, 100.0, 4.0], [5.0, 6.0, 100.0]])
    assert off_diagonal_means(summed(gram)) == pytest.approx([21 / 6, 10 / 2, 7 / 2, 4 / 2])
    rng = np.random.default_rng(7)
    by_bin = rng.normal(size=(6, 6, 2, 3))
    found = off_diagonal_means(summed(by_bin))
    assert found.shape == (7, 2, 3)
    for left_out in range(6):
        others = np.delete(np.delete(by_bin, left_out, 0), left_out, 1)
        expected = (others.sum((0, 1)) - sum(others[i, i] for i in range(5))) / 20
        np.testing.assert_allclose(found[1 + left_out], expected)
    assert squared_norm(summed(np.ones((8, 8)))).low == pytest.approx(1.0)


def binned(weights: list[np.ndarray], n: int, rng: np.random.Generator, noise: float = 0.1) -> list[np.ndarray]:
    """Gradients (n, T, D) of two objectives with the same direction in every bin, and other weights of the bins."""
    bins = len(weights[0])
    mean = np.zeros((bins, DIMENSIONS))
    mean[np.arange(bins), np.arange(bins)] = 1.0
    mean[:, bins] = 0.5  # bins share parameters: their gradients are not orthogonal
    return [w[:, None] * mean + noise * rng.normal(size=(n, bins, DIMENSIONS)) for w in weights]


def test_matching_takes_timestep_weights_out() -> None:
    """Two objectives that differ in their weights alone: matched they agree, raw they do not."""
    rng = np.random.default_rng(3)
    weights = [np.array([4.0, 1.0, 0.5]), np.array([0.5, 1.0, 4.0])]
    grams_by_bin = grams(binned(weights, 40, rng))
    raw = expected_cosine(*(k.over_bins() for k in grams_by_bin))
    matched = matched_cosine(*grams_by_bin)
    assert raw is not None and raw.high < 0.75
    assert matched is not None and matched.bins == (0, 1, 2)
    assert matched.cosine.estimate == pytest.approx(1.0, abs=0.01)


def test_matching_does_not_hide_other_directions() -> None:
    """The same weights and, in one bin of two, opposite directions of the same size: 0 after matching, too."""
    rng = np.random.default_rng(4)
    g = binned([np.array([2.0, 2.0])] * 2, 40, rng)
    for gradients in g:
        gradients[..., 2] = 0.1 * rng.normal(size=gradients.shape[:2])
    g[1][:, 1] *= -1
    matched = matched_cosine(*grams(g))
    assert matched is not None and matched.cosine.low < 0 < matched.cosine.high


def test_bins_without_a_direction_are_left_out() -> None:
    rng = np.random.default_rng(5)
    g = binned([np.array([1.0, 1.0, 1.0])] * 2, 40, rng)
    noise = rng.normal(size=(40, DIMENSIONS))
    g[0][:, 1] = noise - noise.mean(0)  # whose products of different units are below 0 on average
    assert not has_direction(Gram.of(g[0][:, 1], g[0][:, 1]))
    matched = matched_cosine(*grams(g))
    assert matched is not None and matched.bins == (0, 2)
    silent = [g[0][:, 1:2], g[1][:, 1:2]]
    assert matched_cosine(*grams(silent)) is None


def test_principal_directions() -> None:
    """Three objectives that agree and one that is at right angles: two directions, of 3/4 and 1/4."""
    cosines = np.eye(4)
    cosines[:3, :3] = 1.0
    shares, vectors = principal_directions(cosines)
    assert shares == pytest.approx([0.75, 0.25, 0, 0], abs=1e-12)
    assert np.abs(vectors[0]) == pytest.approx([3**-0.5] * 3 + [0], abs=1e-12)
    assert np.abs(vectors[1]) == pytest.approx([0, 0, 0, 1], abs=1e-12)


def test_the_largest_share_of_uncertain_cosines_is_too_large() -> None:
    """Six orthogonal directions hold a sixth each: so no share may be read without a word of caution."""
    rng, found = np.random.default_rng(13), []
    for noise in (0.05, 0.9):
        common = rng.normal(size=(20, 48, 1, DIMENSIONS))
        own = rng.normal(size=(20, 48, 6, DIMENSIONS))
        studies = np.eye(DIMENSIONS)[:6] + noise * (0.7 * common + np.sqrt(0.51) * own)
        shares = []
        for study in studies:
            products = np.array(
                [[off_diagonal_means(Gram.of(a, b))[0] for b in study.swapaxes(0, 1)] for a in study.swapaxes(0, 1)]
            )
            norms = np.sqrt(np.diagonal(products))
            shares.append(principal_directions(products / np.outer(norms, norms))[0][0])
        found.append(np.mean(shares))
    assert found[0] == pytest.approx(1 / 6, abs=0.01) and found[1] > 0.22


def test_too_few_units_and_other_units_are_refused() -> None:
    small, large = summed(np.eye(7)), summed(np.eye(9))
    with pytest.raises(ValueError, match="expected at least 8 units, got 7"):
        expected_cosine(small, small, small)
    with pytest.raises(ValueError, match="the same units"):
        batch_cosine(large, large, summed(np.eye(8)))


def test_few_units_that_decide_leave_few_degrees_of_freedom() -> None:
    """One of ten units moves the statistic by 1: squares of 0.9 and nine times 0.1 sum to 0.9, fourth powers to 0.657; a kurtosis of
    8.11 leaves 20 / 7.11 degrees of freedom. The standard error is sqrt(9 / 10 0.9).
    """
    found = jackknife(np.array([5.0, 1.0, *[0.0] * 9]))
    reach = t.ppf(0.975, 20 / (10 * 0.657 / 0.81 - 1)) * 0.9
    assert (found.low, found.estimate, found.high) == pytest.approx((5 - reach, 5, 5 + reach))
    even = jackknife(np.array([5.0, *[1.0, -1.0] * 5]))  # of kurtosis 1: all that normal units have
    assert even.high - 5 == pytest.approx(t.ppf(0.975, 9) * 3)


def test_matching_scales_each_bin_of_an_objective_by_its_own_norm() -> None:
    """Bins share parameters, weights differ, and one bin of two is turned round: (u + v) (u - v) is 0 whatever the weights."""
    rng = np.random.default_rng(14)
    g = binned([np.array([4.0, 1.0]), np.array([1.0, 4.0])], 40, rng)
    g[1][:, 1] *= -1
    matched = matched_cosine(*grams(g))
    assert matched is not None and matched.cosine.estimate == pytest.approx(0, abs=0.05)


def test_eigenvalues_below_0_count_as_0() -> None:
    """Estimated cosines that no three directions have: eigenvalues 1.9, 1.9 and -0.8."""
    shares, _ = principal_directions(np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]]))
    assert shares == pytest.approx([0.5, 0.5, 0])


def test_a_gradient_that_is_0_has_no_direction() -> None:
    """Its squared norm is 0 [0, 0]: nothing spreads."""
    nothing = np.zeros((8, 3))
    assert not has_direction(Gram.of(nothing, nothing))
