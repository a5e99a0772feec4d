"""The forward process: clean latents are noised anew, at levels of the model's training table or of the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysuite.kernel.objectives.interface import Batch, Objective, require
from raysuite.kernel.schedule import Schedule, add_noise, network_output
from raysuite.types import Queries

Density = Literal["uniform", "logit_normal", "sampler"]


@dataclass(frozen=True, kw_only=True)
class ForwardObjective(Objective[Batch]):
    """An objective of the forward process: it needs finished pictures, and no trajectories of the sampler.

    Where on the model's training table of T levels it noises them, the least noisy first:

        uniform        every level alike
        logit_normal   level floor(T sigmoid(z)), z normal with mean `logit_mean` and spread `logit_std`
        sampler        the levels that the sampler's steps begin at, every one alike, and of one picture no level twice

    A flow model's table is its scheduler's: where that is shifted towards noise, so is what is drawn.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, section 3.1, for
    logit_normal, with a mean above 0 towards noise. diffusers' training scripts count levels from noise: their mean is
    minus ours. Zheng et al., "DiffusionNFT", 2025, learn at the sampler's levels.
    """

    draws: int = 1
    """Noise levels a picture, or a pair."""
    noise_range: tuple[float, float] = (0.0, 1.0)
    """Levels to draw from, as shares of the training table; (0.5, 1) is the noisy half, where the composition is decided."""
    levels: Density = "uniform"
    """`uniform`, `logit_normal`, or those of the `sampler`."""
    logit_mean: float = 0.0
    """Of logit_normal; above 0 towards noise."""
    logit_std: float = 1.0
    """Of logit_normal: above 0."""

    process = "forward"

    def __post_init__(self) -> None:
        require(self.draws >= 1, "draws", "of at least 1", self.draws)
        low, high = self.noise_range
        ascending = 0 <= low < high <= 1
        require(ascending, "noise_range", "as two ascending shares between 0 and 1", list(self.noise_range))
        require(self.logit_std > 0, "logit_std", "above 0", self.logit_std)
        plain = self.levels == "logit_normal" or (self.logit_mean, self.logit_std) == (0.0, 1.0)
        shape = [self.logit_mean, self.logit_std]
        require(plain, "logit_mean and logit_std", "left out unless levels is logit_normal", shape)

    def check_schedule(self, schedule: Schedule) -> None:
        """Look whether there are noise levels to draw from.

        Raises:
            UserError: `noise_range` holds no timestep, or the sampler too few levels in it.
        """
        if self.levels == "sampler":
            self._steps_inside(schedule.to("cpu"))
        else:
            self._range(schedule)

    def renoise(
        self,
        clean_RM: Tensor,
        prompts_R: Sequence[str],
        schedule: Schedule,
        generator: torch.Generator,
        *,
        shared_noise: bool = True,
        prompt_dropout: float = 0.0,
        extra: Mapping[str, Tensor] | None = None,
        draws_RM: Tensor | None = None,
    ) -> Queries:
        """Noisy versions of clean latents, (R draws) units in the order of R.

        Members of a unit share the level and, with `shared_noise`, the noise. `extra` of the queries gets `target` (U, M, ...),
        what the network should say there, the pictures themselves as `clean`, the levels as `alpha` and `sigma` (U,), and the
        rows of the given `extra` (R, ...).

        Args:
            clean_RM: (R, M, ...) latents.
            prompts_R: one a row.
            schedule: of the model.
            generator: draws everything, on the CPU.
            shared_noise: one noise for all members, as the released code of Diffusion-DPO has it; its paper writes one each.
            prompt_dropout: probability that a unit's prompt is replaced by the empty one.
            extra: whatever else the loss needs, by row.
            draws_RM: (R, M) labels of the prompts' draws, which stay with their pictures.
        """
        units, members = len(clean_RM) * self.draws, clean_RM.shape[1]
        clean_UM = clean_RM.repeat_interleave(self.draws, 0)
        t_U, *levels = self._levels(schedule.to("cpu"), len(clean_RM), generator)
        alpha_U, sigma_U = (level.to(clean_RM.dtype) for level in levels)
        noise_shape = (units, 1 if shared_noise else members, *clean_RM.shape[2:])
        noise_UM = torch.randn(noise_shape, generator=generator, dtype=clean_RM.dtype).expand_as(clean_UM)
        dropped_U = torch.rand(units, generator=generator) < prompt_dropout
        prompts = [prompt for prompt in prompts_R for _ in range(self.draws)]
        wide = alpha_U[:, None], sigma_U[:, None]
        return Queries(
            x_UM=add_noise(clean_UM, noise_UM, *wide),
            t_UM=t_U[:, None].expand(units, members),
            prompts_U=tuple("" if drop else prompt for prompt, drop in zip(prompts, dropped_U.tolist(), strict=True)),
            together=units,
            guided=False,
            draws_UM=None if draws_RM is None else draws_RM.repeat_interleave(self.draws, 0),
            extra={
                "target": network_output(schedule.prediction, clean_UM, noise_UM, *wide),
                "clean": clean_UM,
                "alpha": alpha_U,
                "sigma": sigma_U,
                **{name: rows.repeat_interleave(self.draws, 0) for name, rows in (extra or {}).items()},
            },
        )

    def _levels(self, schedule: Schedule, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Timestep, alpha and sigma of every unit, (R draws,) each."""
        if self.levels == "sampler":
            inside_K = self._steps_inside(schedule)
            order_RK = torch.rand(rows, len(inside_K), generator=generator).argsort(1)
            k_U = inside_K[order_RK[:, : self.draws].flatten()]
            return schedule.timesteps_K[k_U], schedule.alpha_K1[k_U], schedule.sigma_K1[k_U]
        table, units = schedule.training, rows * self.draws
        low, high = self._range(schedule)
        if self.levels == "uniform":
            level_U = torch.randint(low, high, (units,), generator=generator)
        else:
            level_U = self._logit_normal(units, low / len(table), high / len(table), generator)
            level_U = (level_U * len(table)).long().clamp(low, high - 1)
        return table.timesteps_T[level_U], table.alpha_T[level_U], table.sigma_T[level_U]

    def _range(self, schedule: Schedule) -> tuple[int, int]:
        """The first place in the training table that may be drawn and the first that may not."""
        timesteps = len(schedule.training)
        low, high = (round(share * timesteps) for share in self.noise_range)
        require(low < high, "noise_range", f"with a timestep of {timesteps} in it", list(self.noise_range))
        return low, high

    def _steps_inside(self, schedule: Schedule) -> Tensor:
        """The sampler's steps whose levels lie in the range."""
        low, high = self._range(schedule)
        place_K = schedule.training.nearest(schedule.timesteps_K)
        inside_K = ((place_K >= low) & (place_K < high)).nonzero().flatten()
        wanted = f"of at most the {len(inside_K)} levels of the sampler in noise_range"
        require(self.draws <= len(inside_K), "draws", wanted, self.draws)
        return inside_K

    def _logit_normal(self, units: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        """Shares of the table between low and high, by the inverse of their distribution function."""
        ends = torch.tensor([low, high], dtype=torch.float64)
        below, above = torch.special.ndtr((ends.logit() - self.logit_mean) / self.logit_std)
        quantile_U = below + (above - below) * torch.rand(units, generator=generator, dtype=torch.float64)
        return torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(quantile_U))


def mean_square(difference: Tensor, leading: int) -> Tensor:
    """Mean of squares over all but the `leading` axes."""
    return difference.flatten(leading).square().mean(-1)
