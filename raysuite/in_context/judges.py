"""Who says what a picture shows. Every judge is first asked about pictures whose cells are known, and its errors are reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from raysuite.in_context.chat import Chat, Unanswered
from raysuite.in_context.official import THEMES, WORDS, named
from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import Judgement, Theme
from raysuite.rewards.clip import ClipScore
from raysuite.rng import Stage, numpy_generator


class Reading(NamedTuple):
    """A judgement, and what the judge said."""

    judgement: Judgement
    reply: str = ""
    refused: str = ""
    """With which sentence a question was refused, if one was: its side is then nothing."""


class Judge(Protocol):
    """Pictures in, what they show out."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers, for the record."""

    def __call__(
        self, themes: Sequence[Theme], pictures: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Reading]:
        """One reading a picture, uint8 (H, W, 3); `numbers` are coordinates of whatever the judge draws."""


class Exact:
    """Reads scenes of the bundled world, as their rewards do."""

    def __init__(self, world: ScenesWorld) -> None:
        self._world = world

    def settings(self) -> dict[str, Any]:
        """It has none."""
        return {"name": "exact"}

    def __call__(
        self, themes: Sequence[Theme], pictures: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Reading]:
        """What each picture shows."""
        return [Reading(self._world.judge(theme, picture)) for theme, picture in zip(themes, pictures, strict=True)]


class MultipleChoice:
    """Asks a model that reads pictures two questions on each, one a side, with the side's options in an order that is drawn.

    A reply counts where it names exactly one option, by its number or in words; nothing else does, and nothing takes its place.

    Args:
        chat: which model.
        seed: of the order of options.
    """

    def __init__(self, chat: Chat, seed: int) -> None:
        self._chat, self._seed = chat, seed

    def settings(self) -> dict[str, Any]:
        """Which model."""
        return {"name": "multiple choice", **self._chat.settings()}

    def __call__(
        self, themes: Sequence[Theme], pictures: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Reading]:
        """Two questions a picture."""
        return [self._one(*asked) for asked in zip(themes, pictures, numbers, strict=True)]

    def _one(self, theme: Theme, picture: np.ndarray, number: int) -> Reading:
        detail_word, _, object_word, _ = THEMES[theme.name]
        asked = (
            (f"Which {detail_word} is that of the {object_word} in this picture?", theme.details),
            (f"Which {object_word} does this picture show?", theme.objects),
        )
        chosen, replies, refused = [], [], ""
        for side, (question, options) in enumerate(asked):
            rng = numpy_generator(
                seed=self._seed, stage=Stage.IN_CONTEXT_JUDGE, update=1 + side, prompt=0, sample=number
            )
            order = tuple(options[place] for place in rng.permutation(len(options)))
            shown = " ".join(f"({place}) {WORDS.get(option, option)}" for place, option in enumerate(order, start=1))
            asking = f"{question} {shown}. Reply with the number of one option, and nothing else."
            try:
                reply = self._chat([picture, asking])
            except Unanswered as refusal:
                reply, refused = "", str(refusal)
            chosen.append(option_of(order, reply))
            replies.append(reply)
        return Reading(Judgement(*chosen), " | ".join(replies), refused)


def option_of(options: Sequence[str], reply: str) -> str | None:
    """The one option that a reply names, by its number (from 1) or in words; None for none, for several, and for a number of none.

    >>> options = ("leaf", "hat", "cup")
    >>> [option_of(options, reply) for reply in ("2", "option 3.", "It is a hat.", "(2) hat")]
    ['hat', 'cup', 'hat', 'hat']
    >>> [option_of(options, reply) for reply in ("1 or 2", "0", "4", "", "2: cup")]
    [None, None, None, None, None]
    """
    numbers = [int(number) for number in re.findall(r"\b\d+\b", reply)]
    if any(not 0 < number <= len(options) for number in numbers):
        return None
    found = {options[number - 1] for number in numbers} | {option for option in options if named((option,), reply)}
    return found.pop() if len(found) == 1 else None


class Clip:
    """The option of each side whose word is nearest to the picture. It always has an answer. Weights are read when it is first asked.

    Args:
        model: hub id or directory of a CLIP model; the published numbers are of ViT-B/32.

    Raises:
        UserError: the directory lacks something.
    """

    def __init__(self, model: str = "openai/clip-vit-base-patch32") -> None:
        ClipScore.check(model)
        self._model = model
        self._words: dict[tuple[str, ...], torch.Tensor] = {}

    @cached_property
    def _clip(self) -> ClipScore:
        return ClipScore(self._model, device="cuda" if torch.cuda.is_available() else "cpu")

    def settings(self) -> dict[str, Any]:
        """Which model."""
        return {"name": "CLIP", "model": self._model}

    @torch.no_grad()
    def __call__(
        self, themes: Sequence[Theme], pictures: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Reading]:
        """The nearest options."""
        found = []
        for theme, picture in zip(themes, pictures, strict=True):
            features = self._clip.image_features(self._clip.pixels(picture[None]).to(self._clip.device))
            sides = (
                options[int((self._features(options) @ features[0]).argmax())]
                for options in (theme.details, theme.objects)
            )
            found.append(Reading(Judgement(*sides)))
        return found

    def _features(self, options: tuple[str, ...]) -> torch.Tensor:
        """Of the words of a side, which every picture of its theme is held against."""
        if options not in self._words:
            self._words[options] = self._clip.text_features([WORDS.get(option, option) for option in options])
        return self._words[options]
