"""reward -> preferences: who is compared with whom in an update's rollouts, and how it looks to an objective."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from raysuite.config import Preferences as Wanted, RunConfig
from raysuite.errors import UserError
from raysuite.kernel.preferences import choose, rank
from raysuite.rng import Stage, numpy_generator
from raysuite.types import Block, Preferences, Rollouts


def rankings(
    config: RunConfig, block: Block, reward_N: np.ndarray, rounding_N: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Which samples of a block are ranked, as indices (R, M) with the preferred first, and how many tuples were ties.

    Never across prompts. Each group's draws depend on its own coordinates, so that any process comes to the same.

    Args:
        config: of the run.
        block: whose samples.
        reward_N: what is learned from.
        rounding_N: what each may be off by, where it was computed from larger numbers.
    """
    wanted, found, ties = config.preferences, [], 0
    for group, prompt in enumerate(block.prompt_ids):
        first = group * block.samples_per_prompt
        reward_G = reward_N[first : first + block.samples_per_prompt]
        rng = numpy_generator(seed=config.seed, stage=Stage.PREFERENCES, update=block.update, prompt=prompt)
        tuples_RM = tuples(wanted, reward_G, rng)
        order = rank(
            reward_G[tuples_RM],
            None if rounding_N is None else rounding_N[first + tuples_RM],
            label=wanted.label,
            temperature=wanted.temperature,
            noise=wanted.noise,
            rng=rng,
        )
        rows, places_RM = order[:, 0], order[:, 1:]
        found.append(first + np.take_along_axis(tuples_RM[rows], places_RM, axis=1))
        ties += len(tuples_RM) - len(rows)
    return np.concatenate(found), ties


def tuples(wanted: Wanted, reward_G: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which samples of one prompt are compared, as indices (R, M)."""
    return choose(reward_G, how=wanted.choose, members=wanted.members, kept=wanted.kept, limit=wanted.limit, rng=rng)


def rows_of_set(config: RunConfig, size: int, *, update: int, block: int) -> list[int]:
    """Which rankings of an off-line set a block learns from: the whole set in a new order every time through."""
    width = config.rollouts.prompts_per_block
    first = update * config.rollouts.prompts + block * width
    numbers = []
    for position in range(first, first + width):
        epoch, place = divmod(position, size)
        numbers.append(int(_order(config.seed, epoch, size)[place]))
    return numbers


@lru_cache(maxsize=2)  # a block may end one time through a set and begin the next
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return numpy_generator(seed=seed, stage=Stage.PREFERENCE_ORDER, update=epoch).permutation(size)


def refuse_several_draws(draws_RM: np.ndarray) -> None:
    """Refuse to compare pictures of different draws of their prompt.

    Args:
        draws_RM: labels of the draws, (R, M) for R times M pictures that are compared.

    Raises:
        UserError: M pictures have several.
    """
    if (draws_RM != draws_RM[:, :1]).any():
        raise UserError(
            "expected pictures that are compared to share the draw of their prompt, got several draws: replay a run whose objective "
            "learned from preferences, or set preferences.across_draws=true"
        )


def compared(rollouts: Rollouts, indices_RM: np.ndarray, *, across_draws: bool = False) -> Preferences:
    """One block's rankings as an objective sees them.

    Raises:
        UserError: pictures of different draws of their prompt are compared, and that was not asked for.
    """
    assert rollouts.latents_NK is not None
    draws_RM = None if rollouts.draws_N is None else rollouts.draws_N[indices_RM]
    if draws_RM is not None and not across_draws:
        refuse_several_draws(draws_RM)
    prompts_N = rollouts.block.prompt_of_N
    return Preferences(
        latents_RMK=torch.from_numpy(rollouts.latents_NK[indices_RM]),
        prompts_R=tuple(prompts_N[row[0]] for row in indices_RM),
        window=rollouts.block.window,
        draws_RM=None if draws_RM is None else torch.from_numpy(draws_RM),
    )
