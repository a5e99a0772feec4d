"""Credit, returns and advantages, by arithmetic and by the identities that hold whatever the rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from raysuite.errors import UserError
from raysuite.kernel.credit import (
    PromptTracker,
    RewardScale,
    discount_weights,
    global_advantages,
    group_advantages,
    groups_without_spread,
    has_spread,
    preview_credit,
    returns_to_go,
    terminal_credit,
)
from raysuite.kernel.preferences import rank

numbers = st.floats(-1e3, 1e3)


@st.composite
def previews(draw: st.DrawFn) -> tuple[np.ndarray, list[int], int]:
    """Rewards (N, J), after how many steps each, and the number of steps."""
    steps = draw(st.integers(1, 12))
    at = sorted(draw(st.sets(st.integers(1, steps))) | {steps})
    rows = draw(st.integers(1, 5))
    return draw(hnp.arrays(float, (rows, len(at)), elements=numbers)), at, steps


# credit


@given(hnp.arrays(float, st.integers(1, 8), elements=numbers), st.integers(1, 20))
def test_terminal_credit_sums_to_the_reward(reward_N: np.ndarray, steps: int) -> None:
    credit_NK = terminal_credit(reward_N, steps=steps)
    assert credit_NK.shape == (len(reward_N), steps)
    assert np.array_equal(credit_NK.sum(1), reward_N)
    assert not credit_NK[:, :-1].any()


@given(previews())
def test_preview_credit_sums_to_the_reward(case: tuple[np.ndarray, list[int], int]) -> None:
    reward_NJ, at, steps = case
    credit_NK = preview_credit(reward_NJ, at=at, steps=steps)
    np.testing.assert_allclose(credit_NK.sum(1), reward_NJ[:, -1], atol=1e-9)
    # and up to each preview it sums to that preview
    np.testing.assert_allclose(credit_NK.cumsum(1)[:, [k - 1 for k in at]], reward_NJ, atol=1e-9)


def test_preview_credit_by_arithmetic() -> None:
    """0.2 after 2 of 5 steps, then 0.8: the second step earns 0.2, and the fifth the gain of 0.6."""
    credit_NK = preview_credit(np.array([[0.2, 0.8]]), at=[2, 5], steps=5)
    np.testing.assert_allclose(credit_NK, [[0.0, 0.2, 0.0, 0.0, 0.6]])


def test_one_preview_at_the_end_is_terminal_credit() -> None:
    reward_N = np.array([6.0, -3.0])
    np.testing.assert_allclose(preview_credit(reward_N[:, None], at=[3], steps=3), terminal_credit(reward_N, steps=3))


@pytest.mark.parametrize("at", [[2, 4], [4, 2, 5], [0, 5], [2, 2, 5], [6]])
def test_previews_at_impossible_steps(at: list[int]) -> None:
    with pytest.raises(UserError, match="from 1 to 5"):
        preview_credit(np.zeros((1, len(at))), at=at, steps=5)


def test_another_number_of_previews() -> None:
    with pytest.raises(UserError, match="expected 2 previews a sample, got 3"):
        preview_credit(np.zeros((1, 3)), at=[2, 5], steps=5)


# returns


def test_returns_by_arithmetic() -> None:
    """Credit 1, 2, 4: decay 1 gives 7, 6, 4; decay 0 gives 1, 2, 4; decay 1/2 gives 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4."""
    credit_NK = np.array([[1.0, 2.0, 4.0]])
    for decay, expected in ((1.0, [7, 6, 4]), (0.0, [1, 2, 4]), (0.5, [3, 4, 4])):
        assert returns_to_go(credit_NK, decay=decay).tolist() == [expected]


@given(previews())
def test_undecayed_returns_are_the_reward_minus_what_was_earned(case: tuple[np.ndarray, list[int], int]) -> None:
    reward_NJ, at, steps = case
    credit_NK = preview_credit(reward_NJ, at=at, steps=steps)
    returns = returns_to_go(credit_NK, decay=1.0)
    np.testing.assert_allclose(returns[:, 0], reward_NJ[:, -1], atol=1e-9)
    for j, k in enumerate(at[:-1]):  # each preview is the baseline of the steps after it
        np.testing.assert_allclose(returns[:, k], reward_NJ[:, -1] - reward_NJ[:, j], atol=1e-9)


@given(hnp.arrays(float, (3, 6), elements=numbers), st.floats(0, 1))
def test_returns_satisfy_their_recursion(credit_NK: np.ndarray, decay: float) -> None:
    returns = returns_to_go(credit_NK, decay=decay)
    np.testing.assert_allclose(returns[:, :-1], credit_NK[:, :-1] + decay * returns[:, 1:], atol=1e-9)


# discount


def test_no_discount_weighs_all_steps_alike() -> None:
    """R1."""
    assert discount_weights(50, gamma=1.0).tolist() == [1.0] * 50


def test_strong_discount_leaves_the_first_step() -> None:
    """R2."""
    np.testing.assert_allclose(discount_weights(50, gamma=1e-9), [50.0] + [0.0] * 49, atol=1e-6)


def test_discount_by_published_numbers() -> None:
    """R3: 50 steps and gamma 0.9 sum to 9.9485 before scaling; the first 5, 10, 25 steps hold 41, 65 and 93 percent."""
    weights_K = discount_weights(50, gamma=0.9)
    assert weights_K.mean() == pytest.approx(1.0)
    assert 50 / weights_K[0] == pytest.approx(9.9485, abs=5e-5)
    for steps, share in ((5, 0.4116), (10, 0.6547), (25, 0.9330)):
        assert weights_K[:steps].sum() / 50 == pytest.approx(share, abs=5e-5)
    np.testing.assert_allclose(weights_K[1:] / weights_K[:-1], 0.9)


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.1, float("nan")])
def test_impossible_discounts(gamma: float) -> None:
    with pytest.raises(UserError, match=r"credit\.discount"):
        discount_weights(5, gamma=gamma)


# advantages


def test_global_advantages_by_arithmetic() -> None:
    """Returns 1, 2, 6 have mean 3 and standard deviation sqrt(14/3)."""
    np.testing.assert_allclose(
        global_advantages(np.array([[1.0], [2.0], [6.0]]))[:, 0], np.array([-2, -1, 3]) / (14 / 3) ** 0.5, rtol=1e-7
    )


def test_steps_are_centred_apart_and_scaled_together() -> None:
    """Column 1 is ten times column 0: it keeps being ten times larger, since one standard deviation serves all steps."""
    advantage_NK = global_advantages(np.array([[0.0, 5.0], [2.0, 25.0]]))
    np.testing.assert_allclose(advantage_NK[:, 1], 10 * advantage_NK[:, 0])
    np.testing.assert_allclose(np.mean(advantage_NK**2), 1.0)


grouped = st.integers(1, 4).flatmap(  # eighths, so that the sums behind the means are exact
    lambda steps: st.tuples(
        hnp.arrays(int, (8, steps), elements=st.integers(-8000, 8000)).map(lambda eighths: eighths / 8),
        st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
    )
)


@given(grouped)
def test_advantages_sum_to_0_in_each_group(case: tuple[np.ndarray, list[str]]) -> None:
    """X8."""
    return_NK, prompts_N = case
    advantage_NK = group_advantages(return_NK, prompts_N)
    for prompt in set(prompts_N):
        rows = [p == prompt for p in prompts_N]
        np.testing.assert_allclose(advantage_NK[rows].sum(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(global_advantages(return_NK).sum(0), 0.0, atol=1e-6)


def test_groups_do_not_see_each_other() -> None:
    """Prompts interleaved: 0 and 2 become -1 and 1; 10 and 50 too."""
    advantage_NK = group_advantages(np.array([[0.0], [10.0], [2.0], [50.0]]), ["a", "b", "a", "b"])
    np.testing.assert_allclose(advantage_NK[:, 0], [-1, -1, 1, 1], rtol=1e-7)


@pytest.mark.parametrize("kind", ["global", "group", "group_mean", "tracked"])
def test_a_constant_in_the_reward_changes_nothing(kind: str) -> None:
    """D5."""
    reward_N = np.random.default_rng(0).normal(size=8)
    prompts_N = ["a", "b"] * 4

    def advantage(shift: float) -> np.ndarray:
        if kind == "tracked":
            return PromptTracker.empty(size=8, minimum=2).advantages(reward_N + shift, prompts_N)
        returns = returns_to_go(terminal_credit(reward_N + shift, steps=3), decay=1.0)
        if kind == "global":
            return global_advantages(returns)
        return group_advantages(returns, prompts_N, deviation="batch" if kind == "group_mean" else "group")

    np.testing.assert_allclose(advantage(100.0), advantage(0.0), atol=1e-9)
    assert np.abs(advantage(0.0)).max() > 0.5


@pytest.mark.parametrize(
    "reward", [[20.000002, 20, 20, 20], [0.1 + 0.2, 0.3, 0.3, 0.3], [-1e6, -1e6 + 0.0625, -1e6, -1e6]]
)
def test_rounding_is_no_difference(reward: list[float]) -> None:
    """One unit in the last place of float32 or float64: divided by their own deviation, these were 1.73 or 1.71 and three of -0.57."""
    returns, prompts_N = np.array(reward)[:, None], ["a"] * 4
    assert not global_advantages(returns).any()
    assert (
        not group_advantages(returns, prompts_N).any()
        and not group_advantages(returns, prompts_N, deviation="batch").any()
    )
    assert not PromptTracker.empty(size=8, minimum=1).advantages(returns[:, 0], prompts_N).any()
    assert groups_without_spread(returns[:, 0], prompts_N) == (1, 1)


def test_small_differences_are_differences() -> None:
    """A thousandth of a percent of the rewards: as far apart as ever."""
    returns = 20 * (1 + 1e-5 * np.array([[0.0], [2.0], [0.0], [2.0]]))
    np.testing.assert_allclose(group_advantages(returns, ["a"] * 4)[:, 0], [-1, 1, -1, 1], rtol=1e-3)


def test_group_means_with_the_deviation_of_the_batch() -> None:
    """Rewards 0, 2 of one prompt and 10, 20 of another: the batch's mean is 8, its variance (64 + 36 + 4 + 144) / 4 = 62."""
    advantage_NK = group_advantages(np.array([[0.0], [10.0], [2.0], [20.0]]), ["a", "b", "a", "b"], deviation="batch")
    np.testing.assert_allclose(advantage_NK[:, 0], np.array([-1, -5, 1, 5]) / 62**0.5, rtol=1e-7)


