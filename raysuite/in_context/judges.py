"""Who says what a picture shows. Every judge is first asked about pictures whose cells are known, and its errors are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import Judgement, Theme


class Reading(NamedTuple):
    """A judgement, and what the judge said."""

    judgement: Judgement
    reply: str = ""


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
