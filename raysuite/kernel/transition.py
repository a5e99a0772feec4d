"""One stochastic denoising step p(x_next | x) = N(mean, noise^2), for any table of levels: draw it, or score it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raysuite.kernel.schedule import Schedule, denoised, expand


def mean(schedule: Schedule, k: int | Tensor, x: Tensor, output: Tensor) -> Tensor:
    """Mean = alpha_next x0 + direction eps, with (x0, eps) from the network's output.

    Source: Song et al., "Denoising Diffusion Implicit Models", 2021, equation 12, for direction^2 = sigma_next^2 - noise^2; with
    `ddim` noise of level 1 it is the mean of DDPM's posterior q(x_next | x, x0). `noisy_schedule` has the other samplers.

    Args:
        schedule: the sampler.
        k: the step, or that of each row, (N,) int64.
        x: (N, ...) latents before the step.
        output: (N, ...) the network's output at (x, timesteps_K[k]).
    """
    x0, eps = predicted(schedule, k, x, output)
    return expand(schedule.alpha_K1[k + 1], x) * x0 + expand(schedule.direction_K[k], x) * eps


def predicted(schedule: Schedule, k: int | Tensor, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise that the network sees in x at level k."""
    return denoised(schedule.prediction, output, x, schedule.alpha_K1[k], schedule.sigma_K1[k])


def output_slope(schedule: Schedule) -> Tensor:
    """D mean / d output of every step, (K,).

    direction - alpha_next sigma / alpha for epsilon; (alpha direction - alpha_next sigma) / (alpha + sigma) for velocity, which
    on flow tables is sigma_next - sigma for the ODE and (1 + a^2 / 2) times that for `flow_sde` of level a.
    """
    k = torch.arange(schedule.steps, device=schedule.noise_K.device)
    zero = torch.zeros_like(schedule.noise_K)
    return mean(schedule, k, zero, zero + 1)


def draw(schedule: Schedule, k: int | Tensor, mean_N: Tensor, noise_N: Tensor) -> Tensor:
    """x_next = mean + noise_k z; a step without noise returns the mean."""
    return mean_N + expand(schedule.noise_K[k], mean_N) * noise_N


def log_density(schedule: Schedule, k: int | Tensor, mean_N: Tensor, next_N: Tensor) -> Tensor:
    """Log p(x_next | x) of every row in nats, summed over the latent's dimensions, (N,).

    The steps must add noise (`Schedule.stochastic_K`): others have no density, and what comes out is not finite. To look here
    would make the caller wait for the device at every step.
    """
    noise = schedule.noise_K[k]
    standard = (next_N - mean_N) / expand(noise, mean_N)
    dimensions = mean_N[0].numel()
    return -0.5 * standard.flatten(1).square().sum(1) - dimensions * (noise.log() + 0.5 * math.log(2 * math.pi))


def log_ratio(schedule: Schedule, k: Tensor, mean_N: Tensor, reference_mean_N: Tensor, next_N: Tensor) -> Tensor:
    """Log p(x_next | x) - log p_ref(x_next | x) of every row in nats, summed over the latent's dimensions, (N,).

    = <mean - mean_ref, 2 x_next - mean - mean_ref> / (2 noise^2): exactly 0 where the means are equal, and free of the
    cancellation in a difference of two densities. The steps must add noise (see `log_density`).
    """
    product = (mean_N - reference_mean_N) * (2 * next_N - mean_N - reference_mean_N)
    return product.flatten(1).sum(1) / (2 * schedule.noise_K[k] ** 2)


def kl(schedule: Schedule, k: int | Tensor, mean_N: Tensor, reference_mean_N: Tensor) -> Tensor:
    """KL(N(mean, noise^2) || N(reference mean, noise^2)) = |difference|^2 / (2 noise^2), nats, (N,).

    In terms of the network's outputs it is slope^2 / (2 noise^2) |output - output_ref|^2, with `output_slope`. Zero where both
    the noise and the difference are (steps without noise carry no KL here: they have no density).
    """
    variance = schedule.noise_K[k] ** 2
    squared = (mean_N - reference_mean_N).flatten(1).square().sum(1)
    return torch.where(variance > 0, squared / (2 * variance.clamp(min=torch.finfo(variance.dtype).tiny)), 0.0)
