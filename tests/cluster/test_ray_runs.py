"""Real Ray processes: actors, the Ray Train learner, and the command line around them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import safetensors.numpy
import torch
from rich.console import Console

from raysuite.cli import main
from raysuite.cluster import launch, lives, session
from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.cluster.encode import encode
from raysuite.cluster.pairs import make_pairs
from raysuite.config import Model, RunConfig, load
from raysuite.datasets.sources import open_source
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.progress import Counting
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.preference_set import PreferenceSet, finished_blocks
from raysuite.stages.preferences import compared, rankings
from raysuite.stages.prompts import load_prompts, training_blocks
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's processes warn of their own affairs

SMALL = {
    "updates": "2",
    "rollouts.prompts": "2",
    "learn.minibatches": "1",
    "evaluation.samples": "1",
    "evaluation.final_samples": "2",
    "cluster.threads": "1",
}


def toy(**settings: str) -> RunConfig:
    return load("toy-ddpo", {**SMALL, **{path.replace("__", "."): value for path, value in settings.items()}})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    session.connect()
    yield
    ray.shutdown()


def in_one_process(config: RunConfig, directory: Path) -> np.ndarray:
    return train_alone(config, directory).policy.weights()


def through_ray(config: RunConfig, directory: Path) -> np.ndarray:
    assert not launch.claim(config, directory, ["test"])
    launch.train(config, directory)
    assert launch.claim(config, directory, ["test"])  # finished
    last = directory / "checkpoints" / f"{config.updates:06d}" / "model" / "toy.safetensors"
    return safetensors.numpy.load_file(last)["perturbation"].ravel()


OLDER = {
    "updates": "3",
    "objective": "{name: trajectory_dpo, strength: 5.0, discount: 0.9}",
    "credit": "null",
    "rollouts__staleness": "1",
    "reference__refresh": "1",
    "evaluation__every": "1",
}
"""A learner without actors lends its policy for older weights, and for the KL from the model as it came."""


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, id="on policy"), pytest.param(OLDER, id="older weights", marks=pytest.mark.slow)],
)
def test_a_run_with_actors_equals_one_without(settings: dict[str, str], tmp_path: Path) -> None:
    config, alone = toy(**settings), toy(**settings, cluster__actors="0")
    assert np.array_equal(through_ray(config, tmp_path / "ray"), through_ray(alone, tmp_path / "one"))
    assert (tmp_path / "ray/metrics.jsonl").read_text() == (tmp_path / "one/metrics.jsonl").read_text()


TWO = {"cluster__workers": "2", "cluster__worker_cpus": "0.5", "cluster__actor_cpus": "0.25"}


@pytest.mark.slow
def test_two_learner_workers_equal_one_and_need_no_actors(tmp_path: Path) -> None:
    two, without = (through_ray(toy(**TWO, cluster__actors=actors), tmp_path / actors) for actors in ("2", "0"))
    np.testing.assert_allclose(two, in_one_process(toy(), tmp_path / "one"), rtol=1e-4, atol=1e-6)
    assert np.array_equal(two, without)
    assert (tmp_path / "2/metrics.jsonl").read_text() == (tmp_path / "0/metrics.jsonl").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_learner_that_does_everything_needs_the_gpu_that_it_asks_for(tmp_path: Path) -> None:
    config = toy(cluster__worker_gpus="1")
    assert config.cluster.alone
    with pytest.raises(UserError, match=r"expected a GPU with CUDA for cluster\.worker_gpus=1, this machine has none"):
        launch.train(config, tmp_path)


def test_pairs_are_those_of_the_same_stages_in_one_process(tmp_path: Path) -> None:
    config = toy(
        objective="{name: trajectory_dpo, strength: 5.0, discount: 0.9}",
        credit="null",
        preferences__choose="all",
        preferences__limit="5",
    )
    made = [
        make_pairs(
            config,
            tmp_path / "set",
            prompts=4,
            trajectories=True,
            command=["test"],
            counting=Counting("test", "blocks", Console(quiet=True)),
        )
        for _ in range(2)
    ]
    assert made[0] == made[1] and made[0]["rankings"] == 20
    found = PreferenceSet(tmp_path / "set")
    policy = open_policy(config, torch.device("cpu"))
    blocks = [b for update in range(2) for b in training_blocks(config, load_prompts(config.prompts), update)]
    drawn = LocalCollector(policy, config).start(blocks, policy.weights(), 0)
    expected = [compared(r, rankings(config, r.block, r.reward_N)[0]) for r in drawn]
    rows = found.rows(range(20))
    assert torch.equal(rows.latents_RMK, torch.cat([e.latents_RMK for e in expected]))
    assert rows.prompts_R == tuple(p for e in expected for p in e.prompts_R)
    offline = toy(
        objective="{name: trajectory_dpo, strength: 5.0, discount: 0.9}",
        credit="null",
        preferences__source=str(tmp_path / "set"),
        rollouts__prompts="20",
    )
    launch.preflight(offline)  # of the toy's two prompts it draws none: the set has its own
    with pytest.raises(UserError, match="differs in source"):
        make_pairs(
            config.model_copy(update={"seed": 1}),
            tmp_path / "set",
            prompts=4,
            trajectories=True,
            command=["test"],
            counting=Counting("test", "blocks", Console(quiet=True)),
        )


@pytest.mark.slow
def test_an_actor_that_was_restarted_answers_with_the_version_it_was_asked_for() -> None:
    config = toy()
    policy = open_policy(config, torch.device("cpu"))
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    weights = np.full_like(policy.weights(), 0.01)
    actors = start_actors(config.cluster, RolloutActor, config, threads=1)
    expected = {r.block.index: r for r in LocalCollector(policy, config).start(blocks, weights, 7)}
    for others in RayCollector(actors).start(blocks[:1], 0 * weights, 7):  # another learner's seventh
        assert not np.array_equal(others.latents_NK, expected[others.block.index].latents_NK)
    RayCollector(actors).warm(blocks)()  # which changes nothing of what they answer
    for _ in range(2):
        for got in RayCollector(actors).start(blocks, weights, 7):
            assert got.version == 7
            assert np.array_equal(got.latents_NK, expected[got.block.index].latents_NK)
            assert np.array_equal(got.logp_NK, expected[got.block.index].logp_NK)
        ray.kill(actors[0], no_restart=False)
    ray.kill(actors[0])


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="one learner"),
        pytest.param({**TWO, "cluster__max_failures": "0"}, id="two", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_fails_fails_the_run_with_its_prompt_and_leaves_the_last_checkpoint(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """One of several learners has to raise it, which is no loss that Ray Train may make good."""
    config = toy(rewards="[{name: 'tests.cluster.rewards:fails_on_right'}]", **settings)
    launch.claim(config, tmp_path, ["test"])
    with pytest.raises(
        UserError,
        match=r"fails_on_right raised RuntimeError: out of paint \(rewards.py, line \d+\); the prompts were .*right",
    ):
        launch.train(config, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_reward_that_leaves_its_process_is_one_that_fails() -> None:
    config = toy(rewards="[{name: 'tests.cluster.rewards:leaves_on_right'}]")
    weights = open_policy(config, torch.device("cpu")).weights()
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    expected = r"leaves_on_right raised SystemExit: out of paint; the prompts were .*right"
    with session.running_actors(config) as (actors, _), pytest.raises(UserError, match=expected):
        list(RayCollector(actors).start(blocks, weights, 0))


def test_what_fails_where_blocks_are_dealt_is_told_to_who_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: value)
    blocks = training_blocks(toy(), load_prompts(toy().prompts), update=0)
    with pytest.raises(AttributeError, match="life"):
        list(RayCollector([object()]).start(blocks, np.zeros(2), 0))


def test_an_actor_whose_process_ends_again_and_again_is_a_sentence_with_its_rewards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(asked: object) -> None:
        raise ray.exceptions.ActorUnavailableError("socket closed", None)

    monkeypatch.setattr(ray, "get", gone)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(lives, "REACHED_SECONDS", 2.0)
    config = toy()
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    collector = RayCollector([MagicMock()], rewards=["redness", "mine:beauty"])
    with pytest.raises(UserError, match=r"scores them \(with redness, mine:beauty\) to go on, its process ended again"):
        list(collector.start(blocks, np.zeros(2), 0))


def test_more_than_the_machine_has_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"expected no more than this machine has, the run wants 256\.5 CPUs where there are"
    ):
        session.check_resources(toy(cluster__actors="64", cluster__actor_cpus="4").cluster, workers=1)


def test_what_other_work_holds_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What this command itself let go of a moment ago is not."""

    class Other:
        def begun(self) -> None:
            pass

    cores = int(ray.cluster_resources()["CPU"])
    other = ray.remote(num_cpus=cores)(Other).remote()
    ray.get(other.begun.remote())
    monkeypatch.setenv("RAY_ADDRESS", "local")
    wanted = toy(cluster__actors="1").cluster
    with caplog.at_level(logging.WARNING):
        session.check_resources(wanted)
        (said,) = caplog.messages
        assert "other work holds the cluster at local, the run wants 0.5 CPUs where 0 are free now" in said
        caplog.clear()
        ray.kill(other)
        session.check_resources(wanted)
    assert not caplog.messages


