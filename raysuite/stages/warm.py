"""Compiling before the first update: one call of every shape that drawing and learning will have, for nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.stages.learn import Batch, generator_of, gradient
from raysuite.stages.preferences import rankings
from raysuite.stages.prompts import PromptSet, evaluation_blocks, latents_kept, training_blocks
from raysuite.types import Block, Preferences, Transitions


class _Enough(Exception):
    """The first microbatch has been through the network and back."""


def shapes(config: RunConfig, prompts: PromptSet) -> list[Block]:
    """A block of every shape that a run draws: of an update, where it draws any, and of evaluations."""
    drawn = config.rollouts.replay is None and config.preferences.source is None
    blocks = training_blocks(config, prompts, update=0)[:1] if drawn else []
    for split in evaluation_blocks(config, prompts, update=0, final=True).values():
        blocks += split
    return list({(block.size, block.measure_kl): block for block in blocks}.values())


@torch.no_grad()
def warm_drawing(policy: Policy, blocks: Sequence[Block]) -> None:
    """Predict once for each block, and as the reference where its KL is measured."""
    for block in blocks:
        x_N = torch.zeros(block.size, *policy.latent_shape, device=policy.device)
        t_N = policy.table.timesteps_K[0].expand(block.size)
        draws_N = torch.zeros(block.size, dtype=torch.int64) if policy.draws_prompts else None
        for reference in (False, True)[: 1 + block.measure_kl]:
            policy.predict(x_N, t_N, block.prompt_of_N, reference=reference, draws_N=draws_N)


def warm_learning(policy: Policy, config: RunConfig, batch: Batch) -> None:
    """Take the gradient of a block's first microbatch, and drop it."""
    calls = itertools.count()

    def first_alone() -> None:
        if next(calls):
            raise _Enough

    with suppress(_Enough):
        gradient(
            config.built_objective,
            policy,
            [(batch, generator_of(config, 0, 0, 0))],
            microbatch=config.learn.microbatch,
            check=first_alone,
        )
    for parameter in policy.trainable().values():
        parameter.grad = None


def blank(policy: Policy, config: RunConfig, prompts: PromptSet) -> Batch:
    """What the first block of rollouts will look like to the objective, with noughts in it."""
    block = training_blocks(config, prompts, update=0)[0]
    latents_NK = torch.zeros(block.size, latents_kept(config, block.window), *policy.latent_shape)
    draws_N = torch.zeros(block.size, dtype=torch.int64) if policy.draws_prompts else None
    if config.built_objective.consumes == "advantages":
        nought_NK = torch.zeros(block.size, config.sampler.steps)
        return Transitions(
            latents_NK=latents_NK,
            logp_NK=nought_NK,
            advantage_NK=nought_NK,
            prompts_N=block.prompt_of_N,
            window=block.window,
            draws_N=draws_N,
        )
    ranked_RM, _ = rankings(config, block, np.arange(block.size, dtype=float))
    return Preferences(
        latents_RMK=latents_NK[ranked_RM],
        prompts_R=tuple(block.prompt_of_N[row[0]] for row in ranked_RM),
        window=block.window,
        draws_RM=None if draws_N is None else draws_N[ranked_RM],
    )
