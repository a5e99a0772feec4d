"""A network that is spread over two learners learns what a whole one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from raysuite.config import RunConfig, validate
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.stages.checkpoint import EMA, completed
from raysuite.stages.files import RunDirectory
from tests.stages.test_preferences import made
from tests.stages.worker import stop_with_two, train_alone, train_with_two

SMALL: dict[str, Any] = {
    "updates": 2,
    "prompts": {"training": "toy", "held_out": "toy"},
    # one learner has rankings alone where the other has ties alone, and goes through the network for company
    "rewards": [{"name": "tests.cluster.rewards:blind_on_left"}],
    "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 1},
    "evaluation": {"prompts": 1, "samples": 1, "final_samples": 1, "every": 10, "pictures": 0},
    "checkpoints": {"every": 1, "keep": 3},
    "cluster": {"workers": 2, "shard": True},
}
SMOOTH = {"epsilon": 1e-2, "learning_rate": 1e-2}
"""Or AdamW would blow up the rounding of gradients near zero."""
RUNS: dict[str, dict[str, Any]] = {
    # a unit is a pair of whole trajectories: more points than a microbatch, with a reference that follows the policy
    "trajectory_dpo": {
        "objective": {"name": "trajectory_dpo", "strength": 5.0, "discount": 0.9},
        "reference": {"refresh": 1},
        "learn": SMOOTH | {"microbatch": 3, "epochs": 2},
    },
    "diffusion_dpo": {
        "objective": {"name": "diffusion_dpo", "beta": 50.0, "draws": 2},
        "learn": SMOOTH | {"microbatch": 4},
    },
    "ddpo": {"learn": SMOOTH | {"microbatch": 8, "ema": 0.5}, "reward_scale": "running"},
}


def apart(one: np.ndarray, other: np.ndarray, came: np.ndarray) -> float:
    """Distance between two results of training as a share of the way there: sums in another order round differently."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other - came))


@pytest.mark.slow
def test_shards_learn_what_a_whole_network_does(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    base = run_config("epsilon-all-3", **SMALL).canonical()
    configs = {name: validate({**base, **changes}) for name, changes in RUNS.items()}
    held_out = made(
        tmp_path / "held_out",
        validate({**base, **RUNS["diffusion_dpo"], "preferences": {"choose": "all"}}),
        trajectories=False,
    )
    configs["diffusion_dpo"] = validate(
        {**base, **RUNS["diffusion_dpo"], "preferences": {"held_out": str(held_out.directory)}}
    )
    for name, config in configs.items():
        RunDirectory(tmp_path / name).claim(config, ["test"])
    train_with_two(*(tmp_path / name for name in configs))
    for name, config in configs.items():
        alone = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": 1, "shard": False})})
        whole = train_alone(alone, tmp_path / f"{name}-whole")
        zero, one = (np.load(tmp_path / name / f"weights{rank}.npy") for rank in range(2))
        expected = whole.policy.weights()
        came = open_policy(alone, torch.device("cpu")).weights()
        assert np.array_equal(zero, one) and np.abs(expected - came).max() > 1e-4
        assert apart(zero, expected, came) < 1e-3, name
        metrics = [RunDirectory(tmp_path / run).metrics() for run in (name, f"{name}-whole")]
        judged = ["evaluation/preferences/loss"] if name == "diffusion_dpo" else []
        for metric in ("learn/loss", "learn/grad_norm", "train/reward", *judged):
            sharded, plain = (list(found[metric].values()) for found in metrics)
            np.testing.assert_allclose(sharded, plain, rtol=1e-3, atol=1e-6, err_msg=f"{name} {metric}")
        ties = list(metrics[0].get("train/ties", {}).values())
        assert ties == ([] if name == "ddpo" else [1.0, 1.0])

    # what is written is whole: any diffusers loads it, and one learner or two go on from it
    sharded, plain = (tmp_path / run / "checkpoints" / "000002" for run in ("ddpo", "ddpo-whole"))
    StableDiffusionPipeline.from_pretrained(sharded / "model", safety_checker=None)
    moments = [safetensors.torch.load_file(path / "optimizer.safetensors") for path in (sharded, plain)]
    assert {k: v.shape for k, v in moments[0].items()} == {k: v.shape for k, v in moments[1].items()}
    averages = [
        load_file(path / EMA / "unet" / "diffusion_pytorch_model.safetensors", device="cpu")
        for path in (sharded, plain)
    ]
    for name, average in averages[1].items():
        torch.testing.assert_close(averages[0][name], average, rtol=1e-3, atol=1e-5)
    shutil.rmtree(tmp_path / "ddpo" / "checkpoints" / "000002")
    provenance = json.loads((tmp_path / "ddpo" / "provenance.json").read_text())
    resumed = train_alone(alone, tmp_path / "ddpo")
    assert json.loads((tmp_path / "ddpo" / "provenance.json").read_text()) != provenance
    assert apart(resumed.policy.weights(), expected, came) < 1e-3

    # the first learner, stopped between the two steps of the second update, writes what the first update left
    stopped = tmp_path / "stopped"
    config = configs["trajectory_dpo"]
    config = config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"every": 10})})
    RunDirectory(stopped).claim(config, ["test"])
    stop_with_two(stopped, step=3)
    assert [path.name for path in completed(stopped / "checkpoints")] == ["000001"]
    train_with_two(stopped)
    assert np.array_equal(np.load(stopped / "weights0.npy"), np.load(tmp_path / "trajectory_dpo" / "weights0.npy"))


def test_what_cannot_be_spread_is_refused(run_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"parameters.kind=all and several cluster.workers"):
        run_config("epsilon-lora-1", **SMALL)
    with pytest.raises(UserError, match="one worker has nobody to share with"):
        run_config("epsilon-all-3", **SMALL | {"cluster": {"workers": 1, "shard": True}})
