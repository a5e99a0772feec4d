"""What tests share: one thread, no network, and tiny random models built when first asked for."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Ray's processes step back behind all others (15): on a busy machine nothing would happen for minutes, and tests run into their guards
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from raysuite.config import TOYS, RunConfig, validate
from raysuite.families import Policy, open_policy

torch.set_num_threads(1)
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")  # no example fails for being slow

POLICIES = ("toy", "toy-flow", "epsilon-lora-1", "epsilon-all-3", "v_prediction-lora-3", "v_prediction-all-1")
"""Every family: the toys; prediction type, what is trained, guidance. Any two of the three meet in every combination."""


def build_tiny(directory: Path, prediction_type: str) -> None:
    """A random `StableDiffusionPipeline` of a few hundred kilobytes; the v one has zero terminal signal, as SD 2.1's fix."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from raysuite.worlds.scenes.bundled import BUNDLED

    pipeline = BUNDLED["scenes"].build(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.vae = AutoencoderKL(
            latent_channels=4,
            block_out_channels=(4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=2,
            sample_size=32,
        )
        pipeline.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=64,
            norm_num_groups=4,
        )
    zero_snr = prediction_type == "v_prediction"
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )
    pipeline.save_pretrained(directory, safe_serialization=True)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny pipelines by prediction type."""
    root = tmp_path_factory.mktemp("pipelines")
    for prediction_type in ("epsilon", "v_prediction"):
        build_tiny(root / prediction_type, prediction_type)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def run_config(pipelines: dict[str, Path]) -> Callable[..., RunConfig]:
    """Makes the configuration of a short run with one of `POLICIES`; keywords replace sections."""

    def make(policy: str = "toy", **changes: Any) -> RunConfig:
        tree: dict[str, Any] = {
            "updates": 1,
            "model": {"path": "toy"},
            "sampler": {"steps": 4},
            "prompts": {"training": "toy", "held_out": "toy"},
            "rewards": [{"name": "redness"}],
            "rollouts": {"prompts": 2, "samples": 3, "prompts_per_block": 2},
            "objective": {"name": "ddpo", "clip": 0.1, "advantage_clip": 5.0},
        }
        if policy in TOYS:
            tree["model"] = {"path": policy}
        else:
            prediction_type, kind, guidance = policy.split("-")
            tree["model"] = {"path": str(pipelines[prediction_type])}
            tree["prompts"] = {"training": "scenes", "held_out": "scenes"}
            tree["sampler"] = {"steps": 4, "guidance": float(guidance)}
            tree["parameters"] = {"kind": kind, **({"rank": 2} if kind == "lora" else {})}
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
        return validate(tree)

    return make


@pytest.fixture(scope="session")
def opened() -> dict[str, tuple[Policy, RunConfig, np.ndarray]]:
    """Policies that tests have opened so far, with their first weights."""
    return {}


@pytest.fixture
def policy_of(
    run_config: Callable[..., RunConfig], opened: dict[str, tuple[Policy, RunConfig, np.ndarray]]
) -> Callable[..., tuple[Policy, RunConfig]]:
    """Gives one of `POLICIES` as it came, with its configuration. The same words give the same object."""

    def give(policy: str = "toy", **changes: Any) -> tuple[Policy, RunConfig]:
        key = f"{policy} {changes}"
        if key not in opened:
            config = run_config(policy, **changes)
            made = open_policy(config, torch.device("cpu"))
            opened[key] = (made, config, made.weights())
        found, config, weights = opened[key]
        found.set_weights(weights)
        for parameter in found.trainable().values():
            parameter.grad = None
        return found, config

    return give


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `policy_name` runs on every one of `POLICIES`."""
    if "policy_name" in metafunc.fixturenames:
        metafunc.parametrize("policy_name", POLICIES)
