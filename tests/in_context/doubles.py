"""Test doubles with known answers: a model that draws perfectly, published data made up, and a model that reads their pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raysuite.in_context.official import THEMES, WORDS
from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import Cell, Task
from raysuite.rewards.endpoints import Part


class Perfect:
    """Draws what a description says, and any option of a side that it does not name."""

    label = "perfect"

    def __init__(self, world: ScenesWorld, fails_after: int | None = None) -> None:
        self.world, self.blocks, self.fails_after = world, 0, fails_after

    def draw(self, texts: Sequence[str], tasks: Sequence[Task], indices: Sequence[int]) -> np.ndarray:
        if self.blocks == self.fails_after:
            raise KeyboardInterrupt
        self.blocks += 1
        return np.stack([self._one(*asked) for asked in zip(texts, tasks, indices, strict=True)])

    def _one(self, text: str, task: Task, index: int) -> np.ndarray:
        rng = np.random.default_rng([task.number, index])
        said = self.world.meaning(task.theme, text)
        assert said != (None, None), f"{text!r} says nothing in {task.name}"
        options = (task.theme.details, task.theme.objects)
        cell = [side if side is not None else str(rng.choice(of)) for side, of in zip(said, options, strict=True)]
        return self.world.picture(task.theme, Cell(*cell), rng)

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        return pictures


def fabricate(directory: Path) -> Path:
    """Data in the published form: 500 pictures of 8 x 8 pixels whose first two channels are the numbers of their cells."""
    for theme, (detail_word, details, object_word, objects) in THEMES.items():
        rows = ["image,caption"]
        for thing in objects:
            (directory / f"{detail_word}_{thing}").mkdir(parents=True)
            for detail in details:
                grey = np.full(
                    (8, 8, 3), (20 + 20 * details.index(detail), 20 + 20 * objects.index(thing), 50), np.uint8
                )
                name = f"{detail}_{thing}.jpg"
                Image.fromarray(grey).save(directory / f"{detail_word}_{thing}" / name, quality=100, subsampling=0)
                rows.append(f'{name},"A picture, of {theme}: {WORDS.get(detail, detail)} and {thing}"')
        (directory / f"{detail_word}_{object_word}.csv").write_text("\n".join(rows) + "\n")
    return directory


class Knowing:
    """A chat that reads the pictures of `fabricate`, and says so in one of several ways; it takes every red thing for blue."""

    def __init__(self) -> None:
        self.asked: list[list[Part]] = []

    def settings(self) -> dict[str, object]:
        return {"kind": "test double"}

    def __call__(self, parts: Sequence[Part]) -> str:
        picture, text = parts
        assert isinstance(picture, np.ndarray) and isinstance(text, str)
        self.asked.append(list(parts))
        numbers = [round((float(picture[..., channel].mean()) - 20) / 20) for channel in (0, 1)]
        options = dict(re.findall(r"\((\d+)\) ([^(.]+?)(?= \(|\.)", text))
        for _, details, _, objects in THEMES.values():
            for side, number in ((details, numbers[0]), (objects, numbers[1])):
                if {WORDS.get(option, option) for option in side} == {*options.values()}:
                    word = WORDS.get(side[number], side[number])
                    (said,) = [n for n, option in options.items() if option == ("blue" if word == "red" else word)]
                    return said
        raise AssertionError(text)
