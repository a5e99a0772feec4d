"""Who answers an episode. The reference policies need no model that reads, and have values that are known beforehand: they give the
ceiling, the floor, and what every other number means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from raysuite.families.interleaved import InterleavedPipeline
from raysuite.in_context.chat import Chat, Unanswered
from raysuite.in_context.tasks import Answer, Cell, Demo, Episode, Variant, World
from raysuite.rewards.endpoints import Part
from raysuite.rng import Stage, numpy_generator, torch_generator

Captioner = Callable[[Episode, int, Demo], str]
"""An episode, the place of a demonstration in it, and the demonstration -> a sentence that says what its picture shows."""

Caption = Callable[[np.ndarray, np.random.Generator, float], str]
"""Of a world: a picture, a generator, the chance that an attribute is misread -> a sentence."""


class Generator(ABC):
    """One way of answering: an episode in, a description or a picture out."""

    kept: bool = False
    """Whether its answers take long, and are written down block by block as they come."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers besides the episode, for the record."""
        return {}

    @abstractmethod
    def answer(self, world: World, episode: Episode) -> Answer:
        """The same episode gives the same answer."""

    def answers(self, world: World, episodes: Sequence[Episode]) -> list[Answer]:
        """Those of several."""
        return [self.answer(world, episode) for episode in episodes]


class Oracle(Generator):
    """Knows the cell, and describes it: what a model that draws can reach at best. With ground-truth pictures it is always right."""

    def answer(self, world: World, episode: Episode) -> Answer:
        """The right description."""
        return Answer(world.sentence(episode.task.theme, episode.cell))


class Written(Generator):
    """Gives the model that draws the last text as it stands. Of the variant `exact` it is all that has to be known, in words that
    may be in an unusual order; of `default` half of it: the latent side is then right by chance alone.
    """

    def answer(self, world: World, episode: Episode) -> Answer:
        """The last text."""
        return Answer(episode.query)


class Copy(Generator):
    """The last demonstration's picture once more: the latent side is always right, the side that the text names never."""

    def answer(self, world: World, episode: Episode) -> Answer:
        """The last demonstration's picture."""
        return Answer(picture=episode.demos[-1].picture)


@dataclass(frozen=True)
class Random(Generator):
    """A ground-truth picture of any cell: right by chance alone."""

    seed: int

    def answer(self, world: World, episode: Episode) -> Answer:
        """A picture of a cell that is drawn evenly."""
        rng = _generator(self.seed, episode)
        theme = episode.task.theme
        cell = Cell(str(rng.choice(theme.details)), str(rng.choice(theme.objects)))
        return Answer(picture=world.picture(theme, cell, rng))


@dataclass(frozen=True)
class Common(Generator):
    """Captions every demonstration, takes the latent that most captions name (the first of several), and describes it with what the
    last text asks for: the inference that the task is about, written down. It knows which side is which, as no model is told, and
    does not look at the texts of demonstrations.
    """

    captioner: Captioner
    errors: float = 0.0
    """Share of attributes that it misreads, for the record."""

    def settings(self) -> dict[str, Any]:
        """How well it reads."""
        return {"errors": self.errors}

    def answer(self, world: World, episode: Episode) -> Answer:
        """A description; the last text alone where no caption names a latent."""
        task = episode.task
        captions = [self.captioner(episode, place, demo) for place, demo in enumerate(episode.demos)]
        named = [task.latent(world.meaning(task.theme, caption)) for caption in captions]
        votes = Counter(latent for latent in named if latent is not None)
        said = " | ".join(f"{d.text}: {caption or '?'}" for d, caption in zip(episode.demos, captions, strict=True))
        if not votes:
            return Answer(episode.request, transcript=said)
        cell = task.cell(episode.request, votes.most_common(1)[0][0])
        return Answer(world.sentence(task.theme, cell), transcript=said)


LEARN = (
    "Each text below goes with what follows it. Find out what all of them have in common, and what the text changes."
)
DESCRIBE = "Describe the picture that goes with the last text in one plain sentence. Reply with the description, and nothing else."
ANALYSE = (
    "Before that, say step by step how each text and what follows it belong together, and what all have in common."
)


