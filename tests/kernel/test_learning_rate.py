"""The learning rate of every update, by hand."""

from __future__ import annotations

import pytest

from raysuite.kernel.learning_rate import Decline, share_of_peak


@pytest.mark.parametrize(
    ("warmup", "decline", "end", "shares"),
    [
        (0, "constant", None, [1, 1, 1]),
        (3, "constant", None, [0.25, 0.5, 0.75, 1, 1]),
        (0, "linear", 4, [1, 0.75, 0.5, 0.25]),
        (1, "linear", 5, [0.5, 1, 0.75, 0.5, 0.25]),
        (0, "cosine", 4, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
        (2, "cosine", 5, [1 / 3, 2 / 3, 1, 0.75, 0.25]),
    ],
)
def test_it_rises_and_falls(warmup: int, decline: Decline, end: int | None, shares: list[float]) -> None:
    found = [share_of_peak(update, warmup=warmup, decline=decline, end=end) for update in range(len(shares))]
    assert found == pytest.approx(shares)
