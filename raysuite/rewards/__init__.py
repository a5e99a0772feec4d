"""Rewards, one file each, imported when a run names it. To add one: write the file, and give it a line in `REWARDS`.

A reward is a function `(images, prompts, metadata) -> scores`: images are uint8 (N, H, W, 3), prompts N sentences,
metadata N mappings (what the prompt file says besides the prompt), and scores N numbers, higher is better.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.errors import RewardHung, UserError

RewardFunction = Callable[[np.ndarray, Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float] | np.ndarray]

PAUSE_SECONDS = 1.0
"""Between a call that raised and its repetition."""

REWARDS = {
    "jpeg_compressibility": "raysuite.rewards.jpeg:jpeg_compressibility",
    "jpeg_incompressibility": "raysuite.rewards.jpeg:jpeg_incompressibility",
    "redness": "raysuite.rewards.redness:redness",
    "scenes": "raysuite.rewards.scenes:scenes",
    "scenes_strict": "raysuite.rewards.scenes:scenes_strict",
}


def resolve(name: str) -> RewardFunction:
    """The reward of a registered name, or the user's function at `package.module:function`.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = REWARDS.get(name, name).partition(":")
    if not attribute:
        raise UserError(f"expected a reward ({', '.join(REWARDS)}) or package.module:function, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the user's own module beside the command, as `python -m` finds it
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a user's module raises as it is imported
        raise UserError(f"expected a function at {name}, could not import it: {error}") from error
    if not callable(function):
        raise UserError(f"expected a function at {name}, got {type(function).__name__}")
    return function


@dataclass(frozen=True)
class Limit:
    """A reward's time, and the thread in which it is kept. Only a process that may be replaced can keep it: nothing ends
    a thread.
    """

    seconds: float
    thread: ThreadPool


def score(
    name: str,
    images_N: np.ndarray,
    prompts_N: Sequence[str],
    metadata_N: Sequence[Mapping[str, Any]],
    *,
    retries: int = 0,
    limit: Limit | None = None,
    told: Callable[[UserError], None] = lambda error: None,
) -> np.ndarray:
    """Scores of one reward, float64 (N,), checked.

    Args:
        name: of the reward.
        images_N: uint8 (N, H, W, 3).
        prompts_N: N sentences.
        metadata_N: N mappings.
        retries: how often it is asked again when it raises.
        limit: of one call; None lets it take what it takes.
        told: of every failure that was followed by another call.

    Raises:
        RewardHung: it took longer than the limit.
        UserError: it raised, returned another number of scores, or a score that is not a number.
    """
    function, prompts = resolve(name), _some(prompts_N)
    for attempt in range(retries + 1):
        # copies: what a reward does to its pictures in place must reach neither other rewards nor those that are kept
        arguments = (images_N.copy(), list(prompts_N), list(map(dict, metadata_N)))
        try:
            answer = limit.thread.apply_async(function, arguments).get(limit.seconds) if limit else function(*arguments)
            scores = np.asarray(answer, dtype=np.float64)
            break
        except multiprocessing.TimeoutError as error:
            assert limit is not None
            raise RewardHung(
                f"expected the reward {name} to answer within {limit.seconds:g} seconds, it did not; the prompts were "
                f"{prompts}: mend it, or give it more time (seconds in its entry of rewards)",
                retries,
            ) from error
        except Exception as error:  # whatever a user's function raises is reported with the prompts it was given
            times = f", {attempt + 1} times in a row" if attempt else ""
            failure = UserError(
                f"the reward {name} raised {type(error).__name__}: {error}; the prompts were {prompts}{times}"
            )
            if attempt == retries:
                raise failure from error
            told(failure)
            time.sleep(PAUSE_SECONDS)
    if scores.shape != (len(prompts_N),):
        raise UserError(
            f"expected {len(prompts_N)} scores from the reward {name}, got an array of shape {scores.shape}; the prompts were "
            f"{prompts}"
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        first = int(bad.argmax())
        raise UserError(
            f"expected finite scores from the reward {name}, got {scores[first]} for the prompt {prompts_N[first]!r}"
        )
    return scores


def _some(prompts_N: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(prompts_N))
    return ", ".join(repr(prompt) for prompt in distinct[:3]) + (", ..." if len(distinct) > 3 else "")
