"""Rewards, one file each. To add one: write the file, and give it a line in `REWARDS`.

A reward is a function `(images, prompts, metadata) -> scores`: images are uint8 (N, H, W, 3), prompts N sentences,
metadata N mappings (what the prompt file says besides the prompt), and scores N numbers, higher is better.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility
from raysuite.rewards.redness import redness
from raysuite.rewards.scenes import scenes, scenes_strict

RewardFunction = Callable[[np.ndarray, Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float] | np.ndarray]

REWARDS: dict[str, RewardFunction] = {
    "jpeg_compressibility": jpeg_compressibility,
    "jpeg_incompressibility": jpeg_incompressibility,
    "redness": redness,
    "scenes": scenes,
    "scenes_strict": scenes_strict,
}


def resolve(name: str) -> RewardFunction:
    """The reward of a registered name, or the user's function at `package.module:function`.

    Raises:
        UserError: there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, attribute = name.partition(":")
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


def score(
    name: str, images_N: np.ndarray, prompts_N: Sequence[str], metadata_N: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Scores of one reward, float64 (N,), checked.

    Raises:
        UserError: the reward raised, returned another number of scores, or a score that is not a number.
    """
    function = resolve(name)
    try:
        scores = np.asarray(function(images_N, list(prompts_N), list(metadata_N)), dtype=np.float64)
    except Exception as error:  # whatever a user's function raises is reported with the prompts it was given
        raise UserError(
            f"the reward {name} raised {type(error).__name__}: {error}; the prompts were {_some(prompts_N)}"
        ) from error
    if scores.shape != (len(prompts_N),):
        raise UserError(
            f"expected {len(prompts_N)} scores from the reward {name}, got an array of shape {scores.shape}; the prompts were "
            f"{_some(prompts_N)}"
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
