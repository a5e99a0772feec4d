"""Rows of estimates say how far they can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from raysuite.kernel.directions import Gram
from raysuite.study.estimates import estimates


def simulated(rng: np.random.Generator, noise: float, *, units: int = 32, bins: int = 4) -> dict[str, Any]:
    """The row of the matched cosine of two objectives with orthogonal directions and partly the same noise."""
    common, mean = rng.normal(size=(units, bins, 40)), np.eye(40)[:2]
    g = [m + noise * (0.7 * common + 0.71 * rng.normal(size=(units, bins, 40))) for m in mean]
    grams = {("a", "a"): Gram.of(g[0], g[0]), ("b", "b"): Gram.of(g[1], g[1]), ("a", "b"): Gram.of(g[0], g[1])}
    products = {pair: (gram, Gram.stacked([gram.over_bins()])) for pair, gram in grams.items()}
    rows: list[Mapping[str, Any]] = list(estimates(products, ["a", "b"], ["all"]))
    return dict(next(row for row in rows if row["quantity"] == "matched_cosine"))


@pytest.mark.parametrize(("noise", "weak"), [(0.3, False), (1.1, True)])
def test_matched_cosines_of_bins_found_by_luck_say_so(noise: float, weak: bool) -> None:
    """The truth is 0; where few bins are found, those are that noise made large, and with it the cosine."""
    rng = np.random.default_rng(0)
    given = [row for row in (simulated(rng, noise) for _ in range(80)) if np.isfinite(row["estimate"])]
    marked = [row["note"].startswith("low power: ") for row in given]
    assert len(given) >= 5 and "bins " in given[0]["note"]
    assert np.mean(marked) >= 0.9 if weak else not any(marked)
    assert (np.mean([row["estimate"] for row in given]) > 0.2) == weak