def test_groups_without_spread_are_counted() -> None:
    """Of three prompts with several samples one has equal rewards; a prompt with one sample has no spread to speak of."""
    prompts_N = ["a", "b", "a", "c", "b", "c", "d"]
    assert groups_without_spread(np.array([1.0, 5.0, 1.0, 2.0, 6.0, 3.0, 9.0]), prompts_N) == (1, 3)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_equal_rewards_give_no_advantage(value: float) -> None:
    returns = np.full((4, 3), value)
    prompts_N = ["a", "a", "b", "b"]
    for advantage in (
        global_advantages(returns),
        group_advantages(returns, prompts_N),
        group_advantages(returns, ["a", "b", "c", "d"]),  # groups of one
        PromptTracker.empty(size=8, minimum=1).advantages(returns[:, 0], prompts_N),
    ):
        np.testing.assert_allclose(advantage, 0.0, atol=1e-6)


# sums of rewards on one scale


def test_a_scaled_sum_by_arithmetic() -> None:
    """a: 0 and 2 (mean 1, deviation 1); b: 10 and 30 (20, 10); c is always 5 and adds nothing."""
    scale = RewardScale()
    scores = {"a": np.array([0.0, 2.0]), "b": np.array([10.0, 30.0]), "c": np.array([5.0, 5.0])}
    scale.show(scores)
    np.testing.assert_allclose(scale.total(scores, {"a": 1, "b": -0.5, "c": 3}), [-0.5, 0.5], rtol=1e-12)


