"""What a checkpoint of all weights holds besides what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from raysuite.config import RunConfig
from raysuite.families import open_policy
from raysuite.families.pipeline import PipelinePolicy


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_untouched_parts_are_saved_as_they_came_and_plain_diffusers_runs_them(
    precision: str, run_config: Callable[..., RunConfig], pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """In bfloat16 the text encoder was saved as it had been rounded: beside a U-Net in float32, which diffusers could not run."""
    config = run_config("epsilon-all-3", model={"precision": precision})
    policy = open_policy(config, torch.device("cpu"))
    assert isinstance(policy, PipelinePolicy)
    flat = policy.weights() + 0.01
    policy.save(tmp_path, flat)
    for file in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        came, saved = (safetensors.torch.load_file(place / file) for place in (pipelines["epsilon"], tmp_path))
        assert came.keys() == saved.keys()
        assert all(
            saved[name].dtype == tensor.dtype and torch.equal(saved[name], tensor) for name, tensor in came.items()
        )
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    picture = pipeline("one red circle", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3) and torch.isfinite(torch.from_numpy(picture)).all()
    assert policy.pipeline.text_encoder.dtype == getattr(torch, precision)  # the run goes on with what it had
