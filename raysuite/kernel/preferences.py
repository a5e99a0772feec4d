"""Rewards -> preferences: which pictures of a prompt are compared, and which of them is said to be better.

A ranking holds members of one prompt's group, never the same one twice, the preferred first; a pair is a ranking of two.
Everything is NumPy and draws from the generator that it is given.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

from raysuite.errors import UserError
from raysuite.kernel.credit import ROUNDING

Choice = Literal["best_worst", "random", "spread", "all"]
Label = Literal["argmax", "bradley_terry"]


def choose(
    reward_N: np.ndarray, *, how: Choice, members: int, kept: int, limit: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Which members of one prompt's group are compared, as indices (R, M); their order in a row means nothing yet.

    Args:
        reward_N: rewards of the group.
        how: `best_worst` compares the samples at `members` evenly spaced quantiles (two: the best with the worst); `spread`
            keeps `kept` samples at evenly spaced quantiles and compares all tuples of those, as Yang, Chen and Zhou do
            (2024, released code: 5 of 12); `all` and `random` compare tuples of the whole group.
        members: M, at least 2.
        kept: samples that `spread` keeps.
        limit: at most this many tuples, drawn without replacement; None for all of them.
        rng: draws the tuples where there are more than `limit`.
    """
    size = len(reward_N)
    held = {"best_worst": members, "spread": kept}.get(how, size)
    if not 2 <= members <= held <= size:
        raise UserError(
            f"expected 2 <= members <= kept <= samples of a prompt, got {members}, {held} and {size}: correct "
            "preferences.members, preferences.kept or rollouts.samples"
        )
    ascending = np.argsort(reward_N, kind="stable")
    pool = np.sort(ascending[np.arange(held) * (size - 1) // (held - 1)])
    wanted = comb(held, members) if limit is None else min(limit, comb(held, members))
    everything = np.array(list(combinations(pool.tolist(), members)))
    return everything[np.sort(rng.permutation(len(everything))[:wanted])]


def rank(
    reward_RM: np.ndarray,
    rounding_RM: np.ndarray | None = None,
    *,
    label: Label,
    temperature: float,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The order of preference in every row, as positions (R', M), the preferred first; rows that say nothing are left out.

    The rule for ties: with `argmax` a row in which two rewards are equal, or differ by no more than rounding, states no order, and
    is dropped; so R' <= R and the rows that stay are the first column of the result. With `bradley_terry` equal rewards are a fair
    coin.

    Args:
        reward_RM: rewards of the compared members.
        rounding_RM: what each may be off by, where it was computed from larger numbers; by default `ROUNDING` times its size.
        label: `argmax` believes the reward; `bradley_terry` draws the order with probabilities proportional to
            exp(reward / temperature), one place after the other (Plackett and Luce; for two members Bradley and Terry).
        temperature: in units of reward.
        noise: probability that a row's order is turned round.
        rng: draws one set of numbers a row whatever the settings.

    Returns:
        (R', 1 + M) int64: the row's number, then the positions in it by preference.
    """
    if label == "bradley_terry" and not temperature > 0:
        raise UserError(f"expected preferences.temperature above 0 with bradley_terry labels, got {temperature}")
    if not 0 <= noise < 0.5:
        raise UserError(
            f"expected preferences.noise of at least 0 and below 0.5, got {noise}: half the labels wrong say nothing"
        )
    gumbel_RM, turn_R = rng.gumbel(size=reward_RM.shape), rng.random(len(reward_RM))
    value_RM = reward_RM / temperature + gumbel_RM if label == "bradley_terry" else reward_RM
    order_RM = np.argsort(-value_RM, axis=1, kind="stable")
    if rounding_RM is None:
        rounding_RM = ROUNDING * np.abs(reward_RM)
    rounding_R = rounding_RM.max(1) if label == "argmax" else np.zeros(len(reward_RM))
    tied_R = (np.diff(np.sort(value_RM, axis=1), axis=1) <= rounding_R[:, None]).any(1)
    order_RM = np.where((turn_R < noise)[:, None], order_RM[:, ::-1], order_RM)
    rows = np.flatnonzero(~tied_R)
    return np.concatenate([rows[:, None], order_RM[rows]], axis=1)
