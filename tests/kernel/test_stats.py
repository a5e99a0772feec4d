from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from raysuite.kernel.stats import (
    Interval,
    bootstrap_mean,
    bootstrap_share,
    difference_of_methods,
    differences_of_methods,
    improvements,
    mean_over_runs,
    mean_over_strata,
    paired_difference,
    rank_correlation,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clustered(seed: int, groups: int = 40, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Values with mean 0 whose groups differ twice as much as values within one."""
    draw = rng(seed)
    values = np.repeat(draw.normal(0, 1, groups), size) + draw.normal(0, 0.5, groups * size)
    return values, np.repeat(np.arange(groups), size)


def covers_zero(interval: Interval) -> bool:
    return interval.low <= 0 <= interval.high


def test_the_interval_covers_the_mean_of_clustered_data_as_often_as_it_says():
    runs = 300
    by_group = by_value = 0
    for seed in range(runs):
        values, groups = clustered(seed)
        by_group += covers_zero(bootstrap_mean(values, groups, rng(seed), resamples=400))
        by_value += covers_zero(bootstrap_mean(values, np.arange(len(values)), rng(seed), resamples=400))
    assert 0.90 <= by_group / runs <= 0.98
    assert by_value / runs < 0.75  # as if pictures of one prompt were independent: far too narrow


def test_with_groups_of_one_the_width_is_that_of_the_normal_approximation():
    values = rng().normal(5, 2, 400)
    interval = bootstrap_mean(values, np.arange(400), rng(1), resamples=4_000)
    standard_error = values.std() / math.sqrt(400)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_groups_of_unequal_size_count_by_their_values():
    interval = bootstrap_mean(np.array([1.0, 1.0, 1.0, 5.0]), np.array(["a", "a", "a", "b"]), rng())
    assert interval == Interval(2.0, 1.0, 5.0)  # (3 * 1 + 5) / 4; a resample may hold one of the two groups only


def test_copies_of_values_within_their_groups_add_no_certainty():
    values, groups = clustered(3)
    once = bootstrap_mean(values, groups, rng())
    thrice = bootstrap_mean(np.tile(values, 3), np.tile(groups, 3), rng())
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_neither_order_nor_names_of_groups_matter():
    values, groups = clustered(4)
    order = rng(9).permutation(len(values))
    names = np.array([f"prompt {group:02d}" for group in groups], dtype=object)
    shuffled = bootstrap_mean(values[order], names[order], rng(1))
    ordered = bootstrap_mean(values, groups, rng(1))
    assert (shuffled.low, shuffled.high) == pytest.approx((ordered.low, ordered.high))


def test_one_group_does_not_tell_how_groups_differ():
    interval = bootstrap_mean(np.array([1.0, 2.0]), np.array(["a", "a"]), rng())
    assert interval.estimate == 1.5
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_more_confidence_is_a_wider_interval():
    values, groups = clustered(5)
    narrow, wide = (bootstrap_mean(values, groups, rng(), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_paired_difference_cancels_what_pairs_share():
    before, groups = clustered(6)
    difference = paired_difference(before, before + 0.25, groups, rng())
    assert (difference.estimate, difference.low, difference.high) == pytest.approx((0.25, 0.25, 0.25))
    backwards = paired_difference(before + 0.25, before, groups, rng())
    assert backwards.estimate == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("values", "groups", "sentence"),
    [
        ([], [], "non-empty"),
        ([[1.0, 2.0]], [["a", "b"]], "one-dimensional"),
        ([1.0, 2.0], ["a"], "a group for each of 2 values"),
        ([1.0, float("nan")], ["a", "b"], "finite"),
        ([1.0, float("inf")], ["a", "b"], "finite"),
    ],
)
def test_what_cannot_be_estimated_is_refused(values: list, groups: list, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        bootstrap_mean(np.array(values), np.array(groups), rng())


@pytest.mark.parametrize("option", [{"resamples": 0}, {"confidence": 0.0}, {"confidence": 95.0}])
def test_options_out_of_range_are_refused(option: dict):
    with pytest.raises(ValueError, match="confidence in"):
        bootstrap_mean(np.ones(2), np.arange(2), rng(), **option)


def test_a_difference_needs_pairs():
    with pytest.raises(ValueError, match="3 values before and 2 after"):
        paired_difference(np.ones(3), np.ones(2), np.arange(3), rng())


def test_pairs_of_methods_share_what_is_drawn_and_have_the_intervals_of_each_alone():
    draws, groups = rng(7), np.repeat(np.arange(8), 2)
    values = [draws.random((runs, 16)) for runs in (1, 1, 3, 2, 1)]
    pairs = [(higher, lower) for higher in range(5) for lower in range(higher)]
    alone = [difference_of_methods(values[lower], values[higher], groups, rng(1)) for higher, lower in pairs]
    assert differences_of_methods(values, pairs, groups, rng(1)) == alone
    paired = paired_difference(values[0][0], values[1][0], groups, rng(1))
    assert (alone[0].low, alone[0].high) == pytest.approx((paired.low, paired.high))


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_intervals_over_a_few_runs_cover_where_runs_are_what_differs(runs: int):
    """Runs differ ten times as much as the mean over 24 prompts does."""
    rng, groups, covered = np.random.default_rng(3), np.arange(24), []
    for _ in range(300):
        values = rng.normal(0, 0.5, (runs, 1)) + rng.normal(0, 0.25, (runs, 24))
        found = mean_over_runs(values, groups, np.random.default_rng(0), resamples=500)
        covered.append(found.low <= 0 <= found.high)
    # 0.59, 0.80 and 0.84 from resampling alone; with two runs, limits that stop at what was seen cost some
    assert np.mean(covered) > (0.92 if runs > 2 else 0.89)


@pytest.mark.parametrize("runs", [2, 3])
def test_methods_that_do_not_differ_are_rarely_told_apart_by_a_few_runs(runs: int):
    """Five methods, all pairs at once: with 95 % none is told from another."""
    rng, groups, told = np.random.default_rng(4), np.arange(24), []
    pairs = list(combinations(range(5), 2))
    options = {"confidence": 1 - 0.05 / len(pairs), "resamples": 4000}
    for _ in range(100):
        values = [rng.normal(0, 0.15, (runs, 1)) + rng.normal(0, 0.25, (runs, 24)) for _ in range(5)]
        found = differences_of_methods(values, pairs, groups, np.random.default_rng(0), **options)
        told.append(any(i.low > 0 or i.high < 0 for i in found))
    assert np.mean(told) < 0.12


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.5])
def test_a_share_is_covered_near_its_ends_too(rate: float):
    """Of 48 prompts, as exactly as a share that none has can be: from resampling alone 0.5 % is covered in 38 % of cases."""
    draw, covered = rng(6), []
    for _ in range(400):
        found = bootstrap_share((draw.random(48) < rate).astype(float), np.arange(48), np.random.default_rng(0))
        covered.append(found.low <= rate <= found.high)
    assert np.mean(covered) > (0.9 if rate != 0.02 else 0.85)  # one pass of 48 is a case that this does not mend
    nothing = bootstrap_share(np.ones(4), np.arange(4), rng())
    assert (nothing.low, nothing.high) == (pytest.approx(0.025**0.25), 1.0)


def test_limits_stay_within_what_was_seen():
    passed = np.array([[1.0, 0, 1, 1], [0, 0, 1, 1]])
    found = mean_over_runs(passed, np.arange(4), np.random.default_rng(0))
    assert (found.low, found.high) == (0.0, 1.0)


def test_strata_count_alike_whatever_their_size():
    values, strata = np.array([0.0, 1, 1, 1, 1, 1]), np.array(["a", "a", "b", "b", "b", "b"])
    found = mean_over_strata(values, np.arange(6), strata, np.random.default_rng(0))
    assert found.estimate == 0.75
    # the mean of a's two is 0, 0.5 or 1, b's always 1; drawn from two, half of a's is widened by sqrt(2), and no value is above 1
    assert (found.low, found.high) == pytest.approx((0.75 - math.sqrt(2) / 4, 1.0))


def test_one_stratum_is_the_mean_itself_but_for_how_few_groups_it_has():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60), np.repeat(np.arange(20), 3)
    one = mean_over_strata(values, groups, np.zeros(60), np.random.default_rng(1))
    mean = bootstrap_mean(values, groups, np.random.default_rng(1))
    assert one.high - one.low == pytest.approx(math.sqrt(20 / 19) * (mean.high - mean.low))


def test_a_mean_over_many_strata_of_three_groups_is_covered_as_often_as_it_says():
    draw, groups, strata, covered = rng(9), np.arange(60), np.repeat(np.arange(20), 3), []
    for _ in range(300):
        found = mean_over_strata(draw.normal(size=60), groups, strata, np.random.default_rng(0), resamples=500)
        covered.append(covers_zero(found))
    assert np.mean(covered) > 0.92  # 0.88 without the factor of each stratum


def test_the_variance_over_strata_is_the_mean_of_theirs_over_their_number():
    """Means of 50 and 200 standard normals: the variance of the mean of both is (1/50 + 1/200) / 4."""
    rng = np.random.default_rng(2)
    values, strata = rng.normal(size=250), np.repeat([0, 1], [50, 200])
    found = mean_over_strata(values, np.arange(250), strata, rng, resamples=20_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt((1 / 50 + 1 / 200) / 4), rel=0.15)


def test_a_stratum_of_one_group_leaves_no_interval():
    found = mean_over_strata(np.ones(5), np.array([0, 0, 1, 2, 3]), np.array([0, 0, 1, 1, 1]), np.random.default_rng(0))
    assert found.estimate == 1 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("values", "strata", "sentence"),
    [([], [], "expected values"), ([1.0, 2.0], [0], "a stratum for each"), ([1.0, np.nan], [0, 0], "finite")],
)
def test_strata_that_do_not_fit_are_refused(values: list, strata: list, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        mean_over_strata(np.array(values), np.arange(len(values)), np.array(strata), np.random.default_rng(0))


def test_rank_correlation_is_scipys_and_its_interval_covers_as_often_as_it_says():
    """Ten things, two normal measures of them that correlate by 0.7: Spearman's is 6 / pi arcsin(0.7 / 2)."""
    true, runs, covered = 6 / math.pi * math.asin(0.35), 1000, 0
    draw = rng()
    for _ in range(runs):
        x = draw.normal(size=10)
        y = 0.7 * x + math.sqrt(1 - 0.49) * draw.normal(size=10)
        found = rank_correlation(x, y)
        assert found.estimate == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        covered += found.low <= true <= found.high
    assert 0.93 <= covered / runs <= 0.98


def test_rank_correlation_looks_at_the_order_alone():
    x = np.array([1.0, 2.0, 2.0, 5.0, 9.0])
    y = np.array([0.1, 0.3, 0.2, 0.2, 0.8])
    assert rank_correlation(np.exp(x), y) == rank_correlation(x, y)
    assert rank_correlation(x, -y).estimate == pytest.approx(-rank_correlation(x, y).estimate)
    assert (rank_correlation(x, x**3).estimate, rank_correlation(x, -x).estimate) == (1.0, -1.0)
    assert math.isnan(rank_correlation(x, x).low) and math.isnan(rank_correlation(x, np.ones(5)).estimate)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.arange(3.0), np.arange(3.0), "at least 4"),
        (np.arange(5.0), np.arange(4.0), "got shapes"),
        (np.arange(5.0), np.array([1, 2, np.nan, 3, 4]), "finite"),
    ],
)
def test_rank_correlation_refuses_what_it_cannot_order(x: np.ndarray, y: np.ndarray, said: str):
    with pytest.raises(ValueError, match=said):
        rank_correlation(x, y)


