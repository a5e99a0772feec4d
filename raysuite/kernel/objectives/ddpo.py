"""DDPO: policy gradient on the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.objectives.interface import Objective
from raysuite.kernel.schedule import Schedule
from raysuite.types import Loss, Queries, Transitions

LARGEST = 80.0
"""Of a log ratio, whose exponential float32 still has: a clipped transition then keeps its gradient of 0, which inf would make NaN."""


@dataclass(frozen=True, kw_only=True)
class Ddpo(Objective[Transitions]):
    """Clipped importance-sampled policy gradient over single denoising steps (DDPO-IS), plus an optional KL term.

    term = max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + kl_weight KL(p_theta || p_ref),
    rho = exp((log p_theta - log p_old) / D): the ratio is per step, not the product over the trajectory.

    With clip = None the term is -A (log p_theta) / D, the score-function form (DDPO-SF): its gradient is that of
    the clipped form at theta = old. Nothing corrects it once theta has moved on, so that it is biased with `learn.minibatches` or
    `learn.epochs` above 1, stale rollouts or replayed ones. Each unit is one transition; advantages come from `kernel.credit`, so
    that with group-normalised ones this is GRPO.

    Source: Black et al., "Training Diffusion Models with Reinforcement Learning", 2024, equations for DDPO-SF and
    DDPO-IS in section 4.3. The paper writes joint densities; the released code takes the mean over the latent's
    D dimensions, and its clip of 1e-4 belongs to that mean. `per_dimension` says which of the two; True is the code.
    The KL is the exact one between Gaussian steps, in nats summed over dimensions (divided by D with `per_dimension`),
    where DPOK's released code penalises the unweighted distance of noise predictions instead, and Flow-GRPO's leaves the step's length
    d (of sigma) out of the variance: its beta is `kl_weight` times 1/d, so that 0.04 there is 0.002 to 0.007 here with ten steps of
    Stable Diffusion 3.
    """

    clip: float | None
    """Half-width of the band around ratio 1, or None for the score-function form."""
    advantage_clip: float
    """Advantages are clipped to [-advantage_clip, advantage_clip] (5 in the released code), after `credit.discount` has weighted
    them: with 12 steps and 0.75 the first has 3.1 times its advantage, and 5 clips one in ten there."""
    kl_weight: float = 0.0
    """Weight of the KL from the reference."""
    step_fraction: float = 1.0
    """Share of the steps that is learned, drawn anew for every block and minibatch."""
    per_dimension: bool = True
    """Divide log-densities by the number of latent dimensions before the ratio is taken."""

    consumes = "advantages"
    process = "reverse"

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"expected objective.clip above 0, or null for the score-function form, got {self.clip}")
        if not self.advantage_clip > 0:
            raise UserError(f"expected objective.advantage_clip above 0, got {self.advantage_clip}")
        if not self.kl_weight >= 0:
            raise UserError(f"expected objective.kl_weight of at least 0, got {self.kl_weight}")
        if not 0 < self.step_fraction <= 1:
            raise UserError(f"expected objective.step_fraction above 0 and at most 1, got {self.step_fraction}")

    @property
    def needs_reference(self) -> bool:
        """Only the KL term looks at the reference."""
        return self.kl_weight > 0

    def queries(self, batch: Transitions, schedule: Schedule, generator: torch.Generator) -> Queries:
        """One unit for each stochastic step of every trajectory, step by step, as they were drawn."""
        steps_K = schedule.windowed(batch.window).stochastic_K.nonzero().flatten().cpu()
        first = batch.window[0] if batch.window else 0
        if not len(steps_K):
            raise UserError("expected a sampler that adds noise, got none: ddpo needs sampler.noise.level above 0")
        kept = max(1, round(self.step_fraction * len(steps_K)))
        chosen = steps_K[torch.randperm(len(steps_K), generator=generator)[:kept].sort().values]
        samples = len(batch.prompts_N)
        k, n = chosen.repeat_interleave(samples), torch.arange(samples).repeat(kept)
        return Queries(
            x_UM=batch.latents_NK[n, k - first][:, None],
            t_UM=schedule.timesteps_K.cpu()[k][:, None],
            prompts_U=batch.prompts_N * kept,
            together=samples,
            draws_UM=None if batch.draws_N is None else batch.draws_N[n, None],
            extra={
                "k": k,
                "next": batch.latents_NK[n, k - first + 1],
                "logp_old": batch.logp_NK[n, k],
                "advantage": batch.advantage_NK[n, k],
            },
        )

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        """The clipped term of every transition."""
        k, x_U, logp_old = queries.extra["k"], queries.x_UM[:, 0], queries.extra["logp_old"]
        advantage = queries.extra["advantage"].clamp(-self.advantage_clip, self.advantage_clip)
        mean_U = transition.mean(schedule, k, x_U, prediction_UM[:, 0])
        logp = transition.log_density(schedule, k, mean_U, queries.extra["next"])
        dimensions = x_U[0].numel() if self.per_dimension else 1
        moved = logp - logp_old
        ratio = (moved / dimensions).clamp(max=LARGEST).exp()
        metrics = {"ratio": ratio, "kl_behaviour": torch.expm1(moved.clamp(max=LARGEST)) - moved}
        if self.clip is None:
            terms = -advantage * logp / dimensions
        else:
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            terms = torch.maximum(-advantage * ratio, -advantage * clipped)
            metrics["clip_fraction"] = (terms > -advantage * ratio).float()
        if reference_prediction_UM is not None and self.needs_reference:
            reference_mean_U = transition.mean(schedule, k, x_U, reference_prediction_UM[:, 0])
            kl = transition.kl(schedule, k, mean_U, reference_mean_U)
            terms = terms + self.kl_weight * kl / dimensions
            metrics["kl_reference"] = kl
        return Loss(terms_U=terms, metrics={name: value.detach() for name, value in metrics.items()})
