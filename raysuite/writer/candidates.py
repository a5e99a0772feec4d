"""Rewrites of a prompt, and which of them are preferred.

Axis legend: C candidates of one prompt, the user's own text first; M pictures of each, the same noise in a column for all candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from raysuite.writer.model import Writer

Which = Literal["all", "best"]
ROUNDING = 1e-9
"""Of means of scores: what differs by less is equal."""


@dataclass(frozen=True)
class Candidate:
    """A text that may stand for what the user typed."""

    prompt: int
    """Number of the user's prompt, the coordinate of the noise."""
    text: str
    own: bool
    """Whether it is the user's own text."""
    ended: bool = True
    """Whether it is whole, rather than what of a rewrite had been written when its tokens ran out."""


def candidates(
    writer: Writer, texts: Sequence[str], numbers: Sequence[int], *, draws: int, seed: int, temperature: float = 1.0
) -> list[Candidate]:
    """The user's own text and so many draws for each, equal ones once, empty ones never.

    Args:
        writer: that draws.
        texts: what users typed.
        numbers: of these prompts, coordinates of the draws.
        draws: for each prompt.
        seed: of the draws.
        temperature: of the draws.
    """
    drawn = [
        writer.rewrites(texts, temperature=temperature, seed=seed, numbers=numbers, draw=draw) for draw in range(draws)
    ]
    found = []
    for place, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        of_prompt = {text: True}  # whether it ended, as a text that is equal may have
        for one in (rewrites[place] for rewrites in drawn):
            of_prompt[one.text] = of_prompt.get(one.text, False) or one.ended
        found += [Candidate(number, said, own=said == text, ended=ended) for said, ended in of_prompt.items() if said]
    return found


def preferred(scores_CM: np.ndarray, *, margin: float, which: Which = "all") -> tuple[list[tuple[int, int]], int]:
    """Pairs of candidates (better, worse), and how many pairs were left out as ties.

    A pair counts where the mean over pictures of the difference d_m of its scores is above 0 and at least `margin` standard errors of
    that mean, sd(d) / sqrt(M) with M - 1 in the deviation. Both have the same noise, so that what it does to both cancels.

    Args:
        scores_CM: scores (C, M).
        margin: in standard errors; with one picture, which has no standard error, only 0 can be asked.
        which: all pairs that count, or the best candidate (the first of equals) with the worst (the last).
    """
    count, pictures = scores_CM.shape
    order = np.argsort(-scores_CM.mean(1), kind="stable")
    asked = [(order[0], order[-1])] if which == "best" and count > 1 else combinations(order, 2)
    found, left_out = [], 0
    for better, worse in asked:
        difference_M = scores_CM[better] - scores_CM[worse]
        error = difference_M.std(ddof=1) / np.sqrt(pictures) if pictures > 1 else 0.0
        if difference_M.mean() > ROUNDING and difference_M.mean() >= margin * error:
            found.append((int(better), int(worse)))
        else:
            left_out += 1
    return found, left_out
