"""A distribution of prompts: what text encoders made of K soft prompts, and draws from it.

A state is a tensor that an encoder gave for a prompt; of K soft prompts around one text it is (K, ...). With their mean mu and their
standard deviation s, position by position, g the spread and e normal noise, a draw is

    independent   mu + g s e, one number of e for each of the state's
    correlated    mu + g sum_k w_k (E_k - mu), w_k normal with variance 1 / (K - 1), the same w for all states
    member        E_k, k uniform
    mean          mu, which any of the first two is at g = 0

Source: Zhao et al., "Learning Prompt Distribution for Diverse In-distribution Generation" (DreamDistribution), ICLR 2025, for
`independent` and the orthogonality loss. `correlated` has the sample covariance of the K states in place of its diagonal: the same s
at every position, and draws that stay in the span of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Draw = Literal["independent", "correlated", "member", "mean"]


@dataclass(frozen=True)
class Distribution:
    """The states of one text with each of K soft prompts."""

    states_K: tuple[Tensor, ...]
    """(K, ...) each: those that differ between the soft prompts, in the encoders' order."""

    @cached_property
    def mean(self) -> tuple[Tensor, ...]:
        """Mu of every state, (1, ...) float32."""
        return tuple(state_K.float().mean(0, keepdim=True) for state_K in self.states_K)

    @cached_property
    def deviation(self) -> tuple[Tensor, ...]:
        """S of every state, (1, ...) float32, with K - 1 in the denominator; 0 of a single soft prompt."""
        if len(self.states_K[0]) == 1:
            return tuple(torch.zeros_like(state_K, dtype=torch.float32) for state_K in self.states_K)
        return tuple(state_K.float().std(0, keepdim=True) for state_K in self.states_K)

    def spread(self) -> Tensor:
        """The mean of s over all numbers of all states: 0 where all soft prompts have become one."""
        return torch.cat([s.flatten() for s in self.deviation]).mean()

    def draw(self, label: int | None, *, kind: Draw, spread: float) -> tuple[Tensor, ...]:
        """The states of one draw, (1, ...) each.

        Args:
            label: decides the noise, which is drawn on the CPU; None for the mean.
            kind: as above.
            spread: g.
        """
        count = len(self.states_K[0])
        if kind == "mean" or label is None:
            drawn = self.mean
        elif kind == "member":
            chosen = int(torch.randint(count, (), generator=torch.Generator().manual_seed(label)))
            return tuple(state_K[chosen : chosen + 1] for state_K in self.states_K)
        elif kind == "correlated":
            generator = torch.Generator().manual_seed(label)
            noise = torch.randn(count, generator=generator, dtype=torch.float32) / (count - 1) ** 0.5
            drawn = tuple(
                mu + spread * torch.tensordot(noise.to(mu.device), state_K.float() - mu, 1)[None]
                for mu, state_K in zip(self.mean, self.states_K, strict=True)
            )
        else:
            generator = torch.Generator().manual_seed(label)
            drawn = tuple(
                mu + spread * s * torch.randn(s.shape, generator=generator, dtype=torch.float32).to(s.device)
                for mu, s in zip(self.mean, self.deviation, strict=True)
            )
        return tuple(each.to(state_K.dtype) for each, state_K in zip(drawn, self.states_K, strict=True))

    def log_density(self, drawn: Sequence[Tensor], *, spread: float) -> Tensor:
        """The log-density of an independent draw's states, as given: nats, up to a constant, with gradients to the soft prompts.

        Numbers that all soft prompts share have no density, and are left out. Where A is the advantage of a draw's picture, A times
        this gradient is on average the gradient of the expected reward, as A grad log p(picture | draw) is along the path. It asks
        nothing of the network: no backward pass, and no noise in the sampler. Its variance grows with the number of states.

        Args:
            drawn: states of a draw, (1, ...) each.
            spread: g, above 0.

        Source: Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", 1992.
        """
        terms = []
        for states, mu, s, state_K in zip(drawn, self.mean, self.deviation, self.states_K, strict=True):
            varying = (state_K != state_K[:1]).any(0, keepdim=True)
            deviation = spread * s[varying]
            terms.append((-((states.detach().float() - mu)[varying] / deviation).square() / 2 - deviation.log()).sum())
        return torch.stack(terms).sum()


def orthogonality(ends: Sequence[Tensor]) -> Tensor:
    """Mean squared cosine between the K prompts' states at the end of the text, of each encoder (K, d), averaged over encoders.

    0 where they are orthogonal, 1 where they are parallel. A denoising loss makes K prompts alike, and this holds them apart.
    """
    terms = []
    for end_K in ends:
        unit_K = torch.nn.functional.normalize(end_K.float(), dim=1)
        cosine_KK = unit_K @ unit_K.T
        count = len(end_K)
        terms.append((cosine_KK.square().sum() - cosine_KK.diagonal().square().sum()) / (count * (count - 1)))
    return torch.stack(terms).mean()
