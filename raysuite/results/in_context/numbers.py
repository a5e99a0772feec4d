"""What an in-context evaluation says, with intervals over episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysuite.kernel.stats import (
    NOTHING,
    Interval,
    bootstrap_share,
    difference_of_methods,
    mean_over_runs,
    paired_difference,
)
from raysuite.results.comparison import generator
from raysuite.results.in_context.read import ALONE, NOBODY, InContext, Method, Source

Row = tuple[str, str]
"""Name and variant of a line."""


@dataclass(frozen=True)
class Factors:
    """Where right pictures come from: right = described x drawn + (1 - described) x lucky."""

    row: Row
    drawer: int
    described: Interval
    """The chance that the description is right."""
    drawn: Interval
    """The chance that the picture is, where the description is."""
    lucky: Interval
    """The chance that it is all the same where the description is not."""
    right: Interval
    textual: Interval
    visual: Interval
    invalid: Interval
    difference: Interval
    """Of `right`, from the first model, on the same episodes with the same noise."""


def share(found: InContext, column: str, rows: np.ndarray) -> Interval:
    """The mean of a column over these rows of judgements; NaN where there are none."""
    if not rows.any():
        return NOTHING
    return bootstrap_share(found.judgements[column][rows].astype(float), found.groups(rows), generator())


def difference(found: InContext, row: Row, drawer: int, **wanted: object) -> Interval:
    """How much more often one model is right than the first, on the same episodes with the same noise."""
    before, after = (found.where(row, drawer=place, **wanted) for place in (0, drawer))
    right = found.judgements["right"].astype(float)
    # rows of one drawer come in the order of the questions, whoever draws
    return paired_difference(right[before], right[after], found.groups(after), generator())


def factors(found: InContext, row: Row, drawer: int, **wanted: object) -> Factors:
    """A line as one model draws it."""
    rows = found.where(row, drawer=drawer, **wanted)
    described = found.judgements["described"].astype(bool)
    by_model = drawer != NOBODY
    return Factors(
        row,
        drawer,
        described=share(found, "described", rows) if by_model else NOTHING,
        drawn=share(found, "right", rows & described) if by_model else NOTHING,
        lucky=share(found, "right", rows & ~described) if by_model else NOTHING,
        right=share(found, "right", rows),
        textual=share(found, "textual", rows),
        visual=share(found, "visual", rows),
        invalid=share(found, "invalid", rows),
        difference=difference(found, row, drawer, **wanted) if drawer > 0 else NOTHING,
    )


@dataclass(frozen=True)
class Together:
    """Shares of right pictures with and without somebody who reads, drawn by the first model and by another."""

    row: Row
    method: Method
    neither: Interval
    """The last text alone, drawn by the first model."""
    reading: Interval
    """What was read, drawn by the first model."""
    drawing: Interval
    """The last text alone, drawn by the other."""
    both: Interval
    reading_adds: Interval
    """reading - neither, on the same episodes with the same noise, as all differences."""
    drawing_adds: Interval
    """both - reading: what the other model adds where somebody reads."""
    both_add: Interval
    """both - neither."""
    more_than_sum: Interval
    """(both - reading) - (drawing - neither)."""


def right(found: InContext, row: Row, places: tuple[int, ...], **wanted: object) -> np.ndarray:
    """Whether each picture is right, a row a model. Rows of judgements come in the order of questions, whoever answers and draws."""
    return np.stack([found.judgements["right"][found.where(row, drawer=n, **wanted)] for n in places]).astype(float)


def drawn(found: InContext, row: Row, method: Method, **wanted: object) -> tuple[Interval, Interval | None]:
    """How often a method's pictures are right, over its models, and how much more often than the first model's (None: it is that)."""
    pictures = right(found, row, method.places, **wanted)
    groups = found.groups(found.where(row, drawer=method.places[0], **wanted))
    share = mean_over_runs(pictures, groups, generator())
    if 0 in method.places:
        return share, None
    return share, difference_of_methods(right(found, row, (0,), **wanted), pictures, groups, generator())


def together(found: InContext, row: Row, method: Method) -> Together:
    """What reading and another model add to each other.

    Args:
        found: an evaluation with a line of the last text alone.
        row: a line that reads.
        method: another than the first model.
    """
    neither, reading = (right(found, line, (0,)) for line in (ALONE, row))
    drawing, both = (right(found, line, method.places) for line in (ALONE, row))
    groups = found.groups(found.where(row, drawer=0))
    return Together(
        row,
        method,
        neither=mean_over_runs(neither, groups, generator()),
        reading=mean_over_runs(reading, groups, generator()),
        drawing=mean_over_runs(drawing, groups, generator()),
        both=mean_over_runs(both, groups, generator()),
        reading_adds=paired_difference(neither[0], reading[0], groups, generator()),
        drawing_adds=difference_of_methods(reading, both, groups, generator()),
        both_add=difference_of_methods(neither, both, groups, generator()),
        more_than_sum=difference_of_methods(reading - neither, both - drawing, groups, generator()),
    )


def corrected(interval: Interval, judge: Source) -> Interval:
    """What is true of a share that a judge with known errors measured: p = (q - (1 - b)) / (a + b - 1), cut off at 0 and 1.

    Of a share p of right pictures a judge calls q = a p + (1 - b)(1 - p) right, where a is its chance to call a right picture right,
    and b to call a wrong one wrong. Both are taken as known: the interval is that of the pictures alone.

    Source: Rogan and Gladen, "Estimating prevalence from the results of a screening test", 1978.

    Raises:
        ValueError: the judge tells nothing: a + b is at most 1.
    """
    a, b = judge.sensitivity, judge.specificity
    if a + b <= 1:
        raise ValueError(f"expected a judge that tells something, got one of sensitivity {a:g} and specificity {b:g}")
    limits = ((q - (1 - b)) / (a + b - 1) for q in (interval.estimate, interval.low, interval.high))
    return Interval(*(float(np.clip(p, 0, 1)) for p in limits))
