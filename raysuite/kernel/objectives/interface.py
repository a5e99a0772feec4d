"""What an objective is: a frozen value that says where it wants predictions and how it combines them.

Two questions sort all of them, and a configuration is checked against the answers:

                        learns from rewards          learns from preferences
    reverse process     ddpo                         trajectory_dpo
    forward process     forward_rl                   diffusion_dpo, dspo, dmpo, cal_dpo, sft

Objectives of the reverse process score the steps of sampled trajectories, and need a sampler that adds noise. Those of
the forward process add noise to finished pictures anew; the pictures may come from anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Preferences, Queries, Transitions

Batch = TypeVar("Batch", Transitions, Preferences)


def require(condition: bool, setting: str, wanted: str, got: object) -> None:
    """Raise the sentence about a setting unless the condition holds."""
    if not condition:
        raise UserError(f"expected objective.{setting} {wanted}, got {got}")


class Objective(ABC, Generic[Batch]):
    """An objective holds its own hyper-parameters as dataclass fields; it never sees the model family."""

    consumes: ClassVar[Literal["advantages", "preferences"]]
    """What it learns from: `Transitions`, with an advantage for every step, or `Preferences`."""
    process: ClassVar[Literal["reverse", "forward"]]
    """Whether it scores steps of trajectories or adds noise to clean latents."""
    reference_is_sampler: ClassVar[bool] = False
    """Whether the reference is meant to be the policy that drew the samples, not the model as it came."""

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `loss` wants the reference's predictions."""

    @property
    def needs_base(self) -> bool:
        """Whether `loss` wants the predictions of the model as it came, too, as `base` (U, M, ...) among the queries' extra."""
        return False

    def check_schedule(self, schedule: Schedule) -> None:
        """Look whether it can learn with a schedule, before anything is drawn; by default with any.

        Raises:
            UserError: its settings ask for what the schedule does not have.
        """
        return

    @abstractmethod
    def queries(self, batch: Batch, schedule: Schedule, generator: torch.Generator) -> Queries:
        """The points where predictions are wanted, for one block. All its randomness comes from `generator`."""

    @abstractmethod
    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """One term per unit from predictions of shape (U, M, ...), in float32."""
