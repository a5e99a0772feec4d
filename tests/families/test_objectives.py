"""Every objective learns on one U-Net and on one flow transformer, from rollouts and from preference sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from raysuite.config import RunConfig
from raysuite.datasets.encode import encode_block
from raysuite.datasets.sources import open_source
from raysuite.families import encoder_digests, open_model, open_policy
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.stages import preference_set
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.train import Training
from raysuite.study.gradients import _gradients
from tests.stages.worker import stop_in_the_midst

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

PIPELINES = ("sdxl", "sd3")


def trained(config: RunConfig, directory: Path) -> tuple[np.ndarray, dict[str, dict[int, float]]]:
    """The weights after a run in this process, before which they were zeros or small, and its metrics."""
    RunDirectory(directory).claim(config, ["test"])
    policy = open_policy(config, torch.device("cpu"))
    before = policy.weights()
    Training(config, directory, policy, LocalCollector(policy, config), Accelerator(cpu=True)).train()
    assert not np.array_equal(policy.weights(), before)
    return policy.weights(), RunDirectory(directory).metrics()


def settings_beside(objective: str) -> dict[str, Any]:
    """What a run must have to learn by this objective."""
    return {"reference": {"refresh": 1}} if OBJECTIVES[objective].reference_is_sampler else {}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_updates(pipeline: str, objective: str, tiny_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The second one after a stop in its midst, too: the same bits."""
    config = tiny_run(pipeline, objective, **settings_beside(objective), checkpoints={"every": 1})
    weights, metrics = trained(config, tmp_path / "whole")
    stop_in_the_midst(config, tmp_path / "stopped", after=1)
    again, same_metrics = trained(config, tmp_path / "stopped")
    assert np.array_equal(again, weights) and same_metrics == metrics
    assert np.isfinite(weights).all()
    assert set(metrics["learn/loss"]) == {0, 1}
    assert all(value > 0 for value in metrics["learn/grad_norm"].values())
    if objective == "ddpo":
        assert metrics["learn/ratio"] == {0: 1.0, 1: 1.0}  # exactly, at the first of each update


def test_layers_that_no_gradient_reaches(tiny_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """What the last block of Qwen-Image makes of the text is read by nobody. Learned from, saved, resumed and studied all the same."""
    config = tiny_run("qwen_image", "ddpo", parameters={"rank": 2, "targets": ["to_q", "to_add_out"]})
    trained(config, tmp_path)
    policy = open_policy(config, torch.device("cpu"))
    training = Training(config, tmp_path, policy, LocalCollector(policy, config), Accelerator(cpu=True))
    training.resume()
    assert training.state.updates == 2
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    value = policy.predict(x, policy.schedule.timesteps_K[:1], ["a photo of a red cat"]).square().sum()
    value.backward(retain_graph=True)
    unread = [name for name, p in policy.trainable().items() if p.grad is None]
    assert unread and all("to_add_out" in name for name in unread)
    studied = _gradients(policy, value, None, retain=False)
    for name, p in policy.trainable().items():
        assert torch.equal(studied[name], torch.zeros_like(p) if p.grad is None else p.grad), name


def publish(directory: Path) -> Path:
    """Two pairs of pictures, as a .jsonl."""
    draw, lines = np.random.default_rng(0), []
    for number in range(2):
        for which in ("a", "b"):
            picture = draw.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(picture).save(directory / f"{number}{which}.png")
        row = {"prompt": f"a photo of {number} cats", "preferred": f"{number}a.png", "rejected": f"{number}b.png"}
        lines.append(json.dumps(row))
    (directory / "pairs.jsonl").write_text("\n".join(lines))
    return directory / "pairs.jsonl"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_published_set_is_encoded_and_learned_from(
    pipeline: str, tiny_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Its text states are those that the run's own encoders would give."""
    published = publish(tmp_path)
    config = tiny_run(pipeline, "diffusion_dpo", preferences={"source": str(tmp_path / "set")})
    encoder = open_model(config.model, torch.device("cpu"))
    source = open_source([str(published)], layout=None, split="train")
    identity = {
        "model": config.model.path,
        "encoders": encoder_digests(config.model),
        "latent_shape": encoder.latent_shape,
        "members": 2,
        "steps": None,
        "sampler": None,
        "source": source.identity(),
    }
    preference_set.claim(tmp_path / "set", identity, ["test"])
    for part in source.parts(2):
        encode_block(encoder, source, part, tmp_path / "set")
    preference_set.summarise(tmp_path / "set")
    states = preference_set.PreferenceSet(tmp_path / "set").texts([0, 1])
    own = open_policy(config, torch.device("cpu")).text_states(["a photo of 0 cats", "a photo of 1 cats"])
    assert states and states.keys() < {question for of in own.values() for question in of}  # guided questions besides
    trained(config, tmp_path / "run")
