from __future__ import annotations

import math

import pytest

from raysuite.config.sections import Guards, Reaction
from raysuite.kernel import guards
from raysuite.kernel.stats import Interval
from raysuite.results.sentences import WARNED


@pytest.mark.parametrize(
    ("training", "held_out", "warns"),
    [(0.2, (-0.1, -0.2, -0.01), True), (0.2, (-0.1, -0.2, 0.01), False), (-0.2, (-0.1, -0.2, -0.01), False)],
    ids=["rose and fell", "cannot be told", "both fell"],
)
def test_held_out_needs_a_rise_and_a_fall_that_can_be_told(
    training: float, held_out: tuple[float, float, float], warns: bool
):
    said = guards.held_out(training=Interval(training, training - 1, training + 1), held_out=Interval(*held_out))
    assert (said is not None) is warns
    if said:
        assert "+0.2 on training prompts and by -0.1 [-0.2, -0.01]" in said


@pytest.mark.parametrize(
    ("trained", "fell", "warns"),
    [
        ((0.2, 0.1, 0.3), (-0.1, -0.2, -0.01), True),
        ((0.2, 0.1, 0.3), (-0.1, -0.2, 0.01), False),
        ((0.2, -0.01, 0.4), (-0.1, -0.2, -0.01), False),
    ],
    ids=["rose and fell", "fall cannot be told", "rise cannot be told"],
)
def test_gaming_needs_a_rise_and_a_fall_that_can_both_be_told(
    trained: tuple[float, float, float], fell: tuple[float, float, float], warns: bool
):
    changes = {"steady": Interval(0.0, -0.1, 0.1), "taste": Interval(*fell)}
    said = guards.watched(trained=Interval(*trained), watched=changes)
    assert (said is not None) is warns
    if said:
        assert "and taste, which is only watched, changed by -0.1 [-0.2, -0.01]" in said


def test_limits_are_where_they_are_said_to_be():
    assert guards.diversity(now=5.0, base=10.0, share=0.5) is None
    assert guards.diversity(now=4.9, base=10.0, share=0.5) == (
        "pictures of one prompt differ by 4.9 grey levels, 49% of the 10 at the beginning"
    )
    assert guards.kl(nats=500.0, limit=500.0) is None
    assert "500.1 nats a trajectory, more than 500" in str(guards.kl(nats=500.1, limit=500.0))
    assert guards.ratio(ratio=1.0, clipped=0.0, tolerance=1e-9) is None
    assert guards.ratio(ratio=1.009, clipped=0.009, tolerance=0.01) is None
    for off in (0.98, 1.02):
        assert f"ratio is {off}, not 1" in str(guards.ratio(ratio=off, clipped=0.5, tolerance=0.01))
    assert guards.ratio(ratio=1.0, clipped=0.2, tolerance=0.01) == (
        "20% of the first importance ratios are so far off 1 that they are clipped"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_named(value: float):
    assert guards.finite({"a": 1.0}) is None
    assert guards.finite({"a": 1.0, "learn/ratio": value}) == f"learn/ratio is {value}"


def test_a_nan_ratio_or_kl_is_left_to_the_guard_of_numbers():
    assert guards.ratio(ratio=math.nan, clipped=0.0, tolerance=0.1) is None
    assert guards.kl(nats=math.nan, limit=0.1) is None


def test_an_update_without_spread_is_one_where_most_groups_have_none():
    assert guards.spread(without=2, groups=4) is None
    assert guards.spread(without=3, groups=4) == "the pictures of 3 of 4 prompts had equal rewards"
    assert guards.spread(without=1, groups=1) == "the pictures of 1 of 1 prompts had equal rewards"


def test_every_guard_has_its_remedy_and_its_sentence_in_reports() -> None:
    named = {n for n, field in Guards.model_fields.items() if field.annotation == Reaction}
    assert named == set(guards.REMEDIES) == set(WARNED)
