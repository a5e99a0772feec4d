"""Supervised fine-tuning on preferred pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.kernel.objectives.forward import ForwardObjective, mean_square
from raysuite.kernel.objectives.interface import require
from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Preferences, Queries


@dataclass(frozen=True, kw_only=True)
class Sft(ForwardObjective[Preferences]):
    """Term = mean squared error of the network's output over the D dimensions of the preferred picture, noised.

    The denoising loss of Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 14: the baseline that a
    preference objective has to beat, and with on-line pairs of best against worst, rejection-sampling fine-tuning.
    """

    prompt_dropout: float = 0.0
    """Probability of training on the empty prompt instead."""

    consumes = "preferences"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.prompt_dropout < 1, "prompt_dropout", "of at least 0 and below 1", self.prompt_dropout)

    @property
    def needs_reference(self) -> bool:
        """Nothing holds it back."""
        return False

    def queries(self, batch: Preferences, schedule: Schedule, generator: torch.Generator) -> Queries:
        """The preferred member of every ranking at `draws` noise levels."""
        return self.renoise(
            batch.clean_RM[:, :1],
            batch.prompts_R,
            schedule,
            generator,
            prompt_dropout=self.prompt_dropout,
            draws_RM=None if batch.draws_RM is None else batch.draws_RM[:, :1],
        )

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """The denoising error."""
        return Loss(terms_U=mean_square(prediction_UM - queries.extra["target"], 1), metrics={})
