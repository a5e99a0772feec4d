"""How much of a prompt a model reads."""

from __future__ import annotations

import pytest

from raysuite.config import Model
from raysuite.families import cut_prompts

SHORT, LONG = "three red circles", "a red circle above a blue square " * 4


@pytest.mark.parametrize(("path", "tokens"), [("scenes", 16), ("scenes-flow", 10)])
def test_prompts_that_are_cut_are_found(path: str, tokens: int) -> None:
    """Words of the bundled vocabulary are one token each, with two for the ends."""
    exactly = " ".join(["red"] * (tokens - 2))
    assert cut_prompts(Model(path=path), [SHORT, LONG, exactly, f"{exactly} red"]) == ([LONG, f"{exactly} red"], tokens)
    assert cut_prompts(Model(path=path), [SHORT]) == ([], tokens)


def test_models_whose_tokenizers_are_not_at_hand_are_not_looked_at() -> None:
    assert cut_prompts(Model(path="toy"), [LONG]) == ([], 0)
    assert cut_prompts(Model(path="nobody/model"), [LONG]) == ([], 0)
