"""Pipelines through real Ray processes, which are killed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import safetensors.numpy

from raysuite.cli import main
from raysuite.cluster import launch, session
from raysuite.config import RunConfig
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.stages.files import RunDirectory
from raysuite.stages.preference_set import PreferenceSet
from tests.families.test_objectives import PIPELINES, publish, settings_beside
from tests.processes import below, called, end, until
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]


@pytest.mark.exhaustive
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
    # three prompts and the empty one: guided and not, and a sequence and a pooled vector of each
    assert "complete.json" in known and len(known) == 1 + 2 * 4 + 2 * 4
    try:
        assert not launch.claim(config, disturbed, ["test"])
        launch.train(config, disturbed)
    finally:
        ray.shutdown()
    assert {file.name: file.stat().st_mtime_ns for file in (disturbed / "texts").iterdir()} == known
    assert {file.name for file in (without / "texts").iterdir()} == known.keys()
    for run in (disturbed, without):
        equal(run, alone, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("pipeline", ["sdxl", "sd3"])
def test_a_published_set_by_commands(
    pipeline: str, tiny: Callable[[str], Path], tiny_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """`raysuite encode` in Ray Data, then `raysuite train` in Ray Train: what the set says is learned, and the first loss is log 2.

    The learner has no text encoders: the set is encoded with the settings of the run's model.
    """
    pairs, run = tmp_path / "set", tmp_path / "run"
    few, once = {"training": "toy", "held_out": "toy"}, {"threads": 1, "encode_once": True}
    config = tiny_run(pipeline, "diffusion_dpo", preferences={"source": str(pairs)}, prompts=few, cluster=once)
    (tmp_path / "run.yaml").write_text(json.dumps(config.canonical()))
    settings = ["model.size=[32, 32]", f"model.arguments={json.dumps(config.model.arguments)}"]
    told = [word for setting in settings for word in ("--set", setting)]
    asked = ["--model", str(tiny(pipeline)), *told, "--out", str(pairs)]
    try:
        raysuite("encode", str(publish(tmp_path)), *asked)
        raysuite("train", str(tmp_path / "run.yaml"), "--out", str(run))
    finally:
        ray.shutdown()
    assert len(PreferenceSet(pairs)) == 2
    metrics = RunDirectory(run).metrics()
    assert (
        metrics["learn/loss"][0] == pytest.approx(math.log(2)) and metrics["learn/loss"][1] != metrics["learn/loss"][0]
    )
    assert not list((run / "rollouts").glob("*"))  # nothing was drawn to learn from


def raysuite(*command: str) -> None:
    """A command, to its end, in this process."""
    with pytest.raises(SystemExit) as left:
        main(command)
    assert not left.value.code


def equal(one: Path, other: Path, updates: int) -> None:
    """Two runs of a LoRA are the same to the bit: what they trained, and every number on the way."""
    for file in ("model/pytorch_lora_weights.safetensors", "optimizer.safetensors"):
        found, wanted = (
            safetensors.numpy.load_file(run / "checkpoints" / f"{updates:06d}" / file) for run in (one, other)
        )
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in found), file
    assert RunDirectory(one).metrics() == RunDirectory(other).metrics()


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where faults of the reward `disturbed` are named, on one cluster for all tests that take it."""
    directory = tmp_path_factory.mktemp("chaos")
    os.environ["CHAOS"] = str(directory)
    session.connect()
    yield directory
    ray.shutdown()
    del os.environ["CHAOS"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_learner_is_killed_in_its_second_update(
    pipeline: str, objective: str, tiny_run: Callable[..., RunConfig], chaos: Path, tmp_path: Path
) -> None:
    """Another goes on from the checkpoint of the first: the bits of an undisturbed run in one process."""
    config = tiny_run(
        pipeline,
        objective,
        **settings_beside(objective),
        rewards=[{"name": "tests.cluster.rewards:disturbed"}],
        checkpoints={"every": 1},
        cluster={"threads": 1},
    )
    train_alone(config, tmp_path / "alone")
    for file in chaos.iterdir():
        file.unlink()
    (chaos / "4-wait").touch()  # both splits are scored first, and then a block in each update

    learners: list[psutil.Process] = []

    def kill_when_it_strikes() -> None:
        until((chaos / "done-4-wait").exists, "the reward of the second update")
        learners.extend(called("RayTrainWorker"))
        end(learners)
        (chaos / "go").touch()

    killing = threading.Thread(target=kill_when_it_strikes)
    killing.start()
    assert not launch.claim(config, tmp_path / "killed", ["test"])
    launch.train(config, tmp_path / "killed")
    killing.join()
    assert len(learners) == 1
    equal(tmp_path / "killed", tmp_path / "alone", 2)
