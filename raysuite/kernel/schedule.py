"""Noise levels of a sampler, and what a network's output means at each.

At level (alpha, sigma) a noisy latent is x = alpha * x0 + sigma * eps. Variance-preserving models have alpha^2 + sigma^2 = 1,
flow models alpha + sigma = 1. A sampler of K steps visits K + 1 levels: step k goes from level k to level k + 1, by

    x' = alpha' x0 + direction eps + noise z,

with (x0, eps) from the network's output and z fresh. All samplers here differ in the pair (direction, noise) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from raysuite.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "velocity"]
Spacing = Literal["leading", "trailing", "linspace"]
NoiseKind = Literal["ddim", "cps", "flow_sde", "dance"]

ALMOST_ONE = 0.999
"""Where solvers' schedulers begin (UniPC at 1 - 1e-6, DPM-Solver at 0.9997), flow_sde's first step would blow up as it does at 1."""
FLOW_FLOOR = 0.03
"""On flow tables no step adds noise that ends at this sigma or below (see `noisy_schedule`)."""


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

    epsilon: x0 = (x - sigma eps) / alpha.
    v_prediction, v = alpha eps - sigma x0: x0 = alpha x - sigma v, eps = alpha v + sigma x.
    velocity, v = eps - x0: x0 = (x - sigma v) / (alpha + sigma), eps = (x + alpha v) / (alpha + sigma).
    The latter two are finite at alpha = 0 too. On flow tables alpha + sigma is 1, up to rounding.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022, appendix D; Lipman et al.,
    "Flow Matching for Generative Modeling", 2023, for the velocity of the straight path.
    """
    alpha, sigma = expand(alpha, x), expand(sigma, x)
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction == "v_prediction":
        return alpha * x - sigma * output, alpha * output + sigma * x
    return (x - sigma * output) / (alpha + sigma), (x + alpha * output) / (alpha + sigma)


