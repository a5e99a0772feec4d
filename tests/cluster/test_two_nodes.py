"""A cluster of two nodes on this machine: work on both, one of them lost and replaced, and GPUs that are shared."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.numpy
import torch
from ray._private.authentication import authentication_token_setup as tokens
from ray.cluster_utils import Cluster as Nodes
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysuite.cluster import actors, launch, session, turns
from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.cluster.placement import Piece, room_for_learners, worker_resources
from raysuite.cluster.turns import end_once_there, own_turn
from raysuite.config import Cluster, RunConfig, load, validate
from raysuite.families import open_policy
from raysuite.stages.collect import Collector, LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.types import Block, Rollouts
from tests.processes import HANG_GUARD, called, end, until
from tests.rewards.networks import save_clip
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "updates": "40",
    "learn.minibatches": "1",
    "evaluation.every": "100",
    "evaluation.samples": "1",
    "evaluation.final_samples": "2",
    "cluster.threads": "1",
    # the first node has room for one of these, so that the second has a part of the run whatever Ray decides
    "cluster.actors": "2",
    "cluster.actor_cpus": "0.75",
    "cluster.worker_cpus": "0.75",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    tokens.enable_token_auth_by_default()  # what ray.init does before it starts a node of its own
    tokens.ensure_token_if_auth_enabled(create_token_if_missing=True)
    ray.shutdown()
    nodes = Nodes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_agent_register_timeout_ms", "120000")  # a busy machine is slow, not broken
        nodes.add_node(num_cpus=1, include_dashboard=False, dashboard_agent_listen_port=0)
        patch.setenv("RAY_ADDRESS", nodes.address)
        nodes.add_node(num_cpus=2, num_gpus=2)
        session.connect()
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def shut(nodes: Nodes, node: Any) -> None:
    """Its connections end, and so Ray knows at once."""
    nodes.remove_node(node, allow_graceful=False)


def silence(nodes: Nodes, node: Any) -> None:
    """Its workers are gone and it says nothing more, so that Ray takes them for alive until it has waited long enough."""
    named = (process for process in psutil.process_iter() if node.raylet_socket_name in " ".join(called_as(process)))
    (raylet,) = (process for process in named if process.name() == "raylet")
    workers = raylet.children(recursive=True)
    raylet.suspend()
    end(workers)


def called_as(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.mark.slow
@pytest.mark.parametrize("lose", [shut, pytest.param(silence, marks=pytest.mark.exhaustive)])
def test_a_run_outlives_the_loss_of_a_node(lose: Callable[[Nodes, Any], None], nodes: Nodes, tmp_path: Path) -> None:
    settings = [f"--set={path}={value}" for path, value in SETTINGS.items()]
    command = [sys.executable, "-m", "raysuite.cli", "train", "toy-ddpo", "--out", str(tmp_path / "run"), *settings]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(
        lambda: run.poll() is not None or '"update": 7,' in (metrics.read_text() if metrics.exists() else ""),
        "eight updates",
        every=0.02,
    )
    (second,) = nodes.worker_nodes
    lose(nodes, second)
    assert run.poll() is None
    nodes.add_node(num_cpus=2, num_gpus=2)
    assert run.wait() == 0
    if second in nodes.worker_nodes:  # it was silent only
        nodes.remove_node(second, allow_graceful=False)
    config = load("toy-ddpo", SETTINGS)
    model = tmp_path / "run" / "checkpoints" / "000040" / "model" / "toy.safetensors"
    expected = train_alone(config, tmp_path / "one").policy.weights()
    assert np.array_equal(safetensors.numpy.load_file(model)["perturbation"].ravel(), expected)
    ledgers = [json.loads((tmp_path / name / "ledger.json").read_text()) for name in ("run", "one")]
    assert all(ledgers[0][what] == ledgers[1][what] for what in ("training", "evaluation"))


@pytest.mark.slow
def test_two_runs_that_begin_together_both_end(nodes: Nodes, tmp_path: Path) -> None:
    """Each wants all three places that there are: with a part of them each, they would wait for each other."""
    settings = [f"--set={path}={value}" for path, value in {**SETTINGS, "updates": "1"}.items()]
    command = [sys.executable, "-m", "raysuite.cli", "train", "toy-ddpo", *settings, "--out"]
    runs = [subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.DEVNULL) for name in ("a", "b")]
    try:
        assert [run.wait(HANG_GUARD) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()


@pytest.mark.slow
def test_blocks_of_a_lost_machine_are_done_by_those_that_are_left(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other machine has room for its actors; when there is one again they work on."""
    monkeypatch.setattr(actors, "SILENT_SECONDS", 1.0)
    config = load("toy-ddpo", {**SETTINGS, "cluster.actors": "3", "rollouts.prompts_per_block": "1"})
    policy = open_policy(config, torch.device("cpu"))
    blocks = [
        block for update in range(8) for block in training_blocks(config, load_prompts(config.prompts), update=update)
    ]

    def drawn(collector: Collector, *, losing: Any = None) -> dict[tuple[int, int], np.ndarray]:
        found = {}
        for number, rollouts in enumerate(collector.start(blocks, policy.weights(), 0)):
            found[rollouts.block.update, rollouts.block.index] = rollouts.reward_N
            if number == 2 and losing is not None:
                shut(nodes, losing)
        return found

    expected = drawn(LocalCollector(policy, config))
    (second,) = nodes.worker_nodes
    with session.killed_at_the_end(start_actors(config.cluster, Pausing, config, threads=1)) as held:
        ray.get([actor.life.remote() for actor in held])
        collector = RayCollector(held)
        found = drawn(collector, losing=second)
        assert found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)
        nodes.add_node(num_cpus=2, num_gpus=2)
        again = drawn(collector)
        assert all(np.array_equal(again[key], expected[key]) for key in expected)


