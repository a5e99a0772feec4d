"""Noise levels of a sampler, and what a network's output means at each.

At level (alpha, sigma) a noisy latent is x = alpha * x0 + sigma * eps; variance-preserving models have
alpha^2 + sigma^2 = 1. A sampler of K steps visits K + 1 levels: step k goes from level k to level k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from raysuite.errors import UserError

PredictionType = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient of shape (), (N,) or (N, M) with axes added on the right, so that it broadcasts over `like`."""
    return (
        coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))
        if coefficient.ndim
        else coefficient
    )


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """X = alpha * x0 + sigma * eps."""
    return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


def denoised(
    prediction: PredictionType, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The (x0, eps) that a network's output stands for.

    epsilon: x0 = (x - sigma eps) / alpha. v_prediction, v = alpha eps - sigma x0: x0 = alpha x - sigma v and
    eps = alpha v + sigma x, both finite at alpha = 0 too.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022, appendix D.
    """
    alpha, sigma = expand(alpha, x), expand(sigma, x)
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    return alpha * x - sigma * output, alpha * output + sigma * x


def network_output(prediction: PredictionType, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The inverse of `denoised`: what a network should say where the truth is (x0, eps)."""
    if prediction == "epsilon":
        return eps
    return expand(alpha, x0) * eps - expand(sigma, x0) * x0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampler as a table, for a model of one prediction type.

    The rule for the last step: it goes to the level of the first training timestep, which is not quite free of
    noise. So its noise is positive and finite wherever its own timestep is above 0. Where that timestep is 0 (spacing
    `linspace`, or `leading` without an offset) the step goes nowhere, adds no noise, and has no density to score.
    """

    timesteps_K: Tensor
    """(K,) int64, descending: what the network is told."""
    alpha_K1: Tensor
    """(K + 1,) signal levels."""
    sigma_K1: Tensor
    """(K + 1,) noise levels."""
    noise_K: Tensor
    """(K,) standard deviation of the noise that step k adds."""
    alpha_bar_T: Tensor
    """(T,) squared signal level at every training timestep: where the forward process can be asked for noisy latents."""
    prediction: PredictionType

    def __post_init__(self) -> None:
        steps, levels_noises = len(self.timesteps_K), [len(c) for c in (self.alpha_K1, self.sigma_K1, self.noise_K)]
        if not steps or levels_noises != [steps + 1, steps + 1, steps]:
            raise ValueError(f"expected K timesteps, K + 1 levels and K noises, got {steps} and {levels_noises}")
        if self.timesteps_K[-1] < 0 or not bool((self.timesteps_K.diff() < 0).all()):
            raise UserError(
                f"expected timesteps that fall from step to step, the last at least 0, got {self.timesteps_K.tolist()}: set "
                "sampler.steps or sampler.spacing otherwise"
            )
        finite = self.alpha_K1.isfinite().all()
        if not bool(finite and (self.sigma_K1.diff() <= 0).all() and (self.noise_K >= 0).all()):
            raise UserError(
                "expected a finite level of noise at every step, never above the one before, got "
                f"{self.sigma_K1.tolist()}: correct the scheduler's configuration"
            )

    @property
    def steps(self) -> int:
        """K."""
        return len(self.timesteps_K)

    @property
    def stochastic_K(self) -> Tensor:
        """(K,) bool: the steps that add noise, the only ones with a density."""
        return self.noise_K > 0

    def training_levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at training timesteps t, int64 of any shape."""
        alpha_bar = self.alpha_bar_T[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Schedule:
        """The same table on another device and in another floating-point type."""
        return Schedule(
            timesteps_K=self.timesteps_K.to(device),
            alpha_K1=self.alpha_K1.to(device, dtype),
            sigma_K1=self.sigma_K1.to(device, dtype),
            noise_K=self.noise_K.to(device, dtype),
            alpha_bar_T=self.alpha_bar_T.to(device, dtype),
            prediction=self.prediction,
        )


def spaced_timesteps(training_steps: int, steps: int, *, spacing: Spacing, offset: int = 0) -> np.ndarray:
    """The timesteps of a sampler, descending, as diffusers' DDIM scheduler spaces them.

    For some K (61 of 1000, say) diffusers' rounding gives `trailing` a timestep more, -1: here it has K, whatever K is.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, table 2.

    Args:
        training_steps: T, timesteps the model was trained on, 1000 for Stable Diffusion.
        steps: K, at most T.
        spacing: `leading` counts up from 0, `trailing` counts down from the last, `linspace` includes both ends.
        offset: added with `leading` only (1 for Stable Diffusion).

    Returns:
        (K,) int64, each below the one before, in [0, T - 1].

    Raises:
        UserError: K is out of range, or the offset leads beyond the last timestep (K = T with an offset of 1).
    """
    if not 1 <= steps <= training_steps:
        raise UserError(f"expected 1 to {training_steps} sampling steps, got {steps}: set sampler.steps in that range")
    if spacing == "linspace":
        return np.linspace(0, training_steps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        timesteps_K = (np.arange(steps) * (training_steps // steps))[::-1].astype(np.int64) + offset
        if timesteps_K[0] >= training_steps:
            raise UserError(
                f"expected timesteps up to {training_steps - 1}, {steps} steps with spacing leading and the model's offset of "
                f"{offset} begin at {timesteps_K[0]}: set fewer sampler.steps, or sampler.spacing=trailing"
            )
        return timesteps_K
    if spacing == "trailing":
        # not T (1 - k / K): which way a half is rounded depends on how it was computed, and models know diffusers' way
        return np.round(np.arange(training_steps, 0, -training_steps / steps)[:steps]).astype(np.int64) - 1
    raise UserError(f"expected a spacing of {', '.join(get_args(Spacing))}, got {spacing!r}: set sampler.spacing")


def ddim_schedule(
    alpha_bar_T: Tensor,
    *,
    steps: int,
    eta: float,
    spacing: Spacing,
    offset: int,
    prediction: PredictionType,
) -> Schedule:
    """The DDIM sampler: eta = 1 is DDPM's ancestral sampling, eta = 0 is deterministic.

    noise_k^2 = eta^2 (1 - abar_p) / (1 - abar_t) (1 - abar_t / abar_p), with p the timestep that step k goes to.
    Source: Song et al., "Denoising Diffusion Implicit Models", 2021, equation 16. A step goes to the next timestep in
    the table. diffusers instead always goes back training_steps // steps; the two are the same for `leading` and for
    `trailing` where steps divides training_steps, and only ours is a consistent chain otherwise.

    Args:
        alpha_bar_T: (T,) cumulative products of the training schedule.
        steps, spacing, offset: see `spaced_timesteps`.
        eta: in [0, 1].
        prediction: what the network predicts.

    Returns:
        The table, in the dtype of `alpha_bar_T`.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"expected eta between 0 and 1, got {eta}: set sampler.eta in that range")
    timesteps_K = torch.from_numpy(spaced_timesteps(len(alpha_bar_T), steps, spacing=spacing, offset=offset).copy())
    next_K = torch.cat([timesteps_K[1:], torch.zeros(1, dtype=torch.int64)])
    if prediction == "epsilon" and alpha_bar_T[timesteps_K[0]] <= 0:
        raise UserError(
            "expected some signal at the first timestep of a noise-predicting model, got a schedule with zero terminal "
            "signal-to-noise ratio: such models predict v; correct prediction_type in the scheduler's configuration"
        )
    abar_t, abar_p = alpha_bar_T[timesteps_K], alpha_bar_T[next_K]
    if abar_t[0] > 0.5:
        raise UserError(
            f"expected a sampler that begins where there is more noise than signal, got {steps} steps with spacing {spacing} "
            f"from timestep {timesteps_K[0]}: what it draws would be the noise that it begins with; set more sampler.steps, "
            "or sampler.spacing=trailing"
        )
    variance_K = eta**2 * (1 - abar_p) / (1 - abar_t) * (1 - abar_t / abar_p)
    abar_K1 = torch.cat([abar_t, abar_p[-1:]])
    return Schedule(
        timesteps_K=timesteps_K,
        alpha_K1=abar_K1.sqrt(),
        sigma_K1=(1 - abar_K1).sqrt(),
        noise_K=variance_K.clamp(min=0).sqrt(),
        alpha_bar_T=alpha_bar_T,
        prediction=prediction,
    )
