"""A LoRA in kohya's form has the strength with which it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from raysuite import cli
from raysuite.errors import UserError
from raysuite.families.export import to_kohya
from raysuite.families.pipeline import PipelinePolicy
from raysuite.stages.files import RunDirectory
from tests.families.test_pipelines import PROMPTS, plain_pipeline, plainly
from tests.families.test_start import theirs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

Opener = Callable[..., PipelinePolicy]
ALPHA = {"parameters": {"rank": 2, "alpha": 6.0}}
"""Three times as strong as a reader takes it to be who assumes that alpha is the rank."""


def stirred(policy: PipelinePolicy) -> PipelinePolicy:
    flat = policy.weights()
    policy.set_weights(flat + (0.1 * np.random.default_rng(0).standard_normal(flat.shape)).astype(np.float32))
    return policy


@pytest.mark.parametrize("pipeline", ["sd15", "sdxl", "flux"])
def test_diffusers_reads_it_back(pipeline: str, open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    policy = stirred(open_tiny(pipeline, **ALPHA))
    policy.save(tmp_path / "model", policy.weights())
    assert to_kohya(tmp_path / "model", tmp_path / "kohya.safetensors") == len(policy.trainable()) // 2
    trained = plainly(policy.pipeline, pipeline, PROMPTS[:1], steps=2)
    found = plain_pipeline(tiny(pipeline), pipeline)
    without = plainly(found, pipeline, PROMPTS[:1], steps=2)
    found.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    np.testing.assert_allclose(plainly(found, pipeline, PROMPTS[:1], steps=2), trained, atol=1e-4)
    assert np.abs(without - trained).max() > 1e-2


@pytest.mark.parametrize(
    "options", [{"rank_pattern": {"to_q": 4, "to_k": 3}, "told": False}, {"use_rslora": True}], ids=str
)
def test_a_lora_that_was_begun_from_a_file_has_its_own_strengths(
    options: dict[str, Any], open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    layers = ["to_k", "to_out.0", "to_q"]
    file = theirs(tiny("sdxl"), "sdxl", tmp_path, target_modules=layers, **options)
    policy = open_tiny("sdxl", parameters={"start": str(file)})
    policy.save(tmp_path / "model", policy.weights())
    to_kohya(tmp_path / "model", tmp_path / "kohya.safetensors")
    trained = plainly(policy.pipeline, "sdxl", PROMPTS[:1], steps=2)
    found = plain_pipeline(tiny("sdxl"), "sdxl")
    found.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    np.testing.assert_allclose(plainly(found, "sdxl", PROMPTS[:1], steps=2), trained, atol=1e-4)


def test_matrices_of_a_transformer(open_tiny: Opener, tmp_path: Path) -> None:
    """Up @ down x alpha / rank is what the layer adds."""
    policy = stirred(open_tiny("sd3", **ALPHA))
    policy.save(tmp_path / "model", policy.weights())
    to_kohya(tmp_path / "model", tmp_path / "kohya.safetensors")
    found = safetensors.torch.load_file(tmp_path / "kohya.safetensors")
    name = "transformer_blocks.0.attn.to_q"
    layer = policy.trained.network.get_submodule(name)
    up, down, alpha = (found[f"transformer.{name}.{of}"] for of in ("lora_up.weight", "lora_down.weight", "alpha"))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(x @ down.T @ up.T * alpha / len(down), expected, rtol=1e-4, atol=1e-5)
    assert float(alpha) == len(down) == 2  # whoever passes over alpha finds the same


def test_command(tiny_run: Callable[..., Any], open_tiny: Opener, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    RunDirectory(run).claim(tiny_run("sd3", "sft"), ["test"])
    out = tmp_path / "lora.safetensors"
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(out)])
    assert left.value.code == 2 and "which has none" in capsys.readouterr().err
    policy = open_tiny("sd3")
    (run / "checkpoints" / "000002" / "model").mkdir(parents=True)
    policy.save(run / "checkpoints" / "000002" / "model", policy.weights())
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(out)])
    assert left.value.code in (0, None) and out.exists()
    with pytest.raises(UserError, match=r"found none: a run with parameters\.kind=all"):
        to_kohya(tmp_path, out)
