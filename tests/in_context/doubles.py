"""A model that draws perfectly: test double of a `Drawer`, whose share of right pictures is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import Cell, Task


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