def test_prompts_are_drawn_once_for_both_methods():
    """Where prompts differ by a hundred times what methods do, pairs alone tell these apart."""
    draw, groups = rng(8), np.arange(24)
    prompts = draw.normal(0, 10, 24)
    lower, higher = (prompts + draw.normal(0, 0.1, (3, 24)) for _ in range(2))
    found = difference_of_methods(lower, higher, groups, rng(1))
    assert found.high - found.low < 1


LEVELS = [0.95, 1 - 0.05 / 45]
PROMPTS = np.array([500.0, -500, 500, -500])
"""What each adds to every run."""


def limits(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize("confidence", LEVELS)
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_where_runs_alone_differ_the_interval_is_students(runs: int, confidence: float):
    means = rng(runs).normal(size=runs)
    of_mean = mean_over_runs(np.tile(means[:, None], 4), np.arange(4), rng(1), confidence=confidence, resamples=90_000)
    wide = scipy.stats.ttest_1samp(means, 0).confidence_interval(confidence)
    seen = means.min(), means.max()
    assert limits(of_mean) == pytest.approx(np.clip([wide.low, wide.high], *seen), rel=0.02)
    others = rng(9).normal(size=runs)
    higher, lower = (values[:, None] + PROMPTS for values in (means, others))
    options = {"confidence": confidence, "resamples": 90_000}
    (of_difference,) = differences_of_methods((lower, higher), [(1, 0)], np.arange(4), rng(1), **options)
    welch = scipy.stats.ttest_ind(means, others, equal_var=False).confidence_interval(confidence)
    seen = higher.min() - lower.max(), higher.max() - lower.min()
    assert limits(of_difference) == pytest.approx(np.clip([welch.low, welch.high], *seen), rel=0.02)


def test_where_prompts_alone_differ_the_interval_is_the_bootstraps():
    values, groups = clustered(2)
    assert limits(mean_over_runs(np.tile(values, (5, 1)), groups, rng(1))) == pytest.approx(
        limits(bootstrap_mean(values, groups, rng(1)))
    )


@pytest.mark.parametrize("runs", [3, 5])
def test_what_is_left_to_each_run_on_each_prompt_is_counted_once(runs: int):
    """Where nothing else differs, the interval is as wide as Student's of the means of runs, which hold it."""
    widths, groups = [], np.arange(96)
    for seed in range(40):
        values = rng(seed).normal(size=(runs, 96))
        found = mean_over_runs(values, groups, rng(1), resamples=1000)
        student = scipy.stats.ttest_1samp(values.mean(1), 0).confidence_interval(0.95)
        widths.append((found.high - found.low) / (student.high - student.low))
    assert 0.95 < np.median(widths) < 1.1  # 1.7 and 1.8 where runs and prompts are both drawn and multiplied


def test_runs_that_are_alike_by_chance_do_not_hide_how_prompts_differ():
    """Three runs that pass once each, on different prompts: their means say nothing of how far they might be off."""
    passed, groups = np.eye(3, 48), np.arange(48)
    found = mean_over_runs(passed, groups, rng(1))
    assert limits(found) == pytest.approx(limits(bootstrap_mean(passed.mean(0), groups, rng(1))))
    assert found.high > found.low


def test_a_method_with_one_run_has_its_rest_in_the_prompts():
    """A difference of one run and five: the part of the runs is that of the five alone."""
    draw, groups = rng(3), np.arange(96)
    lower, higher = draw.normal(size=(1, 96)), np.zeros((5, 96))
    found = difference_of_methods(lower, higher, groups, rng(1))
    assert limits(found) == pytest.approx(limits(bootstrap_mean(-lower[0], groups, rng(1))))


def test_a_win_is_no_matter_of_rounding():
    """Three tenths are three tenths in whatever order they are added."""
    values = np.array([[0.1, 0.2, 0.3, 0.3]]), np.array([[0.3, 0.2, 0.1, 0.3]])
    (found,) = improvements(values, [(0, 1)], np.array(["a", "a", "a", "b"]), rng())
    assert found.estimate == 0.5


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_a_probability_of_improvement_is_covered_where_runs_are_what_differs(runs: int):
    """Of runs that win by 1.5 of their standard deviation, many studies see every pair won."""
    draw, groups, true, covered = rng(5), np.arange(24), scipy.stats.norm.cdf(1.5 / math.sqrt(2.18)), []
    for _ in range(200):
        values = [draw.normal(shift, 1, (runs, 1)) + draw.normal(0, 0.3, (runs, 24)) for shift in (0, 1.5)]
        (found,) = improvements(values, [(1, 0)], groups, rng(0), resamples=300)
        covered.append(found.low <= true <= found.high)
    assert np.mean(covered) > 0.87  # 0.67, 0.74 and 0.81 from resampling runs


def test_improvements_hold_at_the_confidence_that_is_asked_for():
    values = rng(1).normal(size=(2, 3, 24))
    once, at_once = (improvements(values, [(0, 1)], np.arange(24), rng(), confidence=c)[0] for c in LEVELS)
    assert at_once.low < once.low < 0.5 < once.high < at_once.high


def test_one_prompt_and_one_run_each_leave_no_interval():
    (found,) = improvements(([[1.0]], [[0.0]]), [(0, 1)], np.zeros(1), rng())
    assert found.estimate == 1 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(("runs", "trials"), [(3, 3), (1, 24), (40, 24)])
def test_who_always_wins_has_the_exact_limit_of_what_is_fewer(runs: int, trials: int):
    """Runs or prompts: 0.025 ** (1 / 3) is 0.292."""
    values = np.ones((runs, 24)), np.zeros((runs, 24))
    found = improvements(values, [(0, 1), (1, 0)], np.arange(24), rng(), resamples=50)
    limit = 0.025 ** (1 / trials)
    assert [(of.low, of.estimate, of.high) for of in found] == [
        pytest.approx((limit, 1, 1)),
        pytest.approx((0, 0, 1 - limit)),
    ]


def test_scores_below_0_are_tied_as_those_above_are():
    values = -np.array([[0.1, 0.2, 0.3, 0.3]]), -np.array([[0.3, 0.2, 0.1, 0.3]])
    (found,) = improvements(values, [(0, 1)], np.array(["a", "a", "a", "b"]), rng())
    assert found.estimate == 0.5


def test_prompts_keep_what_runs_leave_them():
    """Two prompts whose means are -1 and 1, and 40 runs with s^2 = 1/2: b/G + e/(R G) is 1, of which runs hold 1/2, so that k^2 = 1/2.
    A resample has one prompt twice as often as not."""
    runs, own = 19.5**0.5 * np.tile([1, -1], 20), 7 * np.repeat([1, -1], 20)
    found = mean_over_runs(np.stack([runs - 1 - own, runs + 1 + own], 1), np.arange(2), rng(), resamples=20_000)
    student = scipy.stats.t(39, scale=0.5**0.5)
    reached = student.cdf(found.high + 0.5**0.5 * np.array([-1, 0, 0, 1])).mean()
    assert found.estimate == pytest.approx(0) and reached == pytest.approx(0.975, abs=0.005)
