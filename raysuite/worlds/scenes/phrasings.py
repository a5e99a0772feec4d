"""A user's language for the scenes world: how people put what the model's own sentences say, and what they meant by it.

    digits       3 red circles                  1 red circle left of 1 blue square
    synonyms     three crimson discs            a crimson disc left of an azure box
    terse        red circle three               red circle left blue square
    reversed     three circles red              left of a blue square a red circle
    typo         three red cirles               a red circl left of a blue squar
    polite       please draw three red circles  please draw a red circle left of a blue square

A phrasing is a set of such habits. Each occurs alone and in a few company in what is *seen*; other companies of the same habits are
*new*: they are never learned from. With the split of combinations in `grammar` that makes four cells of evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.grammar import COUNTS, Scene

HABITS = ("digits", "synonyms", "terse", "reversed", "typo", "polite")
SYNONYMS = {
    "red": "crimson",
    "green": "emerald",
    "blue": "azure",
    "yellow": "golden",
    "purple": "violet",
    "black": "ebony",
    "circle": "disc",
    "square": "box",
    "triangle": "wedge",
}
OPENING = "please draw"
PLAIN = "plain"
"""The phrasing without a habit: the model's own sentence. Some users speak so, and a writer has to let them."""
SEEN = (
    PLAIN,
    *HABITS,
    "digits+polite",
    "synonyms+terse",
    "reversed+typo",
)
NEW = (
    "digits+synonyms",
    "digits+typo",
    "synonyms+reversed",
    "synonyms+polite",
    "terse+polite",
    "typo+polite",
    "digits+synonyms+polite",
    "synonyms+terse+polite",
)
Cell = Literal["seen phrasing, training", "seen phrasing, held out", "new phrasing, training", "new phrasing, held out"]


@dataclass(frozen=True)
class UserPrompt:
    """What a user typed, what they meant, and how it is split."""

    text: str
    scene: Scene
    phrasing: str
    """One of `SEEN` or `NEW`."""
    cell: Cell
    """Phrasing by combination; "held out" is a combination that no training prompt contains."""


def phrase(scene: Scene, phrasing: str) -> str:
    """How a scene is asked for.

    Args:
        scene: what is meant.
        phrasing: habits with plus signs between them, or `plain`.
    """
    habits = () if phrasing == PLAIN else tuple(phrasing.split("+"))
    said = _relation(scene, habits) if scene.relation else _count(scene, habits)
    return f"{OPENING} {said}" if "polite" in habits else said


@cache
def user_prompts(*, held_out: bool) -> tuple[UserPrompt, ...]:
    """All that may be learned from (seen phrasings of training combinations), or the three cells that may not."""
    prompts = (grammar.training_prompts(), grammar.held_out_prompts())
    cells: tuple[tuple[Cell, tuple[str, ...], tuple[str, ...]], ...] = (
        ("seen phrasing, training", SEEN, prompts[0]),
        ("seen phrasing, held out", SEEN, prompts[1]),
        ("new phrasing, training", NEW, prompts[0]),
        ("new phrasing, held out", NEW, prompts[1]),
    )
    return tuple(
        UserPrompt(phrase(scene, phrasing), scene, phrasing, cell)
        for cell, phrasings, sentences in (cells[1:] if held_out else cells[:1])
        for phrasing in phrasings
        for scene in map(grammar.parse, sentences)
    )


def _count(scene: Scene, habits: tuple[str, ...]) -> str:
    count, thing = len(scene.things), scene.things[0]
    number = str(count) if "digits" in habits else COUNTS[count - 1]
    colour, shape = (_word(word, scene, habits) for word in (thing.colour, thing.shape))
    if "terse" in habits:
        return f"{colour} {shape} {number}"
    if count > 1:
        shape += "es" if shape.endswith("x") else "s"
    return f"{number} {shape} {colour}" if "reversed" in habits else f"{number} {colour} {shape}"


def _relation(scene: Scene, habits: tuple[str, ...]) -> str:
    assert scene.relation is not None
    nouns = (f"{_word(t.colour, scene, habits)} {_word(t.shape, scene, habits)}" for t in scene.things)
    first, second = (_article(noun, habits) + noun for noun in nouns)
    relation = scene.relation.removesuffix(" of") if "terse" in habits else scene.relation
    return f"{relation} {second} {first}" if "reversed" in habits else f"{first} {relation} {second}"


def _article(noun: str, habits: tuple[str, ...]) -> str:
    if "digits" in habits:
        return "1 "
    if "terse" in habits:
        return ""
    return "an " if noun[0] in "aeiou" else "a "


def _word(word: str, scene: Scene, habits: tuple[str, ...]) -> str:
    """A colour or a shape as a user has it. A typo is a letter that shapes lack, another one from scene to scene, never the first."""
    if "synonyms" in habits:
        return SYNONYMS[word]
    if "typo" in habits and word in grammar.SHAPES:
        lost = 1 + len(scene.prompt) % (len(word) - 1)
        return word[:lost] + word[lost + 1 :]
    return word
