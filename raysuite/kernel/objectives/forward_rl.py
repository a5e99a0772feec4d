"""Reinforcement on the forward process: contrast an implicit positive with an implicit negative policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.kernel.objectives.forward import ForwardObjective, mean_square
from raysuite.kernel.objectives.interface import require
from raysuite.kernel.schedule import Schedule, denoised
from raysuite.types import Loss, Queries, Transitions


@dataclass(frozen=True, kw_only=True)
class ForwardRl(ForwardObjective[Transitions]):
    """Term = [r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w-] / contrast, means over the D dimensions.

    x0 is a rollout's clean latent, noised anew; r = clip(1/2 + A / (2 advantage_limit), 0, 1) its chance of being good. The
    implicit policies are mixtures of the clean latents predicted by the old policy and by the trained one:

        x0+ = (1 - contrast) x0_old + contrast x0_theta,    x0- = (1 + contrast) x0_old - contrast x0_theta,

    and w is the mean absolute error of each, a constant. No likelihood, no noise in the sampler, no guidance: any solver may draw
    the rollouts. Where theta = old the gradient is A / advantage_limit times that of supervised fine-tuning (up to w).

    The old policy is the reference, and draws the pictures: refresh it (`reference.refresh: 1`, or with `reference.decay`), as the
    source does. Left where the model began, or behind by staleness, it would be contrasted with pictures that others drew:
    configurations are refused that say so. Pictures drawn with guidance, which the source does without, or replayed from another run
    are others' too: that is off-policy, and up to you.
    `old_distance` among the metrics is the mean of |x0_theta - x0_old|: 0 at the first step after a refresh, where the gradient is
    not, and above it at later ones. Where it stays 0 with several steps a refresh, nothing is learned.
    A sample's A is the mean of its advantages over the steps: a discount, scaled to mean 1, would cancel. Runs
    refuse it, and credit by previews.

    Source: Zheng et al., "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", 2025, equations for the
    policy loss and the adaptive weight; their velocity form and this one agree, since all quantities are affine in x0. The released
    code keeps w at 1e-5 or more, where this keeps it at the rounding of its type.
    """

    contrast: float
    """The source's beta (1 or 0.1): how far the implicit policies lie from the old one."""
    advantage_limit: float
    """Advantages of this size or more are certain to be good or bad (5 in the released code)."""
    base_weight: float = 0.0
    """Weight of the mean squared distance of the network's output to that of the model as it came, which holds the policy near it
    while the old one moves on. The released code has 1e-4, beside a contrast that it multiplies with its limit of 5: 2e-5 here."""

    consumes = "advantages"
    reference_is_sampler = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.contrast > 0, "contrast", "above 0", self.contrast)
        require(self.advantage_limit > 0, "advantage_limit", "above 0", self.advantage_limit)
        require(self.base_weight >= 0, "base_weight", "of at least 0", self.base_weight)

    @property
    def needs_reference(self) -> bool:
        """The old policy."""
        return True

    @property
    def needs_base(self) -> bool:
        """Only the distance to it looks at the model as it came."""
        return self.base_weight > 0

    def queries(self, batch: Transitions, schedule: Schedule, generator: torch.Generator) -> Queries:
        """Every rollout's clean latent at `draws` noise levels."""
        goodness_N = (0.5 + batch.advantage_NK.mean(1) / (2 * self.advantage_limit)).clamp(0, 1)
        clean_NM = batch.latents_NK[:, -1:]
        draws_NM = None if batch.draws_N is None else batch.draws_N[:, None]
        extra = {"goodness": goodness_N}
        return self.renoise(clean_NM, batch.prompts_N, schedule, generator, extra=extra, draws_RM=draws_NM)

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
        metrics = {"goodness": goodness_U, "old_distance": (new_U - old_U).detach().flatten(1).abs().mean(1)}
        if self.needs_base:
            distance_U = mean_square(prediction_UM - queries.extra["base"], 1)
            terms_U = terms_U + self.base_weight * distance_U
            metrics["base_distance"] = distance_U.detach()
        return Loss(terms_U=terms_U, metrics=metrics)


def _weighted_error(prediction_U: Tensor, x0_U: Tensor) -> Tensor:
    """Mean square over mean absolute error, (U,): every noise level counts alike."""
    difference = prediction_U - x0_U
    size_U = difference.detach().flatten(1).abs().mean(1).clamp(min=torch.finfo(difference.dtype).eps)
    return mean_square(difference, 1) / size_U
