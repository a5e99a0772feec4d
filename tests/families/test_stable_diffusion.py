"""The shorter road of `StableDiffusionPipeline` leads where its own call does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raysuite.config import Model, Parameters, Sampler
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.stable_diffusion import StableDiffusionPolicy

PROMPTS = ("a photo of a red cat", "a drawing of a blue house")


@pytest.mark.parametrize("negative", [None, "a small apple"])
def test_both_roads_agree(negative: str | None, tiny: Callable[[str], Path]) -> None:
    sampler = Sampler(steps=4, guidance=3.0, negative_prompt=negative)
    about = {"model": Model(path=str(tiny("sd15")), size=32), "parameters": Parameters(rank=2), "seed": 0}
    short, driven = (
        cls(sampler=sampler, device=torch.device("cpu"), **about) for cls in (StableDiffusionPolicy, PipelinePolicy)
    )
    assert short.latent_shape == driven.latent_shape and short.image_size == driven.image_size
    for name in ("timesteps_K", "alpha_K1", "sigma_K1", "noise_K", "direction_K"):
        assert torch.equal(getattr(short.schedule, name), getattr(driven.schedule, name)), name
    np.testing.assert_array_equal(short.weights(), driven.weights())
    x = torch.randn(2, *short.latent_shape, generator=torch.Generator().manual_seed(0))
    for t in (torch.tensor([501, 501]), torch.tensor([901, 1])):
        for guided in (True, False):
            with torch.no_grad():
                one, other = (policy.predict(x, t, PROMPTS, guided=guided) for policy in (short, driven))
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(short.decode(x), driven.decode(x))
