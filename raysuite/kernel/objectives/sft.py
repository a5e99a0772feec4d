"""Supervised fine-tuning on preferred pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.kernel.objectives.forward import ForwardObjective, mean_square
from raysuite.kernel.objectives.interface import require
from raysuite.kernel.schedule import PredictionType, Schedule
from raysuite.types import Loss, Preferences, Queries


@dataclass(frozen=True, kw_only=True)
class Sft(ForwardObjective[Preferences]):
    """Term = mean squared error of the network's output over the D dimensions of the preferred picture, noised.

    The denoising loss of Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 14: the baseline that a
    preference objective has to beat, and with on-line pairs of best against worst, rejection-sampling fine-tuning.
    """

    prompt_dropout: float = 0.0
    """Probability of training on the empty prompt instead. It is encoded like any other, also for SDXL, whose guided sampling may have
    zeros in its place."""
    min_snr: float | None = None
    """Gamma (5) of min-SNR weighting: at every level an error of the clean latent weighs min(SNR, gamma), whatever the network
    predicts."""

    consumes = "preferences"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.prompt_dropout < 1, "prompt_dropout", "of at least 0 and below 1", self.prompt_dropout)
        require(self.min_snr is None or self.min_snr > 0, "min_snr", "above 0", self.min_snr)

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
        terms_U = mean_square(prediction_UM - queries.extra["target"], 1)
        if self.min_snr is not None:
            alpha_U, sigma_U = queries.extra["alpha"], queries.extra["sigma"]
            terms_U = terms_U * min_snr_weight(schedule.prediction, alpha_U, sigma_U, gamma=self.min_snr)
        return Loss(terms_U=terms_U, metrics={})


def min_snr_weight(prediction: PredictionType, alpha_U: Tensor, sigma_U: Tensor, *, gamma: float) -> Tensor:
    """What makes the squared error of the clean latent count min(SNR, gamma), SNR = (alpha / sigma)^2, whatever the network predicts.

    The squared error of the noise is SNR times that of the clean latent, that of v and of the velocity 1 / sigma^2 times. So it is
    min(SNR, gamma) / SNR for noise, and min(SNR, gamma) sigma^2 else, which is min(SNR, gamma) / (SNR + 1) for v. Where there is no
    signal at all it is 1 for noise and 0 else.

    Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023.
    """
    signal_U, noise_U = alpha_U.square(), sigma_U.square()
    if prediction == "epsilon":
        return (gamma * noise_U / signal_U).clamp(max=1)
    return torch.minimum(signal_U, gamma * noise_U)
