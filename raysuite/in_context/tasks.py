"""The nouns of in-context generation.

An episode shows N demonstrations, each a text and a picture, and asks with one more text for the picture that comes next. Every
picture is a *cell* of a theme's table, details x objects. The text names one side of the cell; the other side, the latent, is the same
in all pictures of the episode and named nowhere. In a task of kind I the text is the detail and the object has to be inferred, in
one of kind II it is the other way round.

Source: Zeng et al., "Can MLLMs Perform Text-to-Image In-Context Learning?", 2024, section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Variant = Literal["default", "caption", "cot", "exact", "misleading"]
"""What the prompt has: texts and pictures; captions in place of pictures; an analysis before the answer; the latent written beside
every text; a wrong latent written beside every text."""
SHOTS = (2, 4, 6, 8)
"""Demonstrations that are asked for, where a task has texts enough."""


class Cell(NamedTuple):
    """What a picture shows: an option of each side."""

    detail: str
    object: str


class Judgement(NamedTuple):
    """What was read: an option of each side, or None where the answer is not exactly one of the options."""

    detail: str | None
    object: str | None


@dataclass(frozen=True)
class Theme:
    """A table of cells by the options of its two sides."""

    name: str
    details: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, row by row."""
        return tuple(Cell(detail, thing) for detail in self.details for thing in self.objects)


@dataclass(frozen=True)
class Task:
    """A theme, and which side the texts name."""

    number: int
    """From 1: a coordinate of every draw."""
    theme: Theme
    kind: Literal["I", "II"]

    @property
    def name(self) -> str:
        """Such as Colour-I."""
        return f"{self.theme.name}-{self.kind}"

    @property
    def requests(self) -> tuple[str, ...]:
        """Options of the side that texts name."""
        return self.theme.details if self.kind == "I" else self.theme.objects

    @property
    def latents(self) -> tuple[str, ...]:
        """Options of the side that has to be inferred."""
        return self.theme.objects if self.kind == "I" else self.theme.details

    @property
    def chance(self) -> float:
        """That a cell drawn blindly is the right one."""
        return 1 / (len(self.theme.details) * len(self.theme.objects))

    @property
    def shots(self) -> tuple[int, ...]:
        """Numbers of demonstrations that leave a text to ask with."""
        return tuple(shots for shots in SHOTS if shots < len(self.requests))

    def cell(self, request: str, latent: str) -> Cell:
        """What a text and a latent mean together."""
        return Cell(request, latent) if self.kind == "I" else Cell(latent, request)

    def request(self, read: Judgement | Cell) -> str | None:
        """The side that texts name."""
        return read.detail if self.kind == "I" else read.object

    def latent(self, read: Judgement | Cell) -> str | None:
        """The side that has to be inferred."""
        return read.object if self.kind == "I" else read.detail


@dataclass(frozen=True, eq=False)
class Demo:
    """A text with its picture."""

    text: str
    """As the variant writes it."""
    cell: Cell
    caption: str
    """A sentence that says what the picture shows."""
    shown: Callable[[], np.ndarray]
    """Gives the picture, which is read or made when somebody looks."""

    @property
    def picture(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self.shown()


@dataclass(frozen=True, eq=False)
class Episode:
    """A question, and its answer."""

    task: Task
    index: int
    """Number of the episode among those of its task, a coordinate of its draws and of the noise of its pictures."""
    variant: Variant
    demos: tuple[Demo, ...]
    query: str
    """The last text, as the variant writes it."""
    request: str
    """The option that the last text names."""
    cell: Cell
    """What the next picture has to show."""

    @property
    def shots(self) -> int:
        """Number of demonstrations."""
        return len(self.demos)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a generator makes of an episode: a description that is still to be drawn, or a picture."""

    description: str | None = None
    picture: np.ndarray | None = None
    transcript: str = ""
    """What was said on the way."""
    tokens: int = 0
    """Of the language model, read and written."""
    refused: str = ""
    """With which sentence the question was refused, if it was."""


class World(ABC):
    """Where cells have pictures: the bundled scenes, or data on disk."""

    name: str
    tasks: tuple[Task, ...]
    size: tuple[int, int] | None = None
    """Height and width of every picture, where they have one."""
    one_picture = False
    """Whether a cell has no more than one."""

    @abstractmethod
    def episode(self, task: Task, shots: int, index: int, variant: Variant = "default") -> Episode:
        """The episode at these coordinates. The same coordinates give the same episode, whatever was asked before."""

    @abstractmethod
    def sentence(self, theme: Theme, cell: Cell) -> str:
        """The description that a model that draws should be given for a cell."""

    @abstractmethod
    def meaning(self, theme: Theme, description: str) -> Judgement:
        """What a description says."""

    @abstractmethod
    def picture(self, theme: Theme, cell: Cell, rng: np.random.Generator) -> np.ndarray:
        """A ground-truth picture of a cell, uint8 (H, W, 3)."""

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """What decides its episodes, for the record."""


def written(request: str, latent: str) -> str:
    """A text with its latent."""
    return f"{request} {latent}"


def texts_of(variant: Variant, requests: Sequence[str], latent: str, wrong: Sequence[str]) -> list[str]:
    """The texts of an episode as the variant writes them.

    Args:
        variant: which.
        requests: of the demonstrations in order, and of the query.
        latent: of the episode.
        wrong: another latent for each request.
    """
    if variant == "exact":
        return [written(request, latent) for request in requests]
    if variant == "misleading":
        return [written(request, other) for request, other in zip(requests, wrong, strict=True)]
    return list(requests)


def judged(task: Task, cell: Cell, read: Judgement) -> tuple[bool, bool]:
    """Whether what the text names is right (textual), and whether what has to be inferred is (visual)."""
    return task.request(read) == task.request(cell), task.latent(read) == task.latent(cell)
