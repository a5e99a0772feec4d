"""How numbers are written: counts, minus signs, and as many decimals as an interval deserves."""

from __future__ import annotations

import math

from raysuite.kernel.stats import Interval


def count(how_many: int, what: str) -> str:
    """'1 prompt', '2 prompts'."""
    return f"{how_many:,} {what}{'' if how_many == 1 else 's'}"


def decimals(interval: Interval) -> int:
    """Decimal places that show the width of an interval to two digits."""
    width = interval.high - interval.low
    rounding = 1e-9 * max(abs(interval.low), abs(interval.high))
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width > rounding else 3


def number(value: float, places: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")


def with_interval(interval: Interval, *, signed: bool = False, places: int | None = None) -> str:
    """An estimate and its limits: 0.14 [0.09, 0.19]."""
    places = decimals(interval) if places is None else places
    low, high = number(interval.low, places), number(interval.high, places)
    return f"{number(interval.estimate, places, signed=signed)} [{low}, {high}]"
