"""Who asks a tensor for a number waits for the GPU: drawing and learning do not ask more often where there are more steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raysuite.config import load
from raysuite.families import open_policy
from raysuite.stages.learn import generator_of, gradient, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score

SMALL = {"rollouts.prompts": "2", "rollouts.prompts_per_block": "2", "rollouts.samples": "2", "learn.minibatches": "1"}


class Asked(TorchDispatchMode):
    """Counts `item`, and what comes to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_question_is_counted() -> None:
    with Asked() as asked:
        assert bool(torch.ones(1) > 0) and float(torch.ones(())) == 1.0
    assert asked.times == 2


@pytest.mark.parametrize("recipe", ["toy-ddpo", "scenes-ddpo", "scenes-flow-grpo"])
def test_steps_ask_for_nothing(recipe: str) -> None:
    counts = []
    for steps in (3, 5):
        config = load(recipe, {**SMALL, "sampler": f"{{steps: {steps}, noise: {{kind: ddim, level: 1.0}}}}"})
        policy = open_policy(config, torch.device("cpu"))
        (block,) = training_blocks(config, load_prompts(config.prompts), update=0)
        policy.predict(torch.zeros(4, *policy.latent_shape), policy.table.timesteps_K[:1].expand(4), block.prompt_of_N)
        with Asked() as drawing:
            drawn = sample(policy, block, config, version=0)
        rollouts = score(drawn, config)
        batch = transitions(rollouts, np.ones((block.size, steps)))
        with Asked() as learning:
            gradient(config.built_objective, policy, [(batch, generator_of(config, 0, 0, 0))], microbatch=4)
        counts.append((drawing.times, learning.times))
    assert counts[0] == counts[1]
