"""What an objective is: a frozen value that says where it wants predictions and how it combines them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Queries, Transitions


class Objective(ABC):
    """An objective holds its own hyper-parameters as dataclass fields; it never sees the model family."""

    consumes: ClassVar[str]
    """What it learns from: "advantages" (trajectories with an advantage for every step)."""

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `loss` wants the reference's predictions."""

    @abstractmethod
    def queries(self, batch: Transitions, schedule: Schedule, generator: torch.Generator) -> Queries:
        """The points where predictions are wanted, for one minibatch. All its randomness comes from `generator`."""

    @abstractmethod
    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """One term per unit from predictions of shape (U, M, ...), in float32."""
