"""Objectives, one file each. To add one: write the file, and give it a line in `OBJECTIVES`."""

from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.objectives.interface import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    "ddpo": Ddpo,
}

__all__ = ["OBJECTIVES", "Objective"]
