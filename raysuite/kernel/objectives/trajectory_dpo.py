"""Trajectory-level DPO with temporal discounting: the dense-reward view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.credit import discount_weights
from raysuite.kernel.objectives.interface import Objective, require
from raysuite.kernel.objectives.pairs import Link, linked, protect_winner
from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Preferences, Queries


@dataclass(frozen=True, kw_only=True)
class TrajectoryDpo(Objective[Preferences]):
    """Term = Plackett-Luce over the members' scores; for pairs -log sigma(score_preferred - score_rejected).

    score = strength sum_k w_k log(p_theta / p_ref)(x_{k+1} | x_k), w_k = discount^k / sum_j discount^j,

    with k counted from pure noise, so that discount < 1 favours the first steps. discount = 1 is the trajectory-level
    objective; with strength = beta K the sum stands inside the sigmoid with D3PO's coefficient beta: with `per_dimension: true` in
    the units of its code, which averages log-densities over dimensions; with false in those of joint densities. D3PO's code
    clamps every step's ratio to [0.9, 1.1] (nearly `clip: 0.1`) and takes -log sigma of every step by itself: a different loss, whose
    gradient is proportional to this one's only at policy = reference.

    Two estimators of the score: all steps (`steps: null`), or `steps` of them drawn with probabilities w, the same for all
    members of a ranking, and averaged. Scores are equal in expectation; the loss of the second is larger by Jensen, by
    nothing to speak of while scores are small.

    Source: Yang, Chen and Zhou, "A Dense Reward View on Aligning Text-to-Image Diffusion with Preference", 2024. The released
    code draws 1 or 3 steps, the same for a whole batch, takes the mean over the latent's D dimensions (`per_dimension`), and
    clamps every step's log-ratio to 1e-4 or 5e-4 before anything else (`clip`): with its strengths of 10 and 12.5 the clamp, not
    the strength, is what limits how far the policy goes. Here the clamp is off unless asked for. The code's option to leave the
    reference out at first (`no_reg_warmup_ratio`, off by default) is not here.
    """

    strength: float
    """C: the inverse temperature, with the sum of the weights taken in."""
    discount: float
    """In (0, 1]; 0.9 in the source."""
    steps: int | None = None
    """Steps drawn for every ranking; null for the exact sum."""
    clip: float | None = None
    """Every step's log-ratio is clamped to [-clip, clip], where its gradient ends."""
    per_dimension: bool = True
    """Divide log-ratios by the number of latent dimensions."""
    link: Link = "logistic"
    """`ipo` and `hinge` are for pairs."""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong; for pairs."""
    winner_margin: float | None = None
    """With a number, the loser's gradient is scaled to keep the winner's likelihood rising (Diffusion-SDPO's mu)."""

    consumes = "preferences"
    process = "reverse"

    def __post_init__(self) -> None:
        require(self.strength > 0, "strength", "above 0", self.strength)
        require(0 < self.discount <= 1, "discount", "above 0 and at most 1", self.discount)
        require(self.steps is None or self.steps >= 1, "steps", "of at least 1, or null for all", self.steps)
        require(self.clip is None or self.clip > 0, "clip", "above 0, or null for none", self.clip)
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", "of at least 0 and below 0.5", self.label_smoothing)
        margin = self.winner_margin
        require(margin is None or 0 <= margin <= 1, "winner_margin", "between 0 and 1, or null", margin)
        alone = margin is None or self.clip is None
        require(
            alone, "winner_margin", "null with a clip: its promise does not hold where the clamp stops steps", margin
        )

    @property
    def needs_reference(self) -> bool:
        """Log-ratios are against the reference."""
        return True

    @property
    def pairs_only(self) -> bool:
        """Whether its settings mean nothing for rankings of more than two."""
        return self.link != "logistic" or self.label_smoothing > 0 or self.winner_margin is not None

    def queries(self, batch: Preferences, schedule: Schedule, generator: torch.Generator) -> Queries:
        """The chosen steps S of all members of every ranking: M S points a unit, one member's steps after the other's."""
        steps_K = schedule.windowed(batch.window).stochastic_K.nonzero().flatten().cpu()
        first, end = batch.window or (0, schedule.steps)
        rankings, members, latents = batch.latents_RMK.shape[:3]
        if not len(steps_K):
            raise UserError(
                "expected a sampler that adds noise, got none: trajectory_dpo needs sampler.noise.level above 0"
            )
        if latents != end - first + 1 + (end < schedule.steps):  # around the window's steps, and the clean one
            raise UserError(
                f"expected trajectories of {schedule.steps} steps, got {latents - 1}: trajectory_dpo learns from rollouts, or "
                "from a set made with `raysuite pairs --trajectories` and the same sampler"
            )
        if members > 2 and self.pairs_only:
            raise UserError(
                f"expected pairs with objective.link, label_smoothing or winner_margin, got rankings of {members}: set "
                "preferences.members=2, or leave them out"
            )
        weight_K = torch.from_numpy(discount_weights(schedule.steps, gamma=self.discount))[steps_K]
        weight_K = (weight_K / weight_K.sum()).to(batch.latents_RMK.dtype)
        if self.steps is None:
            chosen = torch.arange(len(steps_K)).expand(rankings, -1)
            weight_RS = weight_K.expand(rankings, -1)
        else:
            shape = (rankings, self.steps)
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            chosen = torch.searchsorted(weight_K.double().cumsum(0), uniform).clamp(max=len(steps_K) - 1)
            weight_RS = torch.full(shape, 1 / self.steps, dtype=weight_K.dtype)
        k_RS = steps_K[chosen]
        rows_RS = torch.arange(rankings)[:, None].expand_as(k_RS)
        return Queries(
            x_UM=batch.latents_RMK[rows_RS, :, k_RS - first].transpose(1, 2).flatten(1, 2),
            t_UM=schedule.timesteps_K.cpu()[k_RS].repeat(1, members),
            prompts_U=batch.prompts_R,
            together=rankings,
            draws_UM=None if batch.draws_RM is None else batch.draws_RM.repeat_interleave(k_RS.shape[1], 1),
            extra={
                "k": k_RS,
                "weight": weight_RS,
                "next": batch.latents_RMK[rows_RS, :, k_RS - first + 1].transpose(1, 2),
            },
        )

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """The term of every ranking."""
        assert reference_prediction_UM is not None
        next_UMS = queries.extra["next"]
        shape = next_UMS.shape[:3]
        k_UMS = queries.extra["k"][:, None].expand(shape)
        prediction_UMS, reference_UMS = prediction_UM.reshape_as(next_UMS), reference_prediction_UM.reshape_as(next_UMS)
        x_UMS, weight_US = queries.x_UM.reshape_as(next_UMS), queries.extra["weight"]

        def mean(output: Tensor) -> Tensor:
            k, x, y = k_UMS.flatten(), x_UMS.flatten(0, 2), output.flatten(0, 2)
            return transition.mean(schedule, k, x, y).reshape_as(next_UMS)

        def log_ratio(output: Tensor) -> Tensor:
            k, after, means = k_UMS.flatten(), next_UMS.flatten(0, 2), (mean(output), mean(reference_UMS))
            ratio = transition.log_ratio(schedule, k, means[0].flatten(0, 2), means[1].flatten(0, 2), after)
            return ratio.reshape(shape) / (next_UMS[0, 0, 0].numel() if self.per_dimension else 1)

        if self.winner_margin is not None:
            k_US = queries.extra["k"]
            slope_US = weight_US * transition.output_slope(schedule)[k_US] / schedule.noise_K[k_US] ** 2
            wide = slope_US.reshape(-1, 1, shape[2], *[1] * (next_UMS.ndim - 3))
            prediction_UMS = protect_winner(
                prediction_UMS, wide * (mean(prediction_UMS) - next_UMS), self.winner_margin
            )
        ratio_UMS = log_ratio(prediction_UMS)
        clamped_UMS = ratio_UMS if self.clip is None else ratio_UMS.clamp(-self.clip, self.clip)
        score_UM = self.strength * (weight_US[:, None] * clamped_UMS).sum(2)
        if shape[1] == 2:
            terms_U = linked(score_UM[:, 0] - score_UM[:, 1], link=self.link, smoothing=self.label_smoothing)
        else:
            terms_U = plackett_luce(score_UM)
        margin_U = (score_UM[:, 0] - score_UM[:, -1]).detach()
        metrics = {
            "reward_margin": margin_U,
            "reward_accuracy": (margin_U > 0).float() + 0.5 * (margin_U == 0),
            "preferred_log_ratio": ratio_UMS[:, 0].detach().mean(1),
            "rejected_log_ratio": ratio_UMS[:, -1].detach().mean(1),
        }
        if self.clip is not None:
            metrics["clip_fraction"] = (ratio_UMS.detach().abs() >= self.clip).float().mean((1, 2))
        return Loss(terms_U=terms_U, metrics=metrics)


def plackett_luce(score_UM: Tensor) -> Tensor:
    """-log of the probability of the given order, (U,): sum over places m of logsumexp(score_m, ..., score_M) - score_m.

    For two members it is -log sigma(score_0 - score_1). Source: Xia et al., "Listwise Approach to Learning to Rank", 2008
    (ListMLE).
    """
    tail_UM = score_UM.flip(1).logcumsumexp(1).flip(1)
    return (tail_UM - score_UM)[:, :-1].sum(1)
