"""What the comparisons with plain pipelines have to catch: each fault, made on purpose, moves pictures or tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raysuite.families.driver import Driver
from raysuite.families.pipeline import PipelinePolicy
from tests.families.test_pipelines import PROMPTS, draw, latents, plain_pipeline, plainly

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

FORMS = ("sd3", "flux2_klein", "z_image")
"""Latents as a picture and packed; guidance in one call and in two; an output that is negated."""
GUIDANCE = 3.0
"""Of policies in these tests."""


@pytest.mark.parametrize("pipeline", FORMS)
@pytest.mark.parametrize("wrong", ["sign", "time", "prompts", "branches"])
def test_another_picture(pipeline: str, wrong: str, policy: PipelinePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other sign, times a thousandfold too small, prompts in the other order, guidance towards the negative prompt."""
    x, step = latents(policy), Driver.step
    right = draw(policy, x, PROMPTS)

    def spoilt(driver: Driver, network: Any, x_N: Tensor, t_N: Tensor, prompts_N: Any, guidance: float) -> Tensor:
        if wrong == "time":
            t_N = t_N / 1000
        output = step(driver, network, x_N, t_N, prompts_N[::-1] if wrong == "prompts" else prompts_N, guidance)
        if wrong == "branches":
            towards = step(driver, network, x_N, t_N, prompts_N, 1.0)
            away = (guidance * towards - output) / (guidance - 1)
            return towards + guidance * (away - towards)
        return -output if wrong == "sign" else output

    monkeypatch.setattr(Driver, "step", spoilt)
    assert policy.guidance == GUIDANCE
    assert np.abs(draw(policy, x, PROMPTS) - right).max() > 1


@pytest.mark.parametrize("pipeline", ["sd3", "qwen_image", "flux2"])
def test_latents_that_are_not_shifted(pipeline: str, policy: PipelinePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a number, by one for each channel, by the statistics of patches."""
    pictures = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    right = policy.driver.finish(policy.encode(pictures))
    mean, std = policy._channels()
    monkeypatch.setattr(policy, "_channels", lambda: (torch.zeros_like(mean), std))
    assert np.abs(policy.driver.finish(policy.encode(pictures)) - right).max() > 1e-3


def test_a_table_that_is_shifted_once(open_tiny: Callable[..., PipelinePolicy]) -> None:
    """Stable Diffusion 3's is shifted as it is made, and again as it is spaced."""
    policy = open_tiny("sd3", sampler={"steps": 5})
    once = policy.driver.asked_for(5)
    once.set_timesteps(sigmas=np.linspace(1.0, 1 / 5, 5))
    assert float((once.sigmas - policy.schedule.sigma_K1).abs().max()) > 0.1


@pytest.mark.parametrize("pipeline", ["sdxl", "sd3"])
def test_a_lora_of_twice_its_alpha(
    pipeline: str, policy: PipelinePolicy, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    flat = policy.weights()
    policy.set_weights(flat + (0.3 * np.random.default_rng(0).standard_normal(flat.shape)).astype(np.float32))
    policy.save(tmp_path, policy.weights())
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safetensors.safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
    (key,) = (key for key in metadata if key.startswith("lora_adapter_metadata"))
    told = json.loads(metadata[key])
    (alpha,) = (name for name in told if name.endswith("lora_alpha"))
    metadata[key] = json.dumps({**told, alpha: 2 * told[alpha]})
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata)
    loaded = plain_pipeline(tiny(pipeline), pipeline)
    loaded.load_lora_weights(tmp_path)
    pictures = [np.asarray(plainly(found, pipeline, PROMPTS[:1], steps=2)) for found in (policy.pipeline, loaded)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1 / 255


def test_no_watermark_is_put_on_pictures(
    open_tiny: Callable[..., PipelinePolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package for it is installed, which a name that is not there would show."""
    there = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl.is_invisible_watermark_available"
    monkeypatch.setattr(there, lambda: True)
    assert open_tiny("sdxl").pipeline.watermark is open_tiny("sdxl", weights=False).pipeline.watermark is None
