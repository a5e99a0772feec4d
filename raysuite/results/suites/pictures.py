"""Pictures of the same prompt and noise side by side, in orders that a reader of the page may choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.results.page import thumbnail
from raysuite.results.suites.read import SuiteResults

MOST = 48
"""Prompts whose pictures are on a page: half of them evenly spaced, the others where differences are largest, if all were kept."""


def shown(found: SuiteResults, compared: Sequence[tuple[str, str]]) -> list[int]:
    """Numbers of the prompts whose first pictures are shown: those of which there is one of every member.

    Args:
        found: the evaluation.
        compared: members, and whom each is compared with.
    """
    folders = [found.directory / "members" / label / "images" for label in found.members]
    kept = [prompt for prompt in range(len(found.prompts_P)) if all((f / f"{prompt}-0.png").is_file() for f in folders)]
    if len(kept) <= MOST:
        return kept
    chosen = {kept[place * len(kept) // (MOST // 2)] for place in range(MOST // 2)} if compared else set()
    orders = [np.array(kept)[np.argsort(gains[kept], kind="stable")] for gains in _gains(found, compared)[:MOST]]
    for place in range(len(kept)):  # the greatest losses and gains of each, in turn
        for order in orders:
            for prompt in (order[-1 - place], order[place]):
                if len(chosen) < MOST:
                    chosen.add(int(prompt))
    return sorted(chosen or kept[:MOST])


def choice(found: SuiteResults) -> str:
    """Which prompts are shown, in a sentence."""
    if len(found.prompts_P) <= MOST:
        return "The first picture of every prompt."
    if found.protocol["images"] == "all":
        return (
            f"The first picture of {MOST} prompts: half of them spaced evenly over the suite, the others where gains and losses are "
            "greatest, which are a choice."
        )
    return f"The first picture of {MOST} prompts, spaced evenly over the suite; they are not a choice."


def orders(found: SuiteResults, compared: Sequence[tuple[str, str]]) -> list[str]:
    """Names of the orders besides that of the suite."""
    return [
        f"{reward}: {member} {does} most"
        for member, _ in compared
        for reward in found.rewards
        for does in ("gains", "loses")
    ]


def cards(found: SuiteResults, compared: Sequence[tuple[str, str]], prompts: Sequence[int]) -> list[dict[str, Any]]:
    """The prompts with their pictures, and the place of each in every order.

    Raises:
        UserError: a picture is damaged.
    """
    places = [np.arange(len(prompts))]
    for gains in _gains(found, compared):
        gain = gains[list(prompts)] if prompts else np.empty(0)
        places += [_ranks(-gain), _ranks(gain)]
    return [
        {
            "prompt": found.prompts_P[prompt],
            "category": str(found.categories_P[prompt]),
            "places": [int(order[row]) for order in places],
            "figures": [_figure(found, member, prompt) for member in found.members],
        }
        for row, prompt in enumerate(prompts)
    ]


def _gains(found: SuiteResults, compared: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """Differences (P,) of the first pictures, in the order of `orders`."""
    return [
        found.scores[member][reward][:, 0] - found.scores[reference][reward][:, 0]
        for member, reference in compared
        for reward in found.rewards
    ]


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each when they are sorted, the first of equal ones first."""
    ranks = np.empty(len(values), dtype=int)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def _figure(found: SuiteResults, member: str, prompt: int) -> dict[str, Any]:
    file = found.directory / "members" / member / "images" / f"{prompt}-0.png"
    png = file.read_bytes()
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(
            f"expected a PNG picture at {file}, it is none: copy it from where it is whole, or remove the block's scores and give the "
            "command again"
        )
    marks = [
        (reward, float(scores[prompt, 0]), bool(np.isin(scores, (0.0, 1.0)).all()))
        for reward, scores in found.scores[member].items()
    ]
    return {"member": member, "marks": marks, **thumbnail(png)}
