"""Which rewrites are drawn, and which of them are preferred."""

from __future__ import annotations

import numpy as np
import pytest

from raysuite.stages.rewrites import BUNDLED
from raysuite.writer.candidates import candidates, preferred
from raysuite.writer.model import open_writer

SCORES = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.0],  # above the first by 0.75, standard error 0.25: three of them
        [
            1.0,
            0.0,
            0.0,
            0.0,
        ],  # above the first by 0.25, standard error 0.25: one; below the second by 0.5, error 0.2887: 1.73
    ]
)


@pytest.mark.parametrize(
    ("margin", "which", "pairs", "left_out"),
    [
        (0.0, "all", [(1, 2), (1, 0), (2, 0)], 0),
        (1.5, "all", [(1, 2), (1, 0)], 1),
        (2.0, "all", [(1, 0)], 2),
        (3.1, "all", [], 3),
        (2.0, "best", [(1, 0)], 0),
        (3.1, "best", [], 1),
    ],
)
def test_a_pair_counts_from_so_many_standard_errors_on(
    margin: float, which: str, pairs: list[tuple[int, int]], left_out: int
) -> None:
    assert preferred(SCORES, margin=margin, which=which) == (pairs, left_out)  # type: ignore[arg-type]


def test_equal_scores_are_no_preference_whatever_the_margin() -> None:
    assert preferred(np.full((2, 3), 0.1), margin=0.0) == ([], 1)


def test_a_difference_that_never_changes_has_no_error() -> None:
    assert preferred(np.array([[0.0, 0.5], [0.5, 1.0]]), margin=100.0) == ([(1, 0)], 0)


def test_one_picture_and_one_candidate() -> None:
    assert preferred(np.array([[0.0], [1.0]]), margin=0.0) == ([(1, 0)], 0)
    assert preferred(np.array([[1.0, 0.0]]), margin=1.0, which="best") == ([], 0)


def test_the_users_own_text_comes_first_and_no_text_twice() -> None:
    writer, asked = open_writer(BUNDLED), ["3 red circles", "two crimson discs"]
    found = candidates(writer, asked, [7, 9], draws=4, seed=0)
    for number, text in zip((7, 9), asked, strict=True):
        mine = [one for one in found if one.prompt == number]
        assert mine[0].text == text and [one.own for one in mine] == [True] + [False] * (len(mine) - 1)
        assert len({one.text for one in mine}) == len(mine) and all(one.text for one in mine)
    # coordinates decide, whoever else is asked
    assert candidates(writer, asked[1:], [9], draws=4, seed=0) == [one for one in found if one.prompt == 9]
    assert len({one.text for one in candidates(writer, asked[1:], [9], draws=12, seed=1)}) > 2


def test_of_equals_the_first_is_best_and_the_last_is_worst() -> None:
    assert preferred(np.array([[0.0], [1.0], [1.0], [0.0]]), margin=0, which="best") == ([(1, 3)], 0)


def test_rounding_is_no_preference() -> None:
    assert preferred(np.array([[0.1 + 0.2, 0.3], [0.3, 0.3]]), margin=0) == ([], 1)
