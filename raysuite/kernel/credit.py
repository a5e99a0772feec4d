"""Rewards -> credit of every step -> advantages.

Credit is reward divided over the steps of a trajectory: `credit_NK` rows sum to the final reward. Advantages are what
an objective multiplies log-densities with. Everything is float64 NumPy: rewards are few and precious.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysuite.errors import UserError

EPSILON = 1e-8
"""Added to standard deviations, in units of reward: a group of equal rewards gets advantage 0, not NaN."""
ROUNDING = 1e-6
"""Rewards whose standard deviation is at most this share of the largest of them are equal: eight times what float32 rounds by, and
far below any difference that a reward means. Divided by, it would make full advantages of rounding."""


def terminal_credit(reward_N: np.ndarray, *, steps: int) -> np.ndarray:
    """All credit on the last step, (N, K): the bandit view of DDPO."""
    credit_NK = np.zeros((len(reward_N), steps))
    credit_NK[:, -1] = reward_N
    return credit_NK


def preview_credit(preview_NJ: np.ndarray, *, at: Sequence[int], steps: int) -> np.ndarray:
    """Credit from scored previews, (N, K).

    The improvement from one preview to the next is credited to the step that ends the stretch between them, and the
    value of the first preview to the step that it follows: a step's return must not be lowered by a part of a preview that
    the step itself brought about. Each row sums to the last preview, which is the final reward.

    Args:
        preview_NJ: (N, J) rewards of the image predicted after `at[j]` steps.
        at: J ascending numbers of steps, the last one `steps`.
        steps: K.
    """
    if list(at) != sorted(set(at)) or at[0] < 1 or at[-1] != steps:
        raise UserError(
            f"expected previews after ascending numbers of steps from 1 to {steps}, ending there, got {list(at)}"
        )
    if preview_NJ.shape[1] != len(at):
        raise UserError(f"expected {len(at)} previews a sample, got {preview_NJ.shape[1]}")
    credit_NK = np.zeros((len(preview_NJ), steps))
    credit_NK[:, np.array(at) - 1] = np.diff(preview_NJ, axis=1, prepend=0.0)
    return credit_NK


def returns_to_go(credit_NK: np.ndarray, *, decay: float) -> np.ndarray:
    """What step k is answerable for: sum over j >= k of decay^(j - k) credit_j, (N, K).

    decay = 1 gives the reward minus what had been earned before k: with previews, each preview is a baseline for the
    steps after it, and the policy gradient stays unbiased. decay = 0 pays only the step that ends a stretch (biased, less
    noisy). Between them it is generalised advantage estimation with the previews as the value function
    (Schulman et al., 2016, equation 16, discount 1).
    """
    out = np.zeros_like(credit_NK)
    running = np.zeros(len(credit_NK))
    for k in range(credit_NK.shape[1] - 1, -1, -1):
        running = credit_NK[:, k] + decay * running
        out[:, k] = running
    return out


def discount_weights(steps: int, *, gamma: float) -> np.ndarray:
    """Weights gamma^k over the steps counted from pure noise, scaled to mean 1, (K,).

    gamma = 1 weighs all steps alike; gamma < 1 favours the first steps, where the composition is decided.
    Source: Yang, Chen and Zhou, "A Dense Reward View on Aligning Text-to-Image Diffusion with Preference", 2024.
    """
    if not 0 < gamma <= 1:
        raise UserError(f"expected a discount above 0 and at most 1, got {gamma}: set credit.discount in that range")
    weights_K = gamma ** np.arange(steps, dtype=float)
    return weights_K / weights_K.mean()


def has_spread(value: np.ndarray, deviation: float, rounding_N: np.ndarray | None = None) -> bool:
    """Whether values with this standard deviation differ by more than rounding.

    Args:
        value: of any shape.
        deviation: theirs.
        rounding_N: what each may be off by, where it was computed from larger numbers (`RewardScale.rounding`); by default `ROUNDING`
            times its size.
    """
    limit = ROUNDING * float(np.abs(value).max()) if rounding_N is None else float(rounding_N.max())
    return deviation > limit


def global_advantages(return_NK: np.ndarray, rounding_N: np.ndarray | None = None) -> np.ndarray:
    """Returns minus their mean over the batch at each step, over one pooled standard deviation; 0 where they are equal but for
    rounding, as in `has_spread`.
    """
    centred = return_NK - return_NK.mean(axis=0)
    deviation = np.sqrt(np.mean(centred**2))
    return centred / (deviation + EPSILON) if has_spread(return_NK, deviation, rounding_N) else np.zeros_like(centred)


def group_advantages(
    return_NK: np.ndarray,
    prompts_N: Sequence[str],
    rounding_N: np.ndarray | None = None,
    *,
    deviation: Literal["group", "batch"] = "group",
) -> np.ndarray:
    """The same within each prompt's group: group-normalised credit as in GRPO. Each group sums to 0.

    With `deviation: batch` each group is centred, and all are divided by the standard deviation of the whole batch: a prompt on
    which samples hardly differ then counts for little, where its own deviation makes it count like any other.

    Source: Shao et al., "DeepSeekMath", 2024, section 4.1.2, for the first; Liu et al., "Flow-GRPO", 2025, released code
    (`global_std`, its default, and that of DiffusionNFT's), for the second. That code adds 1e-4 to the deviation, where
    this adds 1e-8.
    """
    advantage_NK = np.empty_like(return_NK)
    prompts = np.asarray(prompts_N)
    of_batch = np.sqrt(np.mean((return_NK - return_NK.mean(axis=0)) ** 2))
    for prompt in dict.fromkeys(prompts_N):
        rows = prompts == prompt
        advantage_NK[rows] = global_advantages(return_NK[rows], None if rounding_N is None else rounding_N[rows])
        if deviation == "batch" and advantage_NK[rows].any():
            group_NK = return_NK[rows]
            advantage_NK[rows] = (group_NK - group_NK.mean(axis=0)) / (of_batch + EPSILON)
    return advantage_NK


def groups_without_spread(
    reward_N: np.ndarray, prompts_N: Sequence[str] | Sequence[int], rounding_N: np.ndarray | None = None
) -> tuple[int, int]:
    """How many prompts' samples all have the same reward, but for rounding, and of how many prompts that have several."""
    prompts = np.asarray(prompts_N)
    groups = [rows for prompt in dict.fromkeys(prompts_N) if (rows := prompts == prompt).sum() > 1]
    alike = [
        not has_spread(reward_N[rows], float(reward_N[rows].std()), None if rounding_N is None else rounding_N[rows])
        for rows in groups
    ]
    return sum(alike), len(groups)


class RewardScale:
    """Mean and standard deviation of each term of a sum of rewards, over all that it was shown: puts terms on one scale.

    Statistics of several batches are put together as if they were one (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", 1979, equation 2.1).
    """

    def __init__(self, known: Mapping[str, Sequence[float]] | None = None) -> None:
        """Begin with what `state` gave, or with nothing."""
        self._known = {name: tuple(entry) for name, entry in (known or {}).items()}

    def show(self, scores: Mapping[str, np.ndarray]) -> None:
        """Take a batch of every term's scores (N,) in."""
        for name, score_N in scores.items():
            n, mean, squares = len(score_N), float(score_N.mean()), float(((score_N - score_N.mean()) ** 2).sum())
            if name in self._known:
                m, before, squares_before = self._known[name]
                squares += squares_before + (mean - before) ** 2 * n * m / (n + m)
                mean = before + (mean - before) * n / (n + m)
                n += int(m)
            self._known[name] = (n, mean, squares)

    def total(self, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
        """The weighted sum (N,) of scores less their mean, over their deviation. A term that never differed adds nothing."""
        total_N = np.zeros(len(next(iter(scores.values()))))
        for name, mean, deviation in self._differing(scores, weights):
            total_N += weights[name] * (scores[name] - mean) / deviation
        return total_N

    def rounding(self, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
        """What `total` may be off by (N,) as scores are rounded: in units of the total a score's last digit is the larger the farther
        from 0 the scores lie and the less they differ.
        """
        rounding_N = np.zeros(len(next(iter(scores.values()))))
        for name, _, deviation in self._differing(scores, weights):
            rounding_N += abs(weights[name]) * ROUNDING * np.abs(scores[name]) / deviation
        return rounding_N

    def _differing(
        self, scores: Mapping[str, np.ndarray], weights: Mapping[str, float]
    ) -> Iterator[tuple[str, float, float]]:
        """Name, mean and deviation of every term that ever differed."""
        for name in weights:
            n, mean, squares = self._known[name]
            deviation = float(np.sqrt(squares / n))
            if has_spread(np.append(scores[name], mean), deviation):
                yield name, mean, deviation

    def state(self) -> dict[str, list[float]]:
        """By term: count, mean, and sum of squared distances from it."""
        return {name: list(entry) for name, entry in self._known.items()}


@dataclass
class PromptTracker:
    """Running mean and standard deviation of each prompt's rewards, as DDPO normalises them.

    Source: Black et al., "Training Diffusion Models with Reinforcement Learning", 2024, and their released code: new rewards
    enter a prompt's buffer before its statistics are read, and a prompt with fewer than `minimum` rewards uses the batch's
    statistics. That code adds 1e-6 to the deviation, where this adds 1e-8.
    """

    size: int
    """Rewards remembered per prompt."""
    minimum: int
    """Rewards needed before a prompt's own statistics count."""
    buffers: dict[str, deque[float]]

    @classmethod
    def empty(cls, *, size: int, minimum: int) -> PromptTracker:
        """A tracker that has seen nothing."""
        return cls(size=size, minimum=minimum, buffers={})

    def advantages(
        self, reward_N: np.ndarray, prompts_N: Sequence[str], rounding_N: np.ndarray | None = None
    ) -> np.ndarray:
        """Take the rewards in and return the normalised ones, (N,), 0 where they are equal but for rounding, as in `has_spread`."""
        for prompt, reward in zip(prompts_N, reward_N, strict=True):
            self.buffers.setdefault(prompt, deque(maxlen=self.size)).append(float(reward))
        advantage_N = np.empty(len(reward_N))
        for n, (prompt, reward) in enumerate(zip(prompts_N, reward_N, strict=True)):
            buffer = self.buffers[prompt]
            known = np.fromiter(buffer, float) if len(buffer) >= self.minimum else reward_N
            deviation, own = known.std(), None if rounding_N is None else rounding_N[n : n + 1]
            differ = has_spread(known, deviation, own)
            advantage_N[n] = (reward - known.mean()) / (deviation + EPSILON) if differ else 0.0
        return advantage_N

    def state(self) -> dict[str, list[float]]:
        """The buffers as plain lists, for a checkpoint."""
        return {prompt: list(buffer) for prompt, buffer in self.buffers.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """The inverse of `state`."""
        self.buffers = {prompt: deque(values, maxlen=self.size) for prompt, values in state.items()}