def test_running_statistics_are_those_of_all_batches_as_one() -> None:
    rng = np.random.default_rng(2)
    batches = [{"a": rng.normal(3, 2, size=size)} for size in (1, 5, 8)]
    scale = RewardScale()
    for batch in batches:
        scale = RewardScale(json.loads(json.dumps(scale.state())))
        scale.show(batch)
    every = np.concatenate([batch["a"] for batch in batches])
    np.testing.assert_allclose(
        scale.total({"a": every}, {"a": 2}), 2 * (every - every.mean()) / every.std(), rtol=1e-10
    )


def test_rounding_is_no_scale() -> None:
    scores = {"a": np.array([20.000002, 20.0, 20.0, 20.0], np.float32), "b": np.array([0.0, 1.0, 1.0, 0.0])}
    scale = RewardScale()
    scale.show(scores)
    np.testing.assert_allclose(scale.total(scores, {"a": 1, "b": 1}), [-1, 1, 1, -1], rtol=1e-12)


@pytest.mark.parametrize("earlier", [(), (1.0, 60.0)], ids=["batch", "running"])
def test_rounding_is_no_difference_on_one_scale(earlier: tuple[float, ...]) -> None:
    """Scores of 21.5 that differ in their last digit differ by more than a millionth once their mean and deviation are taken out."""
    digit = float(np.nextafter(np.float32(21.5), np.float32(22))) - 21.5
    score_N = np.array([21.5, 21.5 + digit, 21.4, 21.6, 21.3, 21.7])
    prompts_N = ["equal"] * 2 + ["apart"] * 4
    scale, weights = RewardScale(), {"a": -2.0}
    for batch in (np.array(earlier), score_N):
        if len(batch):
            scale.show({"a": batch})
    total_N = scale.total({"a": score_N}, weights)
    rounding_N = scale.rounding({"a": score_N}, weights)
    assert groups_without_spread(total_N, prompts_N, rounding_N) == (1, 2)
    for advantage_N in (
        group_advantages(total_N[:, None], prompts_N, rounding_N)[:, 0],
        group_advantages(total_N[:, None], prompts_N, rounding_N, deviation="batch")[:, 0],
        PromptTracker.empty(size=8, minimum=1).advantages(total_N, prompts_N, rounding_N),
    ):
        assert (advantage_N[:2] == 0).all() and (np.abs(advantage_N[2:]) > 0.1).all()
    options = {"label": "argmax", "temperature": 1.0, "noise": 0.0, "rng": np.random.default_rng(0)}
    pairs_RM = np.array([[0, 1], [2, 3]])
    assert rank(total_N[pairs_RM], rounding_N[pairs_RM], **options).tolist() == [[1, 0, 1]]