class Reader(Generator):
    """A model that reads texts and pictures is shown the episode, and describes the picture that comes next.

    Of the variant `caption` it is shown captions in place of pictures. Of `cot` it is asked twice: for an analysis, and, with that
    before it, for the description.

    Args:
        chat: which model.
    """

    kept = True

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def settings(self) -> dict[str, Any]:
        """Which model."""
        return dict(self._chat.settings())

    def answer(self, world: World, episode: Episode) -> Answer:
        """A description; an empty one where the question is refused."""
        shown: list[Part] = []
        for demo in episode.demos:
            shown += [f"{demo.text}: ", demo.caption if episode.variant == "caption" else demo.picture]
        shown.append(f"{episode.query}: ")
        analysis = ""
        try:
            if episode.variant == "cot":
                analysis = self._chat([LEARN, *shown, ANALYSE])
                shown.append(analysis)
            return Answer(self._chat([LEARN, *shown, DESCRIBE]), transcript=analysis)
        except Unanswered as refused:
            return Answer("", transcript=analysis, refused=str(refused))


NEXT = "Each text goes with the picture that follows it. Find out what all pictures have in common, and draw the one that comes next."


class Interleaved(Generator):
    """A pipeline that takes texts and pictures, and draws what comes next itself.

    Args:
        pipeline: which.
        seed: of its noise.
    """

    kept = True

    def __init__(self, pipeline: InterleavedPipeline, seed: int) -> None:
        self._pipeline, self._seed = pipeline, seed

    def settings(self) -> dict[str, Any]:
        """Which pipeline, and how it draws."""
        known = self._pipeline
        return {"pipeline": known.path, "class": known.name, "steps": known.steps, "size": known.size}

    def answer(self, world: World, episode: Episode) -> Answer:
        """A picture, from noise that is a function of the task and the number of the episode."""
        parts: list[Part] = [NEXT]
        for demo in episode.demos:
            parts += [f"{demo.text}: ", demo.picture]
        noise = torch_generator(
            seed=self._seed, stage=Stage.IN_CONTEXT_NOISE, prompt=episode.task.number, sample=episode.index
        )
        return Answer(picture=self._pipeline([*parts, f"{episode.query}: "], noise))


@dataclass(frozen=True)
class Row:
    """A line of the table: a generator on a variant of the episodes."""

    name: str
    variant: Variant
    generator: Generator


def given_captions(episode: Episode, place: int, demo: Demo) -> str:
    """The captions that come with the demonstrations."""
    return demo.caption


def _generator(seed: int, episode: Episode, place: int = 0) -> np.random.Generator:
    return numpy_generator(
        seed=seed,
        stage=Stage.IN_CONTEXT_POLICY,
        update=place,
        prompt=episode.task.number,
        sample=episode.index,
    )


def erring(seed: int, caption: Caption, errors: float) -> Captioner:
    """A captioner that looks at pictures, and misreads so large a share of their attributes."""
    read: dict[tuple[int, int, int], str] = {}  # a picture has one caption, however many shots it is shown in

    def reading(episode: Episode, place: int, demo: Demo) -> str:
        at = episode.task.number, episode.index, place
        if at not in read:
            read[at] = caption(demo.picture, _generator(seed, episode, 1 + place), errors)
        return read[at]

    return reading


def published_rows(seed: int, *also: Row) -> tuple[Row, ...]:
    """What is compared without a model that reads.

    Args:
        seed: of the draws of policies.
        also: rows beside the chain.
    """
    return (
        Row("oracle", "default", Oracle()),
        Row("chain", "caption", Common(given_captions)),
        *also,
        Row("text as written", "exact", Written()),
        Row("last text alone", "default", Written()),
        Row("copy", "default", Copy()),
        Row("random", "default", Random(seed)),
    )


def scenes_rows(seed: int, caption: Caption, errors: float) -> tuple[Row, ...]:
    """The same in the scenes world, with a captioner that errs.

    Args:
        seed: of the draws of policies.
        caption: of the world: picture, generator, chance of an error an attribute -> a sentence.
        errors: that chance.
    """
    erred = Common(erring(seed, caption, errors), errors)
    return published_rows(seed, Row(f"chain, {100 * errors:g}% of attributes misread", "default", erred))


def reading_rows(chat: Chat) -> tuple[Row, ...]:
    """A model that reads, on every variant."""
    return tuple(Row("reader", variant, Reader(chat)) for variant in get_args(Variant))


def interleaved_rows(pipeline: InterleavedPipeline, seed: int) -> tuple[Row, ...]:
    """A pipeline that takes texts and pictures, on the variants that have pictures and want no words."""
    variants: tuple[Variant, ...] = ("default", "exact", "misleading")
    return tuple(Row("interleaved", variant, Interleaved(pipeline, seed)) for variant in variants)
