"""The learning rate as a function of the update's number alone, so that a run that goes on needs no state of it."""

from __future__ import annotations

import math
from typing import Literal

Decline = Literal["constant", "linear", "cosine"]


def share_of_peak(update: int, *, warmup: int, decline: Decline, end: int | None) -> float:
    """The share of the full learning rate with which an update learns, above 0 and at most 1.

    It rises in equal steps over the `warmup` updates, is 1 in the next, and falls from there to 0 in update `end`: on a line, or
    on half a cosine (Loshchilov and Hutter, "SGDR", 2017, equation 5, one cycle down to 0).

    Args:
        update: counted from 0, below `end`.
        warmup: updates before the first with the full rate.
        decline: how it falls.
        end: the first update that would learn nothing, beyond `warmup`; read unless `decline` is constant.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if decline == "constant" or end is None:
        return 1.0
    gone = (update - warmup) / (end - warmup)
    return 1 - gone if decline == "linear" else (1 + math.cos(math.pi * gone)) / 2
