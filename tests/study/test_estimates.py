"""Rows of estimates say how far they can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from raysuite.kernel.directions import Gram, expected_cosine, squared_norm
from raysuite.study.estimates import estimates, predicted_gain, widest


def simulated(rng: np.random.Generator, noise: float, *, units: int = 32, bins: int = 4) -> dict[str, Any]:
    """The row of the matched cosine of two objectives with orthogonal directions and partly the same noise."""
    common, mean = rng.normal(size=(units, bins, 40)), np.eye(40)[:2]
    g = [m + noise * (0.7 * common + 0.71 * rng.normal(size=(units, bins, 40))) for m in mean]
    grams = {("a", "a"): Gram.of(g[0], g[0]), ("b", "b"): Gram.of(g[1], g[1]), ("a", "b"): Gram.of(g[0], g[1])}
    products = {pair: (gram, Gram.stacked([gram.over_bins()])) for pair, gram in grams.items()}
    rows: list[Mapping[str, Any]] = list(estimates(products, ["a", "b"], ["all"]))
    return dict(next(row for row in rows if row["quantity"] == "matched_cosine"))


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "weak"), [(0.3, False), (1.1, True)])
def test_matched_cosines_of_bins_found_by_luck_say_so(noise: float, weak: bool) -> None:
    """The truth is 0; where few bins are found, those are that noise made large, and with it the cosine."""
    rng = np.random.default_rng(0)
    given = [row for row in (simulated(rng, noise) for _ in range(80)) if np.isfinite(row["estimate"])]
    marked = [row["note"].startswith("low power: ") for row in given]
    assert len(given) >= 5 and "bins " in given[0]["note"]
    assert np.mean(marked) >= 0.9 if weak else not any(marked)
    assert (np.mean([row["estimate"] for row in given]) > 0.2) == weak


def test_rows_are_those_of_their_part() -> None:
    """Two objectives over two bins and two blocks of 40 weights; every row is the kernel's own estimate of that part."""
    rng = np.random.default_rng(1)
    mean = np.zeros((2, 40))
    mean[:, 0], mean[1, 1] = (1.0, 1.8), 2.4  # of lengths 1 and 3 with a cosine of 0.6
    g = {
        label: mean[i] * np.array([1.0, 0.5])[:, None] + 0.1 * rng.normal(size=(16, 2, 40))
        for i, label in enumerate("ab")
    }
    by_block = {label: of.sum(1).reshape(16, 2, 20) for label, of in g.items()}
    products = {
        (a, b): (
            Gram.of(g[a], g[b]),
            Gram.stacked([Gram.of(by_block[a][:, i], by_block[b][:, i]) for i in range(2)]),
        )
        for a, b in (("a", "a"), ("b", "b"), ("a", "b"))
    }
    rows = list(estimates(products, ["a", "b"], ["first", "second"]))

    def parts() -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
        yield "whole", "", {label: of.sum(1) for label, of in g.items()}
        for t in range(2):
            yield "bin", str(t), {label: of[:, t] for label, of in g.items()}
        for i, name in enumerate(("first", "second")):
            yield "block", name, {label: of[:, i] for label, of in by_block.items()}

    for part, where, of in parts():
        grams = {(a, b): Gram.of(of[a], of[b]) for a, b in products}
        here = [row for row in rows if (row["part"], row["where"]) == (part, where)]
        (cosine,) = (row for row in here if row["quantity"] == "expected_cosine")
        expected = expected_cosine(grams["a", "a"], grams["b", "b"], grams["a", "b"])
        assert expected is not None or not np.isfinite(cosine["estimate"])
        if expected is not None:
            found = [cosine[name] for name in ("estimate", "low", "high")]
            assert found == pytest.approx([expected.estimate, expected.low, expected.high])
        for label in "ab":
            (norm,) = (row for row in here if (row["quantity"], row["a"]) == ("squared_norm", label))
            assert norm["estimate"] == pytest.approx(squared_norm(grams[label, label]).estimate)
    (whole,) = (row for row in rows if (row["quantity"], row["part"]) == ("expected_cosine", "whole"))
    assert whole["estimate"] == pytest.approx(0.6, abs=0.05)


def a_cosine(estimate: float, low: float, high: float) -> dict[str, Any]:
    """The row of two objectives over all weights."""
    place = {"quantity": "expected_cosine", "part": "whole", "space": "parameters"}
    return {**place, "estimate": estimate, "low": low, "high": high}


def test_the_widest_interval_is_that_of_the_farther_limit() -> None:
    row, unknown = a_cosine(0.5, 0.4, 0.8), a_cosine(0.0, float("nan"), float("nan"))
    assert widest([row, a_cosine(0.0, -0.1, 0.1)]) == pytest.approx(0.3)
    assert widest([row, unknown]) == float("inf")
    assert widest([a_cosine(0.9, 0.2, 1.0)]) == pytest.approx(0.7)


def test_a_step_along_a_gradient_that_rewards_share_is_predicted_to_gain() -> None:
    """First order: the step times the mean product of different units."""
    reward, objective = np.tile([1.0, 0.0], (8, 1)), np.tile([2.0, 0.0], (8, 1))
    found = predicted_gain(Gram.of(reward, objective), 0.1)
    assert [found.low, found.estimate, found.high] == pytest.approx([0.2] * 3)


def test_shares_are_those_of_cosines_whatever_the_norms() -> None:
    """Lengths 1 and 3 with a cosine of 0.6: eigenvalues 1.6 and 0.4 of 2."""
    rng, mean = np.random.default_rng(2), np.zeros((2, 20))
    mean[:, 0], mean[1, 1] = (1.0, 1.8), 2.4
    g = {label: mean[i] + 0.05 * rng.normal(size=(16, 1, 20)) for i, label in enumerate("ab")}
    products = {
        (a, b): (gram, Gram.stacked([gram.over_bins()])) for a in "ab" for b in "ab" if (gram := Gram.of(g[a], g[b]))
    }
    rows = list(estimates(products, ["a", "b"], ["all"]))
    shares = [row["estimate"] for row in rows if row["quantity"] == "principal_share"]
    assert shares == pytest.approx([0.8, 0.2], abs=0.03)
