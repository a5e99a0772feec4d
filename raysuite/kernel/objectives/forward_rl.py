"""Reinforcement on the forward process: contrast an implicit positive with an implicit negative policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.kernel.objectives.interface import Objective
from raysuite.kernel.objectives.pairs import mean_square, renoise, require, require_draws
from raysuite.kernel.schedule import Schedule, denoised
from raysuite.types import Loss, Queries, Transitions


@dataclass(frozen=True, kw_only=True)
class ForwardRl(Objective[Transitions]):
    """Term = [r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w-] / contrast, means over the D dimensions.

    x0 is a rollout's clean latent, noised anew; r = clip(1/2 + A / (2 advantage_limit), 0, 1) its chance of being good. The
    implicit policies are mixtures of the clean latents predicted by the old policy and by the trained one:

        x0+ = (1 - contrast) x0_old + contrast x0_theta,    x0- = (1 + contrast) x0_old - contrast x0_theta,

    and w is the mean absolute error of each, a constant. No likelihood, no noise in the sampler, no guidance: any solver may draw
    the rollouts. Where theta = old the gradient is A / advantage_limit times that of supervised fine-tuning (up to w).

    The old policy is the reference: refresh it (`reference.refresh: 1`, or with `reference.decay`), as the source does.
    A sample's A is the mean of its advantages over the steps: a discount, scaled to mean 1, cancels.

    Source: Zheng et al., "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", 2025, equations for the
    policy loss and the adaptive weight; their velocity form and this one agree, since all quantities are affine in x0.
    """

    contrast: float
    """The source's beta (1 or 0.1): how far the implicit policies lie from the old one."""
    advantage_limit: float
    """Advantages of this size or more are certain to be good or bad (5 in the released code)."""
    draws: int = 1
    """Noise levels a picture."""
    noise_range: tuple[float, float] = (0.0, 1.0)
    """Training timesteps to draw from, as shares of all."""

    consumes = "advantages"
    process = "forward"
    reference_is_sampler = True

    def __post_init__(self) -> None:
        require(self.contrast > 0, "contrast", "above 0", self.contrast)
        require(self.advantage_limit > 0, "advantage_limit", "above 0", self.advantage_limit)
        require_draws(self.draws, self.noise_range)

    @property
    def needs_reference(self) -> bool:
        """The old policy."""
        return True

    def queries(self, batch: Transitions, schedule: Schedule, generator: torch.Generator) -> Queries:
        """Every rollout's clean latent at `draws` noise levels."""
        goodness_N = (0.5 + batch.advantage_NK.mean(1) / (2 * self.advantage_limit)).clamp(0, 1)
        return renoise(
            batch.latents_NK[:, -1:],
            batch.prompts_N,
            schedule,
            generator,
            draws=self.draws,
            noise_range=self.noise_range,
            shared_noise=True,
            prompt_dropout=0.0,
            extra={"goodness": goodness_N},
        )

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """The contrast of every noised picture."""
        assert reference_prediction_UM is not None
        x_U, alpha_U, sigma_U = queries.x_UM[:, 0], queries.extra["alpha"], queries.extra["sigma"]
        x0_U, goodness_U = queries.extra["clean"][:, 0], queries.extra["goodness"]
        new_U, _ = denoised(schedule.prediction, prediction_UM[:, 0], x_U, alpha_U, sigma_U)
        old_U, _ = denoised(schedule.prediction, reference_prediction_UM[:, 0], x_U, alpha_U, sigma_U)
        step_U = self.contrast * (new_U - old_U)
        positive_U, negative_U = (_weighted_error(old_U + s * step_U, x0_U) for s in (1, -1))
        terms_U = (goodness_U * positive_U + (1 - goodness_U) * negative_U) / self.contrast
        return Loss(terms_U=terms_U, metrics={"goodness": goodness_U})


def _weighted_error(prediction_U: Tensor, x0_U: Tensor) -> Tensor:
    """Mean square over mean absolute error, (U,): every noise level counts alike."""
    difference = prediction_U - x0_U
    size_U = difference.detach().flatten(1).abs().mean(1).clamp(min=torch.finfo(difference.dtype).eps)
    return mean_square(difference, 1) / size_U