def network_output(prediction: PredictionType, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The inverse of `denoised`: what a network should say where the truth is (x0, eps)."""
    if prediction == "epsilon":
        return eps
    if prediction == "v_prediction":
        return expand(alpha, x0) * eps - expand(sigma, x0) * x0
    return eps - x0


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The noise levels that a model was trained at, the least noisy first: where the forward process may ask it."""

    timesteps_T: Tensor
    """(T,) what the network is told at each: int64 for most variance-preserving models, float32 for flow models."""
    alpha_T: Tensor
    """(T,) signal levels."""
    sigma_T: Tensor
    """(T,) noise levels, ascending."""

    @classmethod
    def variance_preserving(cls, alpha_bar_T: Tensor) -> Self:
        """Timesteps 0 to T - 1 with squared signal levels alpha_bar_T, (T,), in their dtype."""
        return cls(
            timesteps_T=torch.arange(len(alpha_bar_T), device=alpha_bar_T.device),
            alpha_T=alpha_bar_T.sqrt(),
            sigma_T=(1 - alpha_bar_T).sqrt(),
        )

    @classmethod
    def flow(cls, timesteps_T: Tensor, sigma_T: Tensor) -> Self:
        """Alpha = 1 - sigma. Levels may come in any order; schedulers list them from noise to picture."""
        order = sigma_T.argsort()
        return cls(timesteps_T=timesteps_T[order], alpha_T=1 - sigma_T[order], sigma_T=sigma_T[order])

    def __len__(self) -> int:
        """T."""
        return len(self.timesteps_T)

    def nearest(self, t: Tensor) -> Tensor:
        """Which level, int64 in [0, T), each timestep t of any shape belongs to: the one with the nearest timestep."""
        known = self.timesteps_T.to(t.device, torch.float64)
        return torch.searchsorted((known[1:] + known[:-1]) / 2, t.double().contiguous())

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampler as a table, for a model of one prediction type.

    A step that adds no noise has no density to score: with noise level 0, outside a window, at or below the noise floor, and
    wherever a step goes nowhere or ends free of noise.
    """

    timesteps_K: Tensor
    """(K,) descending, int64 or float32: what the network is told. Time is a column of its own: it may have fractions, and some
    models are told another time than their noise level's."""
    alpha_K1: Tensor
    """(K + 1,) signal levels."""
    sigma_K1: Tensor
    """(K + 1,) noise levels."""
    noise_K: Tensor
    """(K,) standard deviation of the noise that step k adds."""
    direction_K: Tensor
    """(K,) what step k multiplies the predicted noise with. sqrt(sigma'^2 - noise^2) keeps the noise level exactly."""
    training: Levels
    """The levels that the model was trained at."""
    prediction: PredictionType

    def __post_init__(self) -> None:
        columns = (self.alpha_K1, self.sigma_K1, self.noise_K, self.direction_K)
        steps, lengths = len(self.timesteps_K), [len(column) for column in columns]
        if not steps or lengths != [steps + 1, steps + 1, steps, steps]:
            raise ValueError(
                f"expected K timesteps, K + 1 levels, K noises and K directions, got {steps} and {lengths}"
            )
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

    def windowed(self, window: tuple[int, int] | None) -> Schedule:
        """The same sampler with noise in steps first to end - 1 only, others following the probability-flow ODE; itself for None."""
        if window is None:
            return self
        first, end = window
        k = torch.arange(self.steps, device=self.noise_K.device)
        inside_K = (k >= first) & (k < end)
        return replace(
            self,
            noise_K=torch.where(inside_K, self.noise_K, 0.0),
            direction_K=torch.where(inside_K, self.direction_K, self.sigma_K1[1:]),
        )

    def to(self, device: torch.device | str) -> Schedule:
        """The same table on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prediction"}
        )


def noisy_schedule(
    *,
    timesteps_K: Tensor,
    alpha_K1: Tensor,
    sigma_K1: Tensor,
    training: Levels,
    prediction: PredictionType,
    kind: NoiseKind = "ddim",
    level: float = 1.0,
    floor: float | None = None,
    dtype: torch.dtype | None = None,
) -> Schedule:
    """A sampler over given levels, with noise of one kind.

    With (alpha, sigma) before a step, (alpha', sigma') after it and d = sigma - sigma', the noise's variance is

        ddim        level^2 (sigma'/sigma)^2 (sigma^2 - (alpha sigma'/alpha')^2)    level in [0, 1]
        cps         sigma'^2 sin^2(level pi/2)                                      level in [0, 1]
        flow_sde    level^2 sigma/(1 - sigma) d                                     level of 0 or more, 0.7 in the source
        dance       level^2 d                                                       level of 0 or more, 0.3 in the source

    and the direction sqrt(sigma'^2 - noise^2) for the first two, which keeps the noise level exactly, and
    sigma' - noise^2/(2 sigma) for the others, which are Euler-Maruyama steps of a reverse SDE and keep it to first order: their
    steps end with more noise than sigma'. Level 0 is the ODE step for all four. As K grows, flow_sde of level a becomes ddim of
    level a/sqrt(2), and a = sqrt(2) the ancestral sampler; cps has no limit, and its samples collapse, since its noise per
    step does not shrink with d.

    Steps that end at sigma' <= floor add no noise. Some flow tables take their last but one step to a very small sigma (0.009
    for Stable Diffusion 3): under ddim and cps that step alone would outweigh all others ten thousandfold in ratios and KL, and
    under flow_sde its excess noise would stay in the picture, since no step is left to remove it.

    Source: ddim: Song et al., "Denoising Diffusion Implicit Models", 2021, equation 16, which is this for alpha^2 + sigma^2 = 1.
    cps: Wang and Yu, "Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching", 2025, whose released code takes
    the squared distance itself for a log-density: here it is over 2 noise^2, so that its clip does not carry over. flow_sde:
    Liu et al., "Flow-GRPO", 2025, with the released code's rule that at sigma = 1 the first step's denominator takes the next
    sigma; here it does so next to 1, too. dance: Xue et al., "DanceGRPO", 2025.

    Args:
        timesteps_K: (K,) descending, kept as they are.
        alpha_K1: (K + 1,) signal levels, ascending; float64, so that nothing is lost before the result is rounded.
        sigma_K1: (K + 1,) noise levels, descending.
        training: the levels that the model was trained at.
        prediction: what the network predicts.
        kind: of noise.
        level: how much.
        floor: None for 0.03 on flow tables (alpha = 1 - sigma) and 0 on others.
        dtype: of the result's columns; that of `alpha_K1` by default.

    Raises:
        UserError: the level is out of range, the kind is for flow tables and this is none, or the network predicts noise where
            there is no signal.
    """
    flow = bool(((alpha_K1 + sigma_K1 - 1).abs() < 1e-5).all())
    check_level(kind, level)
    if kind in ("flow_sde", "dance") and not flow:
        raise UserError(
            f"expected noise of ddim or cps with this model, got {kind}: it is a step of flow models, whose signal and noise levels "
            "add up to 1; set sampler.noise.kind=ddim"
        )
    if prediction == "epsilon" and alpha_K1[0] <= 0:
        raise UserError(
            "expected some signal at the first timestep of a noise-predicting model, got a schedule with zero terminal "
            "signal-to-noise ratio: such models predict v; correct prediction_type in the scheduler's configuration"
        )
    dtype = dtype or alpha_K1.dtype
    alpha, sigma, after = alpha_K1[:-1], sigma_K1[:-1], sigma_K1[1:]
    if kind == "ddim":
        variance_K = level**2 * (after / sigma) ** 2 * (sigma**2 - (alpha / alpha_K1[1:] * after) ** 2)
    elif kind == "cps":
        variance_K = (after * math.sin(level * math.pi / 2)) ** 2
    elif kind == "flow_sde":
        below_one = sigma.clone()
        if sigma[0] > ALMOST_ONE:
            below_one[0] = after[0]
        variance_K = level**2 * sigma / (1 - below_one) * (sigma - after)
    else:
        variance_K = level**2 * (sigma - after)
    lowest = floor if floor is not None else FLOW_FLOOR if flow else 0.0
    noise_K = torch.where(after > lowest, variance_K.clamp(min=0), 0.0).sqrt().to(dtype)
    if kind in ("ddim", "cps"):  # of the levels as they are used, so that direction^2 + noise^2 is sigma'^2 there
        direction_K = (after.to(dtype) ** 2 - noise_K**2).clamp(min=0).sqrt()
    else:
        direction_K = (after - noise_K.double() ** 2 / (2 * sigma)).to(dtype)
    return Schedule(
        timesteps_K=timesteps_K,
        alpha_K1=alpha_K1.to(dtype),
        sigma_K1=sigma_K1.to(dtype),
        noise_K=noise_K,
        direction_K=direction_K,
        training=training,
        prediction=prediction,
    )


def check_level(kind: NoiseKind, level: float) -> None:
    """Refuse a noise level that this kind of noise does not have.

    Raises:
        UserError: it is out of range.
    """
    most = 1.0 if kind in ("ddim", "cps") else math.inf
    if not 0 <= level <= most:
        wanted = "between 0 and 1" if most == 1 else "of at least 0"
        raise UserError(
            f"expected sampler.noise.level {wanted} with {kind}, got {level:g} (sampler.eta is short for that of ddim): correct it"
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


def variance_preserving_schedule(
    alpha_bar_T: Tensor,
    *,
    steps: int,
    spacing: Spacing,
    offset: int,
    prediction: PredictionType,
    kind: NoiseKind = "ddim",
    level: float = 1.0,
    floor: float | None = None,
    dtype: torch.dtype | None = None,
) -> Schedule:
    """A sampler that spaces its steps over a variance-preserving model's training timesteps: by default DDPM's ancestral one.

    A step goes to the next timestep in the table. diffusers instead always goes back training_steps // steps; the two are the
    same for `leading` and for `trailing` where steps divides training_steps, and only ours is a consistent chain otherwise.
    The last step goes to the level of the first training timestep, which is not quite free of noise. So its noise is positive
    wherever its own timestep is above 0. Where that timestep is 0 (spacing `linspace`, or `leading` without an offset) the
    step goes nowhere, adds no noise, and has no density to score.

    Args:
        alpha_bar_T: (T,) cumulative products of the training schedule, float64.
        steps: see `spaced_timesteps`.
        spacing: likewise.
        offset: likewise.
        prediction: what the network predicts.
        kind: see `noisy_schedule`.
        level: likewise.
        floor: likewise.
        dtype: likewise.
    """
    dtype = dtype or alpha_bar_T.dtype
    timesteps_K = torch.from_numpy(spaced_timesteps(len(alpha_bar_T), steps, spacing=spacing, offset=offset).copy())
    alpha_bar_K1 = alpha_bar_T[torch.cat([timesteps_K, torch.zeros(1, dtype=torch.int64)])]
    if alpha_bar_K1[0] > 0.5:
        raise UserError(
            f"expected a sampler that begins where there is more noise than signal, got {steps} steps with spacing {spacing} "
            f"from timestep {timesteps_K[0]}: what it draws would be the noise that it begins with; set more sampler.steps, "
            "or sampler.spacing=trailing"
        )
    return noisy_schedule(
        timesteps_K=timesteps_K,
        alpha_K1=alpha_bar_K1.sqrt(),
        sigma_K1=(1 - alpha_bar_K1).sqrt(),
        training=Levels.variance_preserving(alpha_bar_T.to(dtype)),
        prediction=prediction,
        kind=kind,
        level=level,
        floor=floor,
        dtype=dtype,
    )
