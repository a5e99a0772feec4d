"""Inner products -> estimates of agreement, one row each: what estimates.parquet and gains.parquet hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
from raysuite.kernel.stats import ENOUGH_POWER, NOTHING, Interval
from raysuite.study.measure import Products

UNEQUAL = "units differ so much in size that the interval is too narrow"


def estimates(products: Products, labels: Sequence[str], blocks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows of one space: quantity, a, b, part, where, estimate, low, high, note.

    Args:
        products: of every pair with a before b in `labels`, and of each with itself.
        labels: objectives, in the order of the study.
        blocks: names of the L blocks.
    """
    whole = {pair: by_bin.over_bins() for pair, (by_bin, _) in products.items()}
    bins = len(products[labels[0], labels[0]][0].total)
    for part, where, grams in [("whole", "", whole), *_parts(products, bins, blocks)]:
        for row in _of_part(grams, labels):
            yield {"part": part, "where": where, **row}
    for a, b in _pairs(labels) if bins > 1 else ():
        matched = matched_cosine(products[a, a][0], products[b, b][0], products[a, b][0])
        note = "no bin where both show a direction"
        if matched:
            # bins were chosen for showing a direction: the least likely of them to do so says how much luck may be in it
            least = {x: _least(power(products[x, x][0][t, t]) for t in matched.bins) for x in (a, b)}
            note = "; ".join(filter(None, [_weak(least), f"bins {', '.join(map(str, matched.bins))}"]))
        yield {"part": "whole", "where": "", **_row("matched_cosine", a, b, matched.cosine if matched else None, note)}
    yield from _principal(whole, labels)


def _parts(
    products: Products, bins: int, blocks: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[tuple[str, str], Gram]]]:
    """Timestep bins and blocks of layers, where there is more than one."""
    for t in range(bins) if bins > 1 else ():
        yield "bin", str(t), {pair: by_bin[t, t] for pair, (by_bin, _) in products.items()}
    for i, name in enumerate(blocks) if len(blocks) > 1 else ():
        yield "block", name, {pair: by_block[i] for pair, (_, by_block) in products.items()}


def _of_part(grams: Mapping[tuple[str, str], Gram], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    silent = [label for label in labels if not has_direction(grams[label, label])]
    found = {label: power(grams[label, label]) for label in labels}
    for label in labels:
        note = UNEQUAL if unequal(grams[label, label]) else ""
        yield _row("squared_norm", label, label, squared_norm(grams[label, label]), note)
        empty = not grams[label, label].diagonal_n.any()
        yield _row("snr", label, label, None if empty else signal_to_noise(grams[label, label]), note)
        yield _row("power", label, label, found[label])
    for a, b in _pairs(labels):
        without = [label for label in (a, b) if label in silent]
        note = f"no direction: {', '.join(without)}" if without else _weak({label: found[label] for label in (a, b)})
        yield _row("expected_cosine", a, b, expected_cosine(grams[a, a], grams[b, b], grams[a, b]), note)
        if grams[a, a].total > 0 and grams[b, b].total > 0:
            naive = batch_cosine(grams[a, a], grams[b, b], grams[a, b])
            yield _row("batch_cosine", a, b, Interval(naive, float("nan"), float("nan")))


def _least(powers: Iterable[Interval]) -> Interval:
    return min(powers, key=lambda interval: interval.estimate)


def _weak(powers: Mapping[str, Interval]) -> str:
    """Which objectives may have been found by luck; nothing where none may."""
    weak = [f"{label} {chance.estimate:.0%}" for label, chance in powers.items() if chance.estimate < ENOUGH_POWER]
    return f"low power: {', '.join(weak)}" if weak else ""


def _principal(grams: Mapping[tuple[str, str], Gram], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Shares and loadings over the objectives that show a direction."""
    shown = [label for label in labels if has_direction(grams[label, label])]
    if len(shown) < 2:
        return
    norm = {label: off_diagonal_means(grams[label, label])[0] ** 0.5 for label in shown}
    cosines = np.eye(len(shown))
    for i, a in enumerate(shown):
        for j, b in enumerate(shown[i + 1 :], i + 1):
            cosines[i, j] = cosines[j, i] = np.clip(off_diagonal_means(grams[a, b])[0] / norm[a] / norm[b], -1, 1)
    shares, vectors = principal_directions(cosines)
    for number, (share, vector) in enumerate(zip(shares, vectors, strict=True)):
        values = [
            ("principal_share", "", share),
            *(("principal_loading", a, v) for a, v in zip(shown, vector, strict=True)),
        ]
        for quantity, a, value in values:
            found = Interval(float(value), float("nan"), float("nan"))
            yield {"part": "whole", **_row(quantity, a, "", found), "where": str(number)}


def widest(rows: Sequence[Mapping[str, Any]]) -> float:
    """How far the expected cosine of any two objectives over all weights may be from its estimate; infinite where one is not known."""
    far = 0.0
    for row in rows:
        if (row["quantity"], row["part"], row["space"]) == ("expected_cosine", "whole", "parameters"):
            reach = max(row["high"] - row["estimate"], row["estimate"] - row["low"])
            far = max(far, reach if np.isfinite(reach) else np.inf)
    return far


def predicted_gain(gram: Gram, step: float) -> Interval:
    """First-order change of E[r] after a step of this length against an objective's mean gradient: step <g_reward, g_a>.

    Jackknifed over units; units of reward.

    Args:
        gram: of the objective with the trained reward.
        step: length, as a multiple of the mean gradient.
    """
    return jackknife(step * off_diagonal_means(gram))


def _pairs(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((a, b) for i, a in enumerate(labels) for b in labels[i + 1 :])


def _row(quantity: str, a: str, b: str, found: Interval | None, note: str = "") -> dict[str, Any]:
    found = found or NOTHING
    return {
        "quantity": quantity,
        "a": a,
        "b": b,
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "note": note,
    }
