"""What a command looks at before Ray starts."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raysuite.cluster import launch
from raysuite.config import load
from raysuite.errors import UserError


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    launch._say_once.cache_clear()


def test_what_there_is_to_tell_of_prompts_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The runs of a sweep have it in common."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    long = " ".join(["red"] * 15)
    (tmp_path / "p.txt").write_text(f"one red circle\ntwo red circles\none red circle\n{long}\n")
    settings = {"prompts.training": str(tmp_path / "p.txt"), "prompts.held_out": "null"}
    sizes = {"rollouts.prompts": "2", "rollouts.prompts_per_block": "2", "learn.minibatches": "1"}
    rewards = {"rewards": "[{name: redness}]", "evaluation.rewards": "[]"}
    with caplog.at_level(logging.WARNING, logger="raysuite"):
        for seed in ("0", "1"):
            launch.preflight(load("scenes-ddpo", {**settings, **sizes, **rewards, "seed": seed}))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("raysuite")] == [
        "NOTE: prompts.training has 1 row that came before: each counts once.",
        f"WARNING: 1 of 3 prompts are cut after the 16 tokens that the model reads, for example {long!r}.",
    ]


@pytest.mark.parametrize(
    ("there", "settings", "told"),
    [(True, {}, True), (False, {}, False), (True, {"cluster.worker_gpus": "1"}, False)],
    ids=["unused", "none", "used"],
)
def test_a_gpu_that_nothing_asks_for_is_told_of(
    there: bool,
    settings: dict[str, str],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    with caplog.at_level(logging.WARNING, logger="raysuite"):
        launch.check_drawing(load("toy-ddpo", settings))
    note = "NOTE: this machine has a GPU and the run computes on CPUs: --set cluster.worker_gpus=1 uses it."
    assert (note in caplog.messages) == told


@pytest.mark.parametrize(("actors", "told"), [("0", True), ("1", False)])
def test_older_weights_gain_nothing_where_one_process_draws_and_learns_by_turns(
    actors: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raysuite"):
        launch.preflight(load("toy-ddpo", {"rollouts.staleness": "1", "cluster.actors": actors}))
    assert any("rollouts.staleness gains nothing in one process" in message for message in caplog.messages) == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"worker_gpus": "1", "actors": "2"}, True),
        ({"worker_gpus": "0.6", "actor_gpus": "0.4"}, False),
        ({"worker_gpus": "1"}, False),
        ({"actors": "2"}, False),
    ],
    ids=["beside a GPU", "on a share of it", "learners draw", "all on CPUs"],
)
def test_actors_on_cpus_beside_a_learner_on_a_gpu_are_told_of(
    settings: dict[str, str], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raysuite"):
        launch.check_drawing(load("toy-ddpo", {f"cluster.{name}": value for name, value in settings.items()}))
    assert any("actors draw on CPUs what is learned from on a GPU" in message for message in caplog.messages) == told


def test_a_writer_at_a_path_where_there_is_none_is_found_missing(tmp_path: Path) -> None:
    config = load("scenes-users-ddpo", {"prompts.writer": str(tmp_path / "nobody")})
    with pytest.raises(UserError, match=r"expected a writer \(scenes-writer, .* got .*nobody"):
        launch.preflight(config)


def test_learners_wait_for_each_other_as_long_as_a_machine_may_take_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(launch, "TorchTrainer", lambda *_, **told: made.update(told) or SimpleNamespace(fit=None))
    monkeypatch.setattr(launch, "running_actors", lambda *_, **__: nullcontext(([], {})))
    for name in ("connect", "check_resources"):
        monkeypatch.setattr(launch, name, lambda *_, **__: None)
    with launch._through_ray(load("toy-ddpo", {"cluster.threads": "1"}), tmp_path):
        assert made["torch_config"].timeout_s >= 12 * 3600