# the tracker of running statistics


def test_new_rewards_count_in_their_own_statistics() -> None:
    """First 1 and 3 (mean 2, deviation 1); then 8: mean of 1, 3, 8 is 4, deviation sqrt((9 + 1 + 16) / 3)."""
    tracker = PromptTracker.empty(size=10, minimum=2)
    np.testing.assert_allclose(tracker.advantages(np.array([1.0, 3.0]), ["a", "a"]), [-1, 1], rtol=1e-7)
    np.testing.assert_allclose(tracker.advantages(np.array([8.0]), ["a"]), [4 / (26 / 3) ** 0.5], rtol=1e-7)


def test_a_prompt_seen_too_rarely_uses_the_batch() -> None:
    """Prompt a has three rewards (mean 2), prompt b one: b is normalised by all four (mean 4, deviation sqrt(12.5))."""
    tracker = PromptTracker.empty(size=10, minimum=3)
    advantage_N = tracker.advantages(np.array([1.0, 2.0, 3.0, 10.0]), ["a", "a", "a", "b"])
    np.testing.assert_allclose(advantage_N[:3], np.array([-1, 0, 1]) / (2 / 3) ** 0.5, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(advantage_N[3], 6 / 12.5**0.5, rtol=1e-7)


def test_old_rewards_are_forgotten() -> None:
    """A buffer of two: after 100 and 100 come 1 and 3, which then stand alone."""
    tracker = PromptTracker.empty(size=2, minimum=1)
    tracker.advantages(np.array([100.0, 100.0]), ["a", "a"])
    np.testing.assert_allclose(tracker.advantages(np.array([1.0, 3.0]), ["a", "a"]), [-1, 1], rtol=1e-7)


def test_the_tracker_survives_json() -> None:
    rng = np.random.default_rng(1)
    first = PromptTracker.empty(size=3, minimum=2)
    for _ in range(3):
        first.advantages(rng.normal(size=4), ["a", "b", "c d", "a"])
    second = PromptTracker.empty(size=3, minimum=2)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for _ in range(3):  # they go on alike, and forget alike
        reward_N = rng.normal(size=3)
        assert np.array_equal(
            first.advantages(reward_N, ["a", "b", "new"]), second.advantages(reward_N, ["a", "b", "new"])
        )


def test_the_deviation_of_a_batch_is_about_the_mean_of_each_step() -> None:
    """Returns of 0 and 2 at one step, 10 more at the other: each deviates by 1 from its step's mean."""
    advantage_NK = group_advantages(np.array([[0.0, 10.0], [2.0, 12.0]]), ["a", "a"], deviation="batch")
    np.testing.assert_allclose(advantage_NK, [[-1, -1], [1, 1]], rtol=1e-7)


def test_rounding_is_of_ones_own_group() -> None:
    """What the rewards of one prompt may be off by says nothing of another's."""
    return_NK, rounding_N = np.array([[0.0], [2.0], [5.0], [5.001]]), np.array([1e-9, 1e-9, 10.0, 10.0])
    advantage_NK = group_advantages(return_NK, ["a", "a", "b", "b"], rounding_N)
    np.testing.assert_allclose(advantage_NK[:, 0], [-1, 1, 0, 0], rtol=1e-7)


def test_the_largest_of_what_values_may_be_off_by_decides() -> None:
    assert not has_spread(np.zeros(2), 0.5, np.array([0.0, 1.0]))
    assert not has_spread(np.array([100.0, 0.0, 0.0, 0.0]), 5e-5) and has_spread(np.array([100.0, 0.0]), 2e-4)


def test_the_tracker_rounds_by_what_a_sample_may_be_off_by_itself() -> None:
    tracker, rounding_N = PromptTracker.empty(size=8, minimum=1), np.array([1e-9, 1e-9, 10.0, 10.0])
    advantage_N = tracker.advantages(np.array([0.0, 2.0, 5.0, 5.001]), ["a", "a", "b", "b"], rounding_N)
    np.testing.assert_allclose(advantage_N, [-1, 1, 0, 0], rtol=1e-7)
