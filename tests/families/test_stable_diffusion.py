"""The shorter road of `StableDiffusionPipeline` leads where its own call does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel

from raysuite.config import Model, Parameters, Sampler
from raysuite.errors import UserError
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.stable_diffusion import StableDiffusionPolicy
from tests.families.test_pipelines import PROMPTS, plain_pipeline


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


def opened(path: Path, arguments: dict[str, Any]) -> StableDiffusionPolicy:
    return StableDiffusionPolicy(
        model=Model(path=str(path), size=32, arguments=arguments),
        sampler=Sampler(steps=4, guidance=3.0),
        parameters=Parameters(rank=2),
        seed=0,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("arguments", [{"clip_skip": 1}, {"guidance_rescale": 0.7}], ids=str)
def test_arguments_of_the_call_are_obeyed(
    arguments: dict[str, Any], tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are what the plain pipeline hands to its scheduler with them, and not what it does without."""
    # clip_skip looks for what transformers 5 has no more: see the test below
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda itself: itself), raising=False)
    plain = plain_pipeline(tiny("sd15"), "sd15")
    steps, step = [], plain.scheduler.step

    def watched(*given: Any, **options: Any) -> Any:
        steps.append(given)
        return step(*given, **options)

    plain.scheduler.step = watched
    seeded = torch.Generator().manual_seed(0)  # what these latents are decides how much an argument changes
    asked = {
        "height": 32,
        "width": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "output_type": "np",
        **arguments,
    }
    plain(list(PROMPTS), generator=seeded, **asked)
    policy, without = opened(tiny("sd15"), arguments), opened(tiny("sd15"), {})
    policy.text_states(PROMPTS)
    policy.driver.encoders = False  # as in a process that reads what was encoded once: nothing is missing
    for output, t, x in steps:
        with torch.no_grad():
            own, other = (each.predict(x, t.expand(2), PROMPTS) for each in (policy, without))
        torch.testing.assert_close(own, output, rtol=1e-4, atol=1e-4)
        assert (other - output).abs().max() > 1e-3


def test_an_argument_that_diffusers_stumbles_over_is_a_sentence(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(
        UserError, match=r"settings that StableDiffusionPipeline accepts, got .*clip_skip.* 'text_model'"
    ):
        opened(tiny("sd15"), {"clip_skip": 1})
