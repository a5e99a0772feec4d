"""The nouns that move between stages and processes.

Axis legend, used as suffixes of tensor names everywhere:

    N  samples (one picture each)            K  denoising steps, k = 0 is the step that leaves pure noise
    U  units of an objective                 M  members of a unit: 1 for a transition, 2 for a pair
    R  rankings: pictures of one prompt in order of preference, the best first; a pair is a ranking of two
    P  distinct prompts                      ...  the latent's own axes, (C, H, W) or (D,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from raysuite.devices import sent


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What work was done; adds up. `forward` and `backward` count samples through the denoiser once each."""

    forward: int = 0
    backward: int = 0
    images_decoded: int = 0
    images_scored: int = 0

    @property
    def network_evaluations(self) -> int:
        """The budget's unit: a backward pass costs two forward passes."""
        return self.forward + 2 * self.backward

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


TYPED = "user_prompt"
"""In the metadata of a prompt that was rewritten: what the user typed."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Coordinates of some prompts' rollouts, which go through the network as one batch.

    Example: prompts ("a", "b") with samples_per_prompt 4 is one batch of 8 pictures, a's four first.
    """

    update: int
    index: int
    prompts: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    """Number of each prompt, the coordinate of its noise."""
    samples_per_prompt: int
    metadata: tuple[Mapping[str, Any], ...]
    """What the prompt file says of each prompt besides its text; rewards see it."""
    first_sample: int = 0
    """Number of the first sample of each prompt, a coordinate of its noise."""
    evaluation: bool = False
    """Evaluation blocks draw from their own stream and drop the trajectories."""
    window: tuple[int, int] | None = None
    """The steps that add noise, from the first to before the second; None for every step."""
    one_draw: bool = False
    """Whether all samples of a prompt share one draw of what it means, where the policy `draws_prompts`. Samples that are compared do:
    the optimum that preference objectives stand for has a normaliser of each draw, which cancels between pictures of one draw only."""
    measure_kl: bool = False
    """Whether to measure the KL from the reference along the way (evaluation only; doubles the network cost)."""
    pictures: int = 0
    """How many of its pictures come back with the scores, the first ones; the others stay behind."""

    @property
    def size(self) -> int:
        """Samples in the block."""
        return len(self.prompts) * self.samples_per_prompt

    @property
    def prompt_of_N(self) -> tuple[str, ...]:
        """The prompt of every sample."""
        return tuple(p for p in self.prompts for _ in range(self.samples_per_prompt))

    @property
    def asked_of_N(self) -> tuple[str, ...]:
        """What every picture is judged by: what the user typed, where the model was given a rewrite of it."""
        asked = (known.get(TYPED, text) for text, known in zip(self.prompts, self.metadata, strict=True))
        return tuple(text for text in asked for _ in range(self.samples_per_prompt))

    @property
    def number_of_N(self) -> tuple[int, ...]:
        """The number of the prompt of every sample."""
        return tuple(i for i in self.prompt_ids for _ in range(self.samples_per_prompt))

    @property
    def metadata_of_N(self) -> tuple[Mapping[str, Any], ...]:
        """The metadata of every sample."""
        return tuple(m for m in self.metadata for _ in range(self.samples_per_prompt))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures and trajectories that no reward has seen yet. NumPy, on the CPU."""

    block: Block
    version: int
    latents_NK: np.ndarray | None
    logp_NK: np.ndarray | None
    kl_N: np.ndarray | None
    previews_JN: tuple[np.ndarray, ...]
    """uint8 (N, H, W, 3) of every preview, the final pictures last."""
    cost: Cost
    draws_N: np.ndarray | None = None
    """int64 (N,) labels of the prompts that were drawn, as in `Rollouts`."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What a block's rollout gave. Plain NumPy, so that it crosses processes without copies."""

    block: Block
    version: int
    """The policy version that drew it."""
    latents_NK: np.ndarray | None
    """Float32 (N, K + 1, ...): column 0 is pure noise, column K the clean latent; of a block with a window, the latents before and
    after its steps and the clean one; (N, 1, ...) where an objective of the forward process wants the clean latent alone. None
    for evaluation blocks."""
    logp_NK: np.ndarray | None
    """Behaviour log-density of every step in nats, float32 (N, K); 0 where a step adds no noise."""
    scores: Mapping[str, np.ndarray]
    """Float64 (N,) of every reward by name."""
    reward_N: np.ndarray
    """The trained reward: the weighted sum."""
    credit_NK: np.ndarray | None
    """Per-step credit of the trained reward, float64 (N, K), each row summing to the reward."""
    pictures: np.ndarray | None
    """uint8 (n, H, W, 3) of the block's first n samples, as it asks for them; None where it asks for none."""
    kl_N: np.ndarray | None
    """KL from the reference summed over the trajectory's steps, nats. None unless measured."""
    cost: Cost
    draws_N: np.ndarray | None = None
    """Where the policy draws what its prompts mean (`Policy.draws_prompts`): int64 (N,), the label of each sample's draw. With the
    weights it decides the draw, which is therefore not kept. None for other policies."""
    thumbnails_N: np.ndarray | None = None
    """uint8 (N, h, w, 3) of all pictures, as small as `kernel.diversity` compares them. None where nothing was drawn."""
    redone: Cost = Cost()
    """What was done in vain and again before: a process died, or a reward raised or hung. An upper bound."""
    scoring_seconds: float = 0.0
    """From the last picture drawn to the last score, in which other blocks may be drawn."""


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """One block's trajectories with an advantage for every step, in the order in which they were drawn."""

    latents_NK: Tensor
    """(N, K + 1, ...) float32, or (N, 1, ...) where only the clean latents are wanted. The last column is the clean latent."""
    logp_NK: Tensor
    """(N, K) nats."""
    advantage_NK: Tensor
    """(N, K)."""
    prompts_N: tuple[str, ...]
    window: tuple[int, int] | None = None
    """The steps that added noise, as in `Block`: then column 0 is the latent before the first of them."""
    draws_N: Tensor | None = None
    """(N,) int64 labels of the prompts' draws, as in `Rollouts`."""

    def __len__(self) -> int:
        return len(self.prompts_N)


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Pictures of the same prompt in order of preference: what a reward, or people, said of them."""

    latents_RMK: Tensor
    """Trajectories (R, M, K + 1, ...), or (R, M, 1, ...) where only the clean latents are known. The preferred member is
    the first; the last column is the clean latent."""
    prompts_R: tuple[str, ...]
    window: tuple[int, int] | None = None
    """The steps that added noise, as in `Block`: then column 0 is the latent before the first of them."""
    draws_RM: Tensor | None = None
    """(R, M) int64 labels of the prompts' draws, as in `Rollouts`; None for pictures that no such policy drew."""

    def __len__(self) -> int:
        return len(self.prompts_R)

    @property
    def clean_RM(self) -> Tensor:
        """(R, M, ...) the latents of the finished pictures."""
        return self.latents_RMK[:, :, -1]


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Where an objective wants predictions, and what its loss needs besides. Every tensor leads with U."""

    x_UM: Tensor
    """(U, M, ...) noisy latents. A unit of several trajectories has a member for each step of each."""
    t_UM: Tensor
    """(U, M) the network's timesteps, int64 or float32 as its schedule has them; always on the CPU, where it is decided which
    points are at one time."""
    prompts_U: tuple[str, ...]
    together: int
    """Units 0 to together - 1 form one group, the next `together` another, ...: a microbatch never crosses groups.
    Points that went through the network together when drawn do so again when learned: the first ratio is exactly 1."""
    guided: bool = True
    """Whether predictions are wanted with the sampler's guidance: of the policy that draws, or of the network alone."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    draws_UM: Tensor | None = None
    """(U, M) int64 labels of the prompts' draws, always on the CPU; None where the batch has none."""

    def __len__(self) -> int:
        return len(self.t_UM)

    def rows(self, start: int, stop: int) -> Self:
        """Units start to stop, as one chunk."""
        return self.select(torch.arange(start, min(stop, len(self))))

    def select(self, units: Tensor) -> Self:
        """The units of these numbers, as one chunk."""
        return replace(
            self,
            x_UM=self.x_UM[units],
            t_UM=self.t_UM[units.cpu()],
            prompts_U=tuple(self.prompts_U[unit] for unit in units.tolist()),
            draws_UM=None if self.draws_UM is None else self.draws_UM[units.cpu()],
            together=len(units),
            extra={name: tensor[units] for name, tensor in self.extra.items()},
        )

    def knowing(self, **tensors: Tensor) -> Self:
        """The same with more of what the loss needs."""
        return replace(self, extra={**self.extra, **tensors})

    def to(self, device: torch.device) -> Self:
        """The same on another device, but for what is always on the CPU."""
        return replace(
            self,
            x_UM=sent(self.x_UM, device),
            extra={name: sent(tensor, device) for name, tensor in self.extra.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Per-unit terms of an objective; the caller reduces. All (U,) float32."""

    terms_U: Tensor
    metrics: Mapping[str, Tensor]
