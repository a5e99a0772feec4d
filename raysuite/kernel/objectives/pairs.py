"""What the objectives on re-noised pairs share: the implicit rewards of both members, and the pair's one logit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raysuite.errors import UserError
from raysuite.kernel.objectives.forward import ForwardObjective, mean_square
from raysuite.kernel.objectives.interface import require
from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Preferences, Queries

Link = Literal["logistic", "hinge", "ipo"]


def protect_winner(prediction_UM: Tensor, residual_UM: Tensor, margin: float) -> Tensor:
    """The same predictions (U, 2, ...), with the gradient through the loser scaled so that the winner's error still falls.

    With g_w and g_l the gradients of the two members' errors in their predictions, a step along -g_w + lambda g_l lowers
    the winner's error at first order if lambda <= |g_w|^2 / <g_w, g_l>. lambda = (1 - margin) times that, limited to
    [0, 1], and 1 where <g_w, g_l> <= 0. Values do not change, to the bit: where policy = reference the logit stays 0.

    Source: Fu et al., "Diffusion-SDPO", 2025. The paper's lambda is per sample, as here; the released code takes one for
    a whole microbatch, which would make results depend on its size.

    Args:
        prediction_UM: the network's output, the preferred member first.
        residual_UM: gradients of the members' errors in them, up to a factor that both have.
        margin: the paper's mu in [0, 1]: how much of the winner's descent is kept safe (0.9 for SD 1.5 with DPO).
    """
    winner, loser = residual_UM.detach().flatten(2).unbind(1)
    product = (winner * loser).sum(1)
    limit = (1 - margin) * winner.square().sum(1) / torch.where(product > 0, product, 1.0)
    scale = torch.where(product > 0, limit.clamp(0, 1), 1.0)
    scale = scale.reshape(-1, *[1] * (prediction_UM.ndim - 2))
    kept = prediction_UM[:, 1]
    return torch.stack([prediction_UM[:, 0], kept.detach() + scale * (kept - kept.detach())], 1)


def linked(logit: Tensor, *, link: Link, smoothing: float) -> Tensor:
    """The loss of a pair as a function of its logit (how much more the policy prefers the preferred member).

    logistic: -log sigma(u), whose gradient in u is -(1 - sigma(u)). hinge: max(0, 1 - u) (Zhao et al., SLiC, 2023).
    ipo: (u - 1/2)^2 (Azar et al., 2024, equation 17, times beta^2). With `smoothing` s it is (1 - s) f(u) + s f(-u):
    a share s of the labels is taken to be wrong (Mitchell, conservative DPO, 2023).
    """
    losses = {"logistic": lambda u: -logsigmoid(u), "hinge": lambda u: (1 - u).relu(), "ipo": lambda u: (u - 0.5) ** 2}
    loss = losses[link]
    return (1 - smoothing) * loss(logit) + (smoothing * loss(-logit) if smoothing else 0.0)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Pairs as a policy and its reference see them."""

    reward_UM: Tensor
    """(U, 2) implicit rewards h, the preferred member first."""
    reference_error_UM: Tensor
    """(U, 2) the reference's m."""
    prediction_U: Tensor
    """(U, ...) the network's output at the preferred member."""
    reference_prediction_U: Tensor
    """(U, ...) the reference's."""
    target_U: Tensor
    """(U, ...) what it should have been."""


@dataclass(frozen=True, kw_only=True)
class PairObjective(ForwardObjective[Preferences]):
    """A loss on the denoising errors of a preferred and a rejected picture, noised alike.

    m is the mean squared error of the network's output over the D dimensions of a latent, in the parametrisation that the
    network was trained in (noise, v or velocity). The implicit rewards of the two members are

        h = beta / 2 (m_ref - m),    and the logit of the pair is u = h_preferred - h_rejected.

    Source of h and u: Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", 2024, equation 14, in
    the released code's constants: its beta of 2000 to 5000 multiplies a mean; on a sum it would be beta / D.

    A beta of one parametrisation is none of another: on a flow model the squared error of the noise is (1 - sigma)^2 times
    that of the velocity, and of the clean latent sigma^2 times. Released code for flow models takes the velocity's, with a
    beta of 100 on the mean and logit-normal levels (Flow-GRPO's DPO script).
    """

    beta: float
    """Strength of the implicit reward on the mean squared error."""
    shared_noise: bool = True
    """One noise for both members (released code), or one each (paper)."""
    prompt_dropout: float = 0.0
    """Probability of training on the empty prompt instead (0.2 in Diffusion-DPO's released code). It is encoded like any other, as in
    that code, also for SDXL, whose guided sampling may have zeros in its place."""
    winner_margin: float | None = None
    """With a number, the loser's gradient is scaled to keep the winner's error falling (Diffusion-SDPO's mu)."""

    consumes = "preferences"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", "of at least 0", self.beta)
        require(0 <= self.prompt_dropout < 1, "prompt_dropout", "of at least 0 and below 1", self.prompt_dropout)
        margin = self.winner_margin
        require(margin is None or 0 <= margin <= 1, "winner_margin", "between 0 and 1, or null", margin)

    @property
    def needs_reference(self) -> bool:
        """Implicit rewards compare with the reference."""
        return True

    def queries(self, batch: Preferences, schedule: Schedule, generator: torch.Generator) -> Queries:
        """Both members of every pair at `draws` noise levels."""
        if batch.latents_RMK.shape[1] != 2:
            raise UserError(
                f"expected pairs, got rankings of {batch.latents_RMK.shape[1]}: set preferences.members=2, or choose "
                "trajectory_dpo"
            )
        return self.renoise(
            batch.clean_RM,
            batch.prompts_R,
            schedule,
            generator,
            shared_noise=self.shared_noise,
            prompt_dropout=self.prompt_dropout,
            draws_RM=batch.draws_RM,
        )

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """The term of every pair, with the implicit reward margin and accuracy among the metrics."""
        assert reference_prediction_UM is not None
        target_UM = queries.extra["target"]
        if self.winner_margin is not None:
            prediction_UM = protect_winner(prediction_UM, prediction_UM - target_UM, self.winner_margin)
        reference_error_UM = mean_square(reference_prediction_UM - target_UM, 2)
        error_UM = mean_square(prediction_UM - target_UM, 2)
        reward_UM = 0.5 * self.beta * (reference_error_UM - error_UM)
        judged = Judged(
            reward_UM=reward_UM,
            reference_error_UM=reference_error_UM,
            prediction_U=prediction_UM[:, 0],
            reference_prediction_U=reference_prediction_UM[:, 0],
            target_U=target_UM[:, 0],
        )
        margin_U = (reward_UM[:, 0] - reward_UM[:, 1]).detach()
        metrics = {
            "reward_margin": margin_U,
            "reward_accuracy": (margin_U > 0).float() + 0.5 * (margin_U == 0),
            "preferred_error": error_UM[:, 0].detach() - reference_error_UM[:, 0],
            "rejected_error": error_UM[:, 1].detach() - reference_error_UM[:, 1],
        }
        return Loss(terms_U=self.terms(judged), metrics=metrics)

    @abstractmethod
    def terms(self, judged: Judged) -> Tensor:
        """The loss of every pair, (U,)."""
