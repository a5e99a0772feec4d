"""A flow transformer through real Ray processes, whose prompts were encoded beforehand, and which are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
import safetensors.numpy

from raysuite.cluster import launch
from raysuite.config import RunConfig
from raysuite.stages.files import RunDirectory
from tests.processes import below, end, until
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]


def test_a_killed_run_goes_on_without_encoders(tiny_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The same bits as of an undisturbed run in one process that has its encoders."""
    changes = {"updates": 3, "checkpoints": {"every": 1}, "evaluation": {"prompts": 1, "final_samples": 1, "every": 3}}
    prompts = {"training": "toy", "held_out": "toy"}  # three
    config = tiny_run("sd3", "ddpo", **changes, prompts=prompts, cluster={"encode_once": True, "threads": 1})
    alone, disturbed, without = tmp_path / "alone", tmp_path / "disturbed", tmp_path / "without"
    train_alone(config, alone)
    lonely = config.model_copy(update={"cluster": config.cluster.model_copy(update={"actors": 0})})
    assert not launch.claim(lonely, without, ["test"])
    launch.train(lonely, without)  # encodes for itself, and then draws for itself
    assert not ray.is_initialized()
    (tmp_path / "run.yaml").write_text(json.dumps(config.canonical()))  # JSON is YAML
    command = [sys.executable, "-m", "raysuite.cli", "train", str(tmp_path / "run.yaml"), "--out", str(disturbed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as begun:
        until((disturbed / "checkpoints" / "000001" / "state.json").exists, "the first checkpoint")
        started = below(begun)
        begun.kill()
        end(started)
    known = {file.name: file.stat().st_mtime_ns for file in (disturbed / "texts").iterdir()}
    assert "complete.json" in known and len(known) == 1 + 2 * 4  # guided and not: three prompts and the empty one
    try:
        assert not launch.claim(config, disturbed, ["test"])
        launch.train(config, disturbed)
    finally:
        ray.shutdown()
    assert {file.name: file.stat().st_mtime_ns for file in (disturbed / "texts").iterdir()} == known
    assert {file.name for file in (without / "texts").iterdir()} == known.keys()
    weights = [
        safetensors.numpy.load_file(run / "checkpoints" / "000003" / "model" / "pytorch_lora_weights.safetensors")
        for run in (alone, disturbed, without)
    ]
    for found in weights[1:]:
        assert found.keys() == weights[0].keys()
        assert all(np.array_equal(found[name], weights[0][name]) for name in found)
    for run in (disturbed, without):
        assert RunDirectory(run).metrics() == RunDirectory(alone).metrics()