@pytest.mark.slow
def test_the_command_line_trains_resumes_evaluates_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in a process of its own, as users start it; what comes after it, by the same function in this one."""
    out = tmp_path / "run"
    settings = [word for path, value in SMALL.items() for word in ("--set", f"{path}={value}")]
    train = ["train", "toy-ddpo", *settings, "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def leaves(words: list[str], status: int) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main(words)
        said = capsys.readouterr()
        assert (left.value.code or 0) == status, said.err
        return said.out, said.err

    first = subprocess.run(
        [sys.executable, "-m", "raysuite.cli", *train, "--set", "trackers.tensorboard=true"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    assert (out / "report.html").exists()
    assert "redness" in first.stdout
    assert json.loads((out / "progress.json").read_text())["phase"] == "done"
    told = json.loads((out / "trackers" / "told-tensorboard.json").read_text())
    assert told["events"] == {name: max(values) for name, values in RunDirectory(out).metrics().items()} | {
        "(pictures)": 2
    }
    assert "finished already" in leaves(train, 0)[0]
    ledger = (out / "ledger.json").read_bytes()
    leaves(["evaluate", str(out), "--checkpoint", "2"], 0)
    assert (out / "ledger.json").read_bytes() == ledger  # the run did not pay for it
    assert "differs in seed" in leaves([*train, "--set", "seed=1"], 2)[1]


@pytest.mark.slow
def test_a_damaged_file_ends_encoding_with_a_sentence(tmp_path: Path) -> None:
    """Not with what Ray Data makes of an actor's exception; what was whole is kept."""
    columns = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")
    for name in ("a", "b"):
        row = {column: [b"no picture" * 20] for column in columns[:2]} | {
            "label_0": [1],
            "label_1": [0],
            "caption": ["left"],
        }
        pq.write_table(pa.table(row), tmp_path / f"{name}.parquet", compression="none")
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[:4] + bytes(100) + content[104:])
    source = open_source([str(tmp_path / "?.parquet")], layout=None, split="train")
    with (
        Counting("encoding", "blocks", Console(quiet=True)) as counting,
        pytest.raises(UserError, match=r"expected rows 0 to 0 in .*b.parquet, could not read them"),
    ):
        encode(
            source,
            tmp_path / "set",
            model=Model(path="toy"),
            pairs="all",
            rows_per_block=1,
            actors=1,
            actor_gpus=0,
            command=["test"],
            counting=counting,
        )
    assert finished_blocks(tmp_path / "set") <= {0}
    assert not (tmp_path / "set" / "summary.json").exists()
