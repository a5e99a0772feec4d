"""Rewards to preferences: which samples are compared, and who is said to be better."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from raysuite.errors import UserError
from raysuite.kernel.preferences import choose, rank


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chosen(reward_N: Any, **changes: Any) -> np.ndarray:
    options = {"how": "best_worst", "members": 2, "kept": 5, "limit": None, "rng": rng()}
    return choose(np.asarray(reward_N, float), **{**options, **changes})


def ranked(reward_RM: Any, **changes: Any) -> np.ndarray:
    options = {"label": "argmax", "temperature": 1.0, "noise": 0.0, "rng": rng()}
    return rank(np.asarray(reward_RM, float), **{**options, **changes})


@settings(max_examples=100)
@given(
    how=st.sampled_from(["best_worst", "random", "spread", "all"]),
    rewards=st.lists(st.integers(0, 4), min_size=5, max_size=9),
    members=st.integers(2, 4),
    limit=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_tuples_hold_different_samples_and_come_once(
    how: str, rewards: list[int], members: int, limit: int | None, seed: int
) -> None:
    found = chosen(rewards, how=how, members=members, limit=limit, rng=rng(seed))
    assert found.shape[1] == members
    assert all(len(set(row)) == members and set(row) <= set(range(len(rewards))) for row in found.tolist())
    assert len({frozenset(row) for row in found.tolist()}) == len(found)
    pool = {"best_worst": members, "spread": 5}.get(how, len(rewards))
    everything = math.comb(pool, members)
    assert len(found) == (everything if limit is None else min(limit, everything))
    assert np.array_equal(found, chosen(rewards, how=how, members=members, limit=limit, rng=rng(seed)))


@settings(max_examples=100)
@given(rewards=st.lists(st.integers(0, 4), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_a_pair_of_extremes_is_the_best_with_the_worst(rewards: list[int], seed: int) -> None:
    ((one, other),) = chosen(rewards, rng=rng(seed))
    assert {rewards[one], rewards[other]} == {min(rewards), max(rewards)}


def test_best_and_worst() -> None:
    assert chosen([3, 9, 1, 5]).tolist() == [[1, 2]]
    assert sorted(chosen([3, 9, 1, 5, 7], members=3)[0].tolist()) == [1, 2, 3], "both ends and the middle"


def test_spread_keeps_the_released_codes_quantiles() -> None:
    """Of 12 samples in order of reward, 0, 2, 5, 8 and 11."""
    reward_N = np.arange(12.0)
    found = chosen(rng(3).permutation(reward_N), how="spread")
    order = rng(3).permutation(reward_N)
    assert {order[i] for i in found.flatten()} == {0, 2, 5, 8, 11}
    assert len(found) == 10


@settings(max_examples=200)
@given(kept=st.integers(2, 40), more=st.integers(0, 40), seed=st.integers(0, 99))
@example(kept=23, more=8, seed=0)  # np.linspace(0, 30, 23)[11] is 15 less a rounding error
def test_spread_keeps_both_ends_and_what_lies_evenly_between(kept: int, more: int, seed: int) -> None:
    """Place i of the kept is place i (size - 1) / (kept - 1) of all, rounded down: gaps differ by one at most."""
    reward_N = rng(seed).permutation(kept + more)
    found = np.unique(chosen(reward_N, how="spread", members=kept, kept=kept))
    places = sorted(reward_N[found].tolist())
    assert places == [math.floor(Fraction(i * (kept + more - 1), kept - 1)) for i in range(kept)]
    assert np.ptp(np.diff(places)) <= 1


def test_all_are_all() -> None:
    assert chosen(range(5), how="all").tolist() == [list(pair) for pair in combinations(range(5), 2)]


def test_every_tuple_is_drawn_alike() -> None:
    """2 of 6 pairs, 3,000 times: each pair is there a third of the time, within 5 standard errors."""
    draws = [chosen(range(4), how="random", limit=2, rng=rng(seed)) for seed in range(3000)]
    counts = {pair: sum(list(pair) in draw.tolist() for draw in draws) for pair in combinations(range(4), 2)}
    error = math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert all(abs(count - 1000) < 5 * error for count in counts.values())


@pytest.mark.parametrize(
    "changes", [{"members": 1}, {"members": 5}, {"how": "spread", "kept": 5}, {"how": "all", "members": 9}]
)
def test_groups_that_are_too_small(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected 2 <= members <= kept <= samples"):
        chosen([1, 2, 3, 4], **changes)


# labels


def test_argmax_orders_and_leaves_ties_out() -> None:
    found = ranked([[1, 2], [3, 3], [5, 4]])
    assert found.tolist() == [[0, 1, 0], [2, 0, 1]]
    assert ranked([[1, 3, 2], [3, 1, 1]]).tolist() == [[0, 1, 2, 0]]
    assert ranked(np.zeros((4, 2))).shape == (0, 3)
    assert ranked([[0.1 + 0.2, 0.3], [-300.0, -300.00001]]).shape == (0, 3)  # but for rounding
    assert ranked([[0.99999988, 0.99999], [-300.0, -300.01]])[:, 1:].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_bradley_terry_frequencies(temperature: float) -> None:
    """P(first is preferred) = sigma((r_0 - r_1) / temperature), within 5 standard errors; equal rewards are a fair coin."""
    for difference in (0.0, 0.5):
        rows = np.tile([difference, 0.0], (20_000, 1))
        found = ranked(rows, label="bradley_terry", temperature=temperature)
        assert len(found) == len(rows)
        p = 1 / (1 + math.exp(-difference / temperature))
        assert abs((found[:, 1] == 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / len(rows))


def test_plackett_luce_frequencies() -> None:
    """The whole order (0, 1, 2) has probability w0 / (w0 + w1 + w2) w1 / (w1 + w2), w = exp(reward)."""
    found = ranked(np.tile([1.0, 0.5, 0.0], (20_000, 1)), label="bradley_terry")
    w = np.exp([1.0, 0.5, 0.0])
    p = w[0] / w.sum() * w[1] / w[1:].sum()
    assert abs((found[:, 1:] == [0, 1, 2]).all(1).mean() - p) < 5 * math.sqrt(p * (1 - p) / 20_000)


def test_label_noise_turns_a_share_round() -> None:
    found = ranked(np.tile([1.0, 0.0], (20_000, 1)), noise=0.2)
    assert abs((found[:, 1] == 1).mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 20_000)
    three = ranked(np.tile([3.0, 2.0, 1.0], (2_000, 1)), noise=0.4)
    assert {tuple(row) for row in three[:, 1:].tolist()} == {(0, 1, 2), (2, 1, 0)}


def test_settings_draw_the_same_numbers() -> None:
    """Noise changes labels; it does not change which numbers label the next group."""
    first, second = rng(), rng()
    ranked(np.ones((3, 2)), rng=first)
    ranked(np.arange(6).reshape(3, 2), rng=second, label="bradley_terry", noise=0.3)
    assert first.random() == second.random()


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"label": "bradley_terry", "temperature": 0.0}, "temperature above 0"),
        ({"noise": 0.5}, "below 0.5"),
        ({"noise": -1}, "at least 0"),
    ],
)
def test_labels_that_make_no_sense(changes: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        ranked([[1, 2]], **changes)


def test_a_row_is_as_uncertain_as_its_most_uncertain_member() -> None:
    assert ranked([[1.0, 1.5], [1.0, 3.0]], rounding_RM=np.array([[0.0, 1.0], [0.0, 1.0]])).tolist() == [[1, 1, 0]]