class Pausing(RolloutActor):
    """Takes a moment for each block, so that all have one when a machine is lost."""

    def rollout(self, block: Block, weights: list[ray.ObjectRef], version: int) -> tuple[str, Rollouts]:
        time.sleep(0.3)
        return super().rollout(block, weights, version)


def test_a_command_takes_its_places_when_there_are_some_for_all(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FOUND_SECONDS", 1.0)
    three, bundles = [Piece("an actor", 0.75, 0)] * 3, [{"CPU": 0.75}] * 3
    with own_turn(three) as turn:
        assert turn is not None and turns._begun(bundles) is None  # another's
    held = placement_group([{"CPU": 1}])
    ray.get(held.ready())
    until(lambda: not called("Turn"), "the end of the turn")
    assert turns._begun(bundles) is None  # there is no room, and others have their turn
    remove_placement_group(held)
    with own_turn(three) as turn:
        end_once_there(turn, [])  # while the command goes on
        with own_turn(three) as another:
            assert another is not None
    with own_turn([Piece("a judge", 0, 0)]) as turn:
        assert turn is None  # it takes nothing
    monkeypatch.delenv("RAY_ADDRESS")
    with own_turn(three) as turn:
        assert turn is None


OBJECTIVES: dict[str, dict[str, Any]] = {
    "ddpo": {},
    "diffusion_dpo": {"objective": {"name": "diffusion_dpo", "beta": 100.0}, "preferences": {"choose": "all"}},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("objective", ["ddpo", "diffusion_dpo"])
def test_a_killed_run_with_pickscore_in_judges_goes_on(
    nodes: Nodes, objective: str, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """No node has room for all of it, so that pictures go from one to the other. First the driver is killed, then a judge."""
    # judges are placed first, and leave room for the others wherever they are
    cluster = {"threads": 1, "actor_cpus": 0.5, "worker_cpus": 0.5, "judges": {"pickscore": {"actors": 2}}}
    config = run_config(
        "epsilon-lora-1",
        updates=3,
        rewards=[{"name": "pickscore", "model": str(save_clip(tmp_path / "clip"))}],
        rollouts={"prompts": 4, "samples": 2, "prompts_per_block": 1},
        evaluation={"prompts": 2, "samples": 1, "final_samples": 1, "every": 3},
        checkpoints={"every": 1},
        cluster=cluster,
    )
    config = validate({**config.canonical(), **OBJECTIVES[objective]})
    alone, run = tmp_path / "alone", tmp_path / "run"
    train_alone(config, alone)
    (tmp_path / "run.yaml").write_text(json.dumps(config.canonical()))  # JSON is YAML
    command = [sys.executable, "-m", "raysuite.cli", "train", str(tmp_path / "run.yaml"), "--out", str(run)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as begun:
        first = run / "checkpoints" / "000001" / "state.json"
        until(lambda: begun.poll() is not None or first.exists(), "the first checkpoint", every=0.02)
        begun.kill()
    assert begun.returncode == -signal.SIGKILL
    until(lambda: not called("JudgeActor"), "the end of the killed run's judges")

    killed: list[int] = []

    def kill_a_judge() -> None:
        until((run / "checkpoints" / "000002" / "state.json").exists, "the second checkpoint", every=0.02)
        judge = called("JudgeActor")[0]
        judge.kill()
        killed.append(judge.pid)

    assert not launch.claim(config, run, ["test"])
    killer = threading.Thread(target=kill_a_judge)
    killer.start()
    launch.train(config, run)
    killer.join()
    assert killed
    for name in ("model/pytorch_lora_weights.safetensors", "optimizer.safetensors"):
        one, other = (safetensors.numpy.load_file(of / "checkpoints" / "000003" / name) for of in (alone, run))
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    assert RunDirectory(alone).metrics() == RunDirectory(run).metrics()
    for scores in alone.glob("scores/*"):
        assert (run / "scores" / scores.name).read_bytes() == scores.read_bytes()


class Resident:
    """Knows which GPU it was given."""

    def ready(self) -> bool:
        return True

    def gpu(self) -> int:
        (number,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return int(number)


@pytest.mark.slow
@pytest.mark.parametrize("room", [False, True])
def test_learners_that_share_gpus_with_actors_have_one_each(nodes: Nodes, room: bool) -> None:
    shares = Cluster(workers=2, actors=2, worker_cpus=0.1, actor_cpus=0.1, worker_gpus=0.6, actor_gpus=0.4)
    with room_for_learners(shares, shares.workers if room else 0) as shared:
        assert shared == room
        actors = start_actors(shares, Resident)  # type: ignore[arg-type]
        of_actors = sorted(ray.get([actor.gpu.remote() for actor in actors]))
    learners = []
    if room:
        assert of_actors == [0, 1]
        places = placement_group([worker_resources(shares)] * 2, strategy="PACK")  # as Ray Train does
        options: dict[str, float] = {"num_cpus": 0.1, "num_gpus": 0.6}
        for number in range(2):
            place = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=number)
            learners.append(ray.remote(Resident).options(**options, scheduling_strategy=place).remote())
        assert sorted(ray.get([learner.gpu.remote() for learner in learners])) == [0, 1]
        remove_placement_group(places)
    else:  # the reason for all this: the second learner would wait forever
        assert of_actors in ([0, 0], [1, 1])
    for resident in (*actors, *learners):
        ray.kill(resident)


def test_learners_beside_actors_keep_a_place_on_one_of_several_machines(nodes: Nodes) -> None:
    """Actors go where they find room first; one on the larger machine would leave no place for this learner."""
    cluster = Cluster(worker_cpus=2.0, actors=1)
    session.check_resources(cluster, workers=1)
    with room_for_learners(cluster, 1) as kept:
        assert kept
        actors = start_actors(cluster, Resident)  # type: ignore[arg-type]
        assert ray.get([actor.ready.remote() for actor in actors]) == [True]
    for actor in actors:
        ray.kill(actor)
