"""Bad days: processes are really killed, and the finished run equals an undisturbed one bit for bit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import safetensors.numpy
import torch

from raysuite.cluster import launch, session
from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.cluster.judges import Judges
from raysuite.config import RunConfig, load
from raysuite.errors import RewardHung, Stopped, UserError
from raysuite.families import open_policy
from raysuite.stages import checkpoint
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.types import Block, Rollouts
from tests.processes import HANG_GUARD, below, called, end, ended, until
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "updates": "6",
    "rewards": "[{name: 'tests.cluster.rewards:disturbed', seconds: 6}]",
    "rollouts.prompts": "2",
    "learn.minibatches": "1",
    "evaluation.every": "3",
    "evaluation.samples": "1",
    "evaluation.final_samples": "2",
    "checkpoints.every": "2",
    "cluster.threads": "1",
}
"""4 calls of the reward before the first update, 2 in every update, 2 after the third, 4 at the end."""


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, directory = load("toy-ddpo", SETTINGS), tmp_path_factory.mktemp("undisturbed")
    train_alone(config, directory)
    return directory


@pytest.fixture(scope="module")
def cluster(chaos: Path, undisturbed: Path) -> Iterator[None]:
    os.environ["CHAOS"] = str(chaos)
    session.connect()
    yield
    ray.shutdown()
    del os.environ["CHAOS"]


def plan(chaos: Path, *faults: str) -> None:
    shutil.rmtree(chaos)
    chaos.mkdir()
    for fault in faults:
        (chaos / fault).touch()


def when(chaos: Path, fault: str, act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a fault strikes, and let the reward that waits for it go on."""

    def run() -> None:
        until((chaos / f"done-{fault}").exists, fault)
        act()
        (chaos / "go").touch()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def check_equal(disturbed: Path, undisturbed: Path) -> dict[str, float]:
    """Weights, optimiser, metrics, scores and ledger are those of the undisturbed run. Returns what was redone."""
    for name in ("model/toy.safetensors", "optimizer.safetensors", "behaviour.safetensors"):
        one, other = (
            safetensors.numpy.load_file(run / "checkpoints" / "000006" / name) for run in (disturbed, undisturbed)
        )
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    lines = [sorted((run / "metrics.jsonl").read_text().splitlines()) for run in (disturbed, undisturbed)]
    assert lines[0] == lines[1]
    for scores in undisturbed.glob("scores/*"):
        assert (disturbed / "scores" / scores.name).read_bytes() == scores.read_bytes()
    ledgers = [json.loads((run / "ledger.json").read_text()) for run in (disturbed, undisturbed)]
    assert all(ledgers[0][side] == ledgers[1][side] for side in ("training", "evaluation", "underway"))
    assert not any(ledgers[1]["redone"].values())
    return ledgers[0]["redone"]


def kill_learner() -> None:
    (learner,) = called("RayTrainWorker")
    learner.kill()
    learner.wait()


def forward(ledger: dict[str, dict[str, int]], *of: str) -> int:
    return sum(ledger[name]["forward"] for name in of)


def lost(run: Path) -> int:
    """Forward passes that a run whose learner died has on its ledger and not in its last checkpoint."""
    ledger = json.loads((run / "ledger.json").read_text())
    last = checkpoint.completed(run / "checkpoints")[-1]
    kept = json.loads((last / "state.json").read_text())["ledger"]
    return forward(ledger, "training", "evaluation", "underway") - forward(kept, "training", "evaluation")


