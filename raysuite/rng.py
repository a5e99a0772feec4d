"""Every random number is a function of integer coordinates, never of which process drew it or when.

A generator is made from (run seed, stage, update, prompt, sample). (Reports resample from a fixed seed.) Draws
happen on the CPU and are moved to the device, so that one set of coordinates means the same noise anywhere. Torch's generator on
the CPU reads 32 bits of its seed: among n draws some n^2 / 2^33 pairs begin with the same numbers (two in a run of 500 updates of 128
pictures), whatever their coordinates.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np
import torch


@unique
class Stage(IntEnum):
    """What a draw is for. Numbers are part of every seed: append, never renumber."""

    PROMPTS = 1
    INITIAL_NOISE = 2
    STEP_NOISE = 3
    MINIBATCHES = 4
    OBJECTIVE = 5
    EVALUATION_INITIAL_NOISE = 6
    EVALUATION_STEP_NOISE = 7
    BOOTSTRAP = 8
    PARAMETERS = 9
    WORLD = 10
    EVALUATION_PROMPTS = 11
    PREFERENCES = 12
    PREFERENCE_ORDER = 13
    SKETCH = 14
    SWEEP = 15
    WINDOW = 16
    PROMPT_DRAW = 17
    EVALUATION_PROMPT_DRAW = 18
    IN_CONTEXT = 19
    IN_CONTEXT_NOISE = 20
    IN_CONTEXT_POLICY = 21
    IN_CONTEXT_JUDGE = 22
    IN_CONTEXT_LANGUAGE = 23
    WRITER = 24
    WRITER_TRAINING = 25
    EVALUATION_PREFERENCES = 26


def numpy_generator(
    *, seed: int, stage: Stage, update: int = 0, prompt: int = 0, sample: int = 0
) -> np.random.Generator:
    """The NumPy generator of these coordinates (each a non-negative integer)."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(stage), update, prompt, sample]))


def torch_generator(*, seed: int, stage: Stage, update: int = 0, prompt: int = 0, sample: int = 0) -> torch.Generator:
    """The CPU generator of these coordinates (each a non-negative integer)."""
    state = np.random.SeedSequence([seed, int(stage), update, prompt, sample]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # torch takes seeds below 2**63
