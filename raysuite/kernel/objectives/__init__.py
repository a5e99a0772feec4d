"""Objectives, one file each. To add one: write the file, and give it a line in `OBJECTIVES`."""

from typing import Any

from raysuite.kernel.objectives.cal_dpo import CalDpo
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.objectives.diffusion_dpo import DiffusionDpo
from raysuite.kernel.objectives.dmpo import Dmpo
from raysuite.kernel.objectives.dspo import Dspo
from raysuite.kernel.objectives.forward_rl import ForwardRl
from raysuite.kernel.objectives.interface import Objective
from raysuite.kernel.objectives.sft import Sft
from raysuite.kernel.objectives.trajectory_dpo import TrajectoryDpo

OBJECTIVES: dict[str, type[Objective[Any]]] = {
    "ddpo": Ddpo,
    "trajectory_dpo": TrajectoryDpo,
    "diffusion_dpo": DiffusionDpo,
    "dspo": Dspo,
    "dmpo": Dmpo,
    "cal_dpo": CalDpo,
    "sft": Sft,
    "forward_rl": ForwardRl,
}

__all__ = ["OBJECTIVES", "Objective"]