@pytest.mark.slow
def test_actor_killed_reward_raised_and_hung_ctrl_c_and_learner_killed(
    cluster: None, chaos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    plan(chaos, "6-kill", "9-raise", "12-hang", "16-wait")
    config = load("toy-ddpo", SETTINGS)
    assert not launch.claim(config, tmp_path, ["test"])
    thread = when(chaos, "16-wait", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match=r"stopped by SIGINT after \d updates?, of which checkpoints/") as stopped:
        launch.train(config, tmp_path)
    thread.join()
    assert stopped.value.status == 130
    assert not list(chaos.glob("[0-9]*"))
    before, stopped_with = json.loads((tmp_path / "ledger.json").read_text())["redone"], lost(tmp_path)
    plan(chaos, "3-wait")
    losses: list[int] = []
    thread = when(chaos, "3-wait", lambda: (kill_learner(), losses.append(lost(tmp_path))))
    assert not launch.claim(config, tmp_path, ["test"])
    launch.train(config, tmp_path)
    thread.join()
    assert launch.claim(config, tmp_path, ["test"])
    redone = check_equal(tmp_path, undisturbed)
    # an actor died with one or two blocks and another was replaced with one or two: each is 16 pictures of 10 steps
    assert 320 <= before["forward"] <= 640 and before["images_scored"] >= before["images_decoded"] + 16
    # how much the stop and the kill cost depends on how far the run was: nothing, right after a checkpoint
    assert redone["forward"] == before["forward"] + stopped_with + losses[0]
    assert redone["seconds"] > before["seconds"]


@pytest.mark.slow
def test_a_reward_that_always_hangs_is_named_with_its_prompts(cluster: None) -> None:
    config = load("toy-ddpo", {**SETTINGS, "rewards": "[{name: 'tests.cluster.rewards:hangs_on_left', seconds: 1}]"})
    policy = open_policy(config, torch.device("cpu"))
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    with session.killed_at_the_end(start_actors(config.cluster, RolloutActor, config, threads=1)) as actors:
        expected = r"hangs_on_left to answer within 1 seconds, it did not; the prompts were 'left': mend it"
        with pytest.raises(RewardHung, match=expected):
            list(RayCollector(actors).start(blocks, policy.weights(), 0))
    # a learner that draws for itself has no other process to ask again in
    with contextlib.closing(Judges({})) as here, pytest.raises(RewardHung, match=expected):
        list(LocalCollector(policy, config, ask=here.ask).start(blocks, policy.weights(), 0))


class Broken(RolloutActor):
    """Its first process draws nothing, as after a fault of its GPU; with a directory in `place`, none does."""

    def __init__(self, config: RunConfig, place: Path, *, threads: int) -> None:
        super().__init__(config, threads=threads)
        self._broken = place.is_dir() or not place.exists()
        if self._broken and not place.is_dir():
            place.touch()

    def rollout(self, block: Block, weights: list[ray.ObjectRef], version: int) -> tuple[str, Rollouts]:
        if self._broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().rollout(block, weights, version)


@pytest.mark.slow
def test_a_process_that_can_draw_nothing_any_more_is_replaced_once_a_block(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to be gone."""
    kill = ray.kill

    def kill_late(actor: ray.actor.ActorHandle, no_restart: bool = True) -> None:
        if no_restart:
            kill(actor)
        else:
            threading.Timer(1, kill, [actor], {"no_restart": False}).start()

    monkeypatch.setattr(ray, "kill", kill_late)
    config = load("toy-ddpo", SETTINGS)
    policy = open_policy(config, torch.device("cpu"))
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    one = config.cluster.model_copy(update={"actors": 1})
    with session.killed_at_the_end(start_actors(one, Broken, config, tmp_path / "first", threads=1)) as actors:
        drawn = list(RayCollector(actors).start(blocks, policy.weights(), 0))
        assert len(drawn) == len(blocks) and any(rollouts.redone for rollouts in drawn)
    with (
        session.killed_at_the_end(start_actors(one, Broken, config, tmp_path, threads=1)) as actors,
        pytest.raises(ray.exceptions.RayTaskError, match="CUDA error"),
    ):
        list(RayCollector(actors).start(blocks, policy.weights(), 0))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_without_room_for_metrics_ends_the_run_with_a_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(RunDirectory, "log", full)
    config = load("toy-ddpo", SETTINGS)
    launch.claim(config, tmp_path, ["test"])
    options = launch._options(config, tmp_path, threads=1, texts=None)
    expected = contextlib.nullcontext() if number != errno.EACCES else pytest.raises(PermissionError)
    with expected:
        launch._learner(options)
    failed = tmp_path / "failure.json"
    assert failed.exists() is (number != errno.EACCES)
    if failed.exists():
        assert "the last checkpoint stands; make room there" in json.loads(failed.read_text())["message"]


def test_a_disk_that_has_no_room_for_the_sentence_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = load("toy-ddpo", SETTINGS)
    launch.claim(config, tmp_path, ["test"])
    monkeypatch.setattr(RunDirectory, "log", full)
    monkeypatch.setattr(launch, "write_json", full)
    with pytest.raises(UserError, match="the last checkpoint stands; make room there"):
        launch._learner(launch._options(config, tmp_path, threads=1, texts=None))


# of runs with actors, tests/families/test_ray.py kills a driver, tests/cluster/test_stopping.py terminates one
@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.exhaustive), 0])
def test_driver_killed_and_terminated_and_the_command_repeated(
    actors: int, chaos: Path, undisturbed: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if actors:
        request.getfixturevalue("cluster")
    out, placed = tmp_path / "run", {**SETTINGS, "cluster.actors": str(actors)}
    settings = [word for path, value in placed.items() for word in ("--set", f"{path}={value}")]
    command = [sys.executable, "-m", "raysuite.cli", "train", "toy-ddpo", *settings, "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"CHAOS": str(chaos)}

    def begin(*faults: str) -> subprocess.Popen[str]:
        plan(chaos, *faults)
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def hit(driver: subprocess.Popen[str], fault: str, number: signal.Signals) -> tuple[str, Sequence[psutil.Process]]:
        """What the driver said last, and the processes that it had started."""
        until(lambda: (chaos / f"done-{fault}").exists() or driver.poll() is not None, fault)
        started = below(driver)
        assert len(started) > 3 if actors else not started
        driver.send_signal(number)
        return driver.communicate(timeout=HANG_GUARD)[1], started

    driver = begin("9-wait")
    _, orphans = hit(driver, "9-wait", signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    end(orphans)  # Ray's own agents outlive a driver that was killed by a minute or more
    driver = begin("2-wait")
    said, started = hit(driver, "2-wait", signal.SIGTERM)
    assert (driver.returncode, said.count("\n"), ended(started)) == (143, 1, []), said
    assert "stopped by SIGTERM after 2 updates, of which checkpoints/000002 is the last" in said
    plan(chaos)
    config = load("toy-ddpo", placed)
    assert not launch.claim(config, out, ["test"])
    launch.train(config, out)
    assert check_equal(out, undisturbed)["forward"] > 0
