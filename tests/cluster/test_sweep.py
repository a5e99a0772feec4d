"""Sweeps: what may run at once, who is stopped, and a real one that is killed and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml

from raysuite.cluster import sweep as sweeping
from raysuite.cluster.placement import strategy_of_actors
from raysuite.cluster.sweep import Halving, Places, Queue
from raysuite.config import Cluster
from raysuite.sweeps.declared import Planned, Sweep, load
from raysuite.sweeps.trials import Book
from tests.processes import HANG_GUARD, until
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's processes warn of their own affairs

CPUS = {"worker_cpus": 1.0, "actor_cpus": 1.0}


@pytest.mark.parametrize(
    ("nodes", "cluster", "sure", "most"),
    [
        ([{"CPU": 2}], CPUS, 1, 1),
        ([{"CPU": 2}], {"worker_cpus": 0.5, "actor_cpus": 0.5}, 2, 2),
        ([{"CPU": 1}], CPUS, 1, 1),  # one is always let in: Ray says what it lacks
        ([{"CPU": 200}], CPUS, 100, 100),
        ([{"CPU": 2}] * 100, CPUS, 100, 100),
        # workers of 2 on nodes of 3: actors may lie so that only one of the two nodes has room left for a worker
        ([{"CPU": 3}] * 2, {"worker_cpus": 2.0, "actor_cpus": 1.0}, 1, 2),
        # the workers' GPUs are whole, actors' shares may lie on any
        ([{"CPU": 64, "GPU": 8}], {**CPUS, "actors": 4, "worker_gpus": 1.0, "actor_gpus": 0.25}, 1, 4),
        ([{"CPU": 16}, {"CPU": 8, "GPU": 2}], {**CPUS, "worker_gpus": 1.0, "actor_gpus": 1.0}, 1, 1),
        # learners that draw for themselves
        ([{"CPU": 2}], {"actors": 0, "worker_cpus": 0.5}, 4, 4),
        ([{"CPU": 8, "GPU": 4}], {"workers": 2, "worker_gpus": 1.0}, 2, 2),
    ],
)
def test_runs_at_once_find_room_whatever_lies_where(nodes: list, cluster: dict, sure: int, most: int) -> None:
    places = Places.among(nodes, Cluster(**cluster), wanted=None)
    assert (places.sure, places.most) == (sure, most)
    assert places.free(sure - 1, starting=sure - 1)
    assert places.free(most - 1, starting=0)
    assert not places.free(most, starting=0)
    if most > sure:
        assert not places.free(sure, starting=1)


def test_the_user_may_want_fewer_or_more() -> None:
    nodes, cluster = [{"CPU": 8}], Cluster(**CPUS)
    assert [vars(Places.among(nodes, cluster, wanted=n)) for n in (2, 9)] == [
        {"sure": 2, "most": 2},
        {"sure": 4, "most": 9},
    ]


def stopping_sweep(*objectives: str | dict[str, Any]) -> Sweep:
    """Four trials of each; its rungs are at 100 and 300 network evaluations."""
    return Sweep.model_validate(
        {
            "recipe": "toy-ddpo",
            "objectives": objectives,
            "space": {"learn.learning_rate": {"uniform": [0.001, 0.01]}},
            "trials": 4,
            "budget": 900,
            "scheduler": "asha",
        }
    )


def pretend(book: Book, run: Planned, *, reward: float, status: str) -> None:
    """That a run was evaluated once, after 120 network evaluations."""
    directory = book.run_directory(run)
    directory.mkdir(parents=True)
    row = {"update": 1, "name": "evaluation/held_out/redness", "value": reward}
    spent = {"update": 0, "name": "budget/network_evaluations", "value": 120.0}
    (directory / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(spent)}\n")
    book.note(run, settings=book.settings(run), status=status)


def test_asha_stops_what_is_not_among_the_best_third_also_of_an_earlier_part(tmp_path: Path) -> None:
    sweep = stopping_sweep("toy-ddpo", {"name": "sft"})
    book = Book.open(sweep, tmp_path / "sweep", ["test"])
    of_ddpo = [run for run in sweep.runs if run.objective == "toy-ddpo"]
    for run, reward in zip(of_ddpo, (0.5, 0.9), strict=False):  # from before the sweep was stopped
        pretend(book, run, reward=reward, status="done")
    halving = Halving(book)

    def decide(name: str, objective: str, spent: float, reward: float) -> str:
        trial: Any = SimpleNamespace(trial_id=name, config={"name": name, "objective": objective})
        halving.on_trial_add(None, trial)
        return halving.on_trial_result(None, trial, {"network_evaluations": spent, "held_out": reward})

    third, fourth = (run.name for run in of_ddpo[2:])
    assert decide(third, "toy-ddpo", 60, 0.1) == Halving.CONTINUE  # before the first rung, at 100
    assert decide(third, "toy-ddpo", 110, 0.6) == Halving.STOP
    assert book.trials[third].status == "stopped" and "after 110 network evaluations" in str(book.trials[third].message)
    assert decide(fourth, "toy-ddpo", 110, 0.95) == Halving.CONTINUE
    assert decide("sft-00-seed0", "sft", 110, 0.1) == Halving.CONTINUE  # others are no measure for it
    for name, reward in (("sft-00-seed0", 0.9), ("sft-01-seed0", 0.1)):  # the second is the worse at the last rung
        assert decide(name, "sft", 900, reward) == Halving.CONTINUE  # it ends by itself
    # one that is tried again says what it said before, and is no second run
    assert decide(fourth, "toy-ddpo", 110, 0.95) == Halving.CONTINUE
    assert [len(recorded) for _, recorded in halving._of["toy-ddpo"]._brackets[0]._rungs][-1] == 4


def test_asha_does_not_judge_anew_what_a_kill_interrupted(tmp_path: Path) -> None:
    """A trial that was first at its rungs tells its evaluations again when better ones have passed there."""
    sweep = stopping_sweep("toy-ddpo")
    book = Book.open(sweep, tmp_path / "sweep", ["test"])
    for run, reward in zip(sweep.runs, (0.2, 0.5, 0.6, 0.7), strict=True):
        pretend(book, run, reward=reward, status="running" if reward == 0.2 else "done")
    book = Book.open(sweep, tmp_path / "sweep", ["test"])  # by the same command, after the kill
    first = sweep.runs[0].name
    assert book.trials[first].status == "waiting"
    halving = Halving(book)
    trial: Any = SimpleNamespace(trial_id="again", config={"name": first, "objective": "toy-ddpo"})
    halving.on_trial_add(None, trial)
    for spent in (120, 280, 310):  # the first rung anew, and the second, at which it is the first
        result = {"network_evaluations": spent, "held_out": 0.2}
        assert halving.on_trial_result(None, trial, result) == Halving.CONTINUE
    assert book.trials[first].status == "waiting"


def test_a_run_whose_process_died_is_tried_again_before_anything_is_confirmed(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(
        {
            "recipe": "toy-ddpo",
            "objectives": ["toy-ddpo"],
            "space": {"learn.learning_rate": {"grid": [0.001, 0.01]}},
            "confirm": {"seeds": [7]},
            "settings": {"cluster.max_failures": 1, "cluster.threads": 1},
            "budget": 900,
        }
    )
    book = Book.open(sweep, tmp_path / "sweep", ["test"])
    first, second = sweep.searched
    book.note(first, status="done", settings=book.settings(first), held_out=1.0)
    queue = Queue(book, ["test"], Cluster())
    vars(queue)["_places"] = Places(sure=2, most=2)

    def end(told: dict[str, str] | None = None) -> str:
        """How the sweep takes it that the second run's process is gone; `told` is what it left behind."""
        assert queue.suggest("once")["name"] == second.name
        assert queue.suggest("another") is None  # not that there are no more
        if told:
            (book.run_directory(second) / "failure.json").write_text(json.dumps(told))
        queue.on_trial_complete("once", error=True)
        return book.trials[second.name].status

    assert end() == "waiting" and book.waiting() == [second]
    assert book.trials[second.name].message == "its process died: nothing more is known"
    assert end() == "failed"  # as often as learners may be lost
    book.note(second, status="waiting")
    assert end({"message": "expected paint, got none"}) == "failed"  # what only the user can mend
    assert book.trials[second.name].message == "expected paint, got none"
    (confirms,) = book.waiting()
    assert confirms.trial is None
    book.note(confirms, status="done")
    assert queue.suggest("last") == Queue.FINISHED


def queue_of_two(directory: Path) -> Queue:
    """A sweep of two runs, one after the other."""
    declared = Sweep.model_validate(
        {
            "recipe": "toy-ddpo",
            "objectives": ["toy-ddpo"],
            "space": {"learn.learning_rate": {"grid": [0.001, 0.01]}},
            "budget": 900,
        }
    )
    queue = Queue(Book.open(declared, directory, ["test"]), ["test"], Cluster())
    queue._places = Places(sure=1, most=1)
    return queue


def test_a_run_does_not_start_in_a_sweep_that_was_stopped_while_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of_two(tmp_path / "sweep")
    claim = sweeping.launch.claim

    def stopped_meanwhile(*of: Any) -> bool:
        queue.stop("SIGINT")
        return claim(*of)

    monkeypatch.setattr(sweeping.launch, "claim", stopped_meanwhile)
    assert queue.suggest("first") == Queue.FINISHED
    assert not queue.going and set(statuses(tmp_path / "sweep").values()) == {"waiting"}


def test_a_run_knows_that_a_cluster_was_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's environment is its driver's; a run, which another process begins, waits for a cluster to grow as well."""
    queue = queue_of_two(tmp_path / "sweep")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    options = queue.suggest("first")
    monkeypatch.delenv("RAY_ADDRESS")
    seen: list[str | None] = []
    monkeypatch.setattr(sweeping.launch, "train", lambda *run, placed: seen.append(os.environ.get("RAY_ADDRESS")))
    sweeping._run(options)
    assert seen == ["head:6379"]


@pytest.mark.parametrize(
    ("cluster", "reserved"),
    [
        ({"actors": 2}, True),
        ({"workers": 2, "actors": 0}, False),
        ({"actors": 0, "judges": {"redness": {}}}, False),
        ({"actors": 1, "judges": {"redness": {}}}, True),
        ({"actors": 1, "judges": {"redness": {"cpus": 0}}}, True),
        ({"actors": 0, "judges": {"redness": {"cpus": 0}}}, False),
    ],
)
def test_actors_go_where_a_run_has_reserved_places_for_them(
    cluster: dict, reserved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that encode or draw in the learners' places before these begin have none."""
    places = sweeping._reserved(Cluster(**cluster)).bundles
    assert all(places)  # an empty one Ray refuses
    group = SimpleNamespace(bundle_specs=places)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: group)
    assert strategy_of_actors(Cluster(**cluster).with_actors()) == (None if reserved else "SPREAD")


def in_one_process(sweep: Sweep, name: str, directory: Path) -> np.ndarray:
    run = next(run for run in sweep.runs if run.name == name)
    config = sweep.config(run, sweep.drawn(run.objective, run.trial or 0))
    return train_alone(config, directory).policy.weights()


DECLARED = {
    "recipe": "toy-ddpo",
    "objectives": ["toy-ddpo", {"name": "sft", "draws": 2}],
    "seeds": [0],
    "budget": 600,
    "settings": {"evaluation.every": 1, "cluster.threads": 1, "learn.minibatches": 1},
}


def begin(file: Path, out: Path) -> subprocess.Popen[str]:
    """The command of a sweep, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "raysuite.cli", "sweep", str(file), "--out", str(out)],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def statuses(out: Path) -> dict[str, str]:
    told = out / "trials.json"
    return {t["name"]: t["status"] for t in json.loads(told.read_text())} if told.exists() else {}


def kill_when_one_is_done(file: Path, out: Path) -> None:
    with begin(file, out) as sweep:
        until(lambda: sweep.poll() is not None or "done" in statuses(out).values(), "a run to end")
        assert sweep.poll() is None
        sweep.kill()


def metrics_of_done(out: Path) -> dict[Path, os.stat_result]:
    done = (name for name, status in statuses(out).items() if status == "done")
    return {path: path.stat() for path in (out / "trials" / name / "metrics.jsonl" for name in done)}


def check_weights(sweep: Sweep, name: str, out: Path, directory: Path) -> None:
    """A run's last weights are those of the same run in one process."""
    (last,) = sorted((out / "trials" / name / "checkpoints").iterdir())[-1:]
    weights = safetensors.numpy.load_file(last / "model" / "toy.safetensors")["perturbation"].ravel()
    assert np.array_equal(weights, in_one_process(sweep, name, directory / name))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_without_repeating_what_was_done(tmp_path: Path) -> None:
    out, file = tmp_path / "sweep", tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(DECLARED | {"confirm": {"seeds": [7]}}))
    kill_when_one_is_done(file, out)
    before = metrics_of_done(out)
    with begin(file, out) as again:
        shown, said = again.communicate(timeout=HANG_GUARD)
    assert again.returncode == 0, said
    names = ("toy-ddpo-00-seed0", "sft-00-seed0", "toy-ddpo-best-seed7", "sft-best-seed7")
    assert statuses(out) == dict.fromkeys(names, "done")
    assert before and all(path.stat() == stat for path, stat in before.items())
    for name in names:
        check_weights(load(str(file)), name, out, tmp_path)
    assert "toy-ddpo: the settings of trial 00 were chosen at" in " ".join(shown.split())
    assert (out / "comparison.html").exists() and (out / "comparison.parquet").exists()
    assert not (out / "ray").exists()


@pytest.mark.exhaustive
def test_two_objectives_of_the_contest_at_a_tiny_budget_make_the_tables_that_were_published(tmp_path: Path) -> None:
    out, file = tmp_path / "contest", tmp_path / "contest.yaml"
    sizes = {"rollouts.prompts": 8, "rollouts.prompts_per_block": 2, "rollouts.samples": 2, "evaluation.prompts": 8}
    declared = {
        "extends": "scenes-contest",
        "objectives": ["scenes-ddpo", "scenes-dspo"],
        "space": {
            "learn.learning_rate": {"loguniform": [3.0e-5, 6.0e-4]},
            "objectives.scenes-dspo.beta": {"loguniform": [2.0e-3, 5.0e-2]},
        },
        "settings": {
            "prompts.held_out": "scenes-validation",
            "sampler.steps": 3,
            "cluster.actors": 0,
            "cluster.threads": 1,
            **sizes,
        },
        "trials": 2,
        "confirm": {"seeds": [100], "test": "scenes-test"},
        "budget": 100,
    }
    file.write_text(yaml.safe_dump(declared))
    with begin(file, out) as sweep:
        shown, said = sweep.communicate(timeout=HANG_GUARD)
    assert sweep.returncode == 0, shown + said

    published = Path(__file__).parents[2] / "docs/results/contest"
    ours, theirs = (json.loads((at / "trials.json").read_text()) for at in (out, published))
    assert {frozenset(row) for row in ours} == {frozenset(row) for row in theirs}
    best = [row for row in ours if row["confirms"] is not None]
    assert [(row["objective"], row["seed"]) for row in best] == [("scenes-ddpo", 100), ("scenes-dspo", 100)]
    for row in best:
        tried = [r for r in ours if r["objective"] == row["objective"] and r["trial"] is not None and r["held_out"]]
        won = max(tried, key=lambda r: r["held_out"])
        assert (row["confirms"], row["settings"]) == (won["trial"], won["settings"])

    ours, theirs = (pq.read_table(at / "comparison.parquet") for at in (out, published))
    assert ours.schema.names == theirs.schema.names
    found, asked = (
        {(row["method"], row["quantity"]): row for row in table.to_pylist() if row["other"] is None}
        for table in (ours, theirs)
    )
    of_both = {key for key in asked if key[0] in ("scenes-ddpo", "scenes-dspo")}
    assert {key for key in of_both if not key[1].startswith("best")} <= found.keys()  # that name what was spent
    for run in best:
        before, after = ends(out / "trials" / run["name"], "test", "scenes_strict")
        row = found[run["objective"], "test/scenes_strict gained"]
        assert (row["runs"], row["tried"], row["estimate"]) == (1, 2, pytest.approx(after - before))


def ends(run: Path, split: str, reward: str) -> tuple[float, float]:
    """Mean of a reward on a split at a run's first and last evaluation, as its files have it."""
    files = sorted((run / "scores").iterdir())
    tables = [pq.read_table(file).to_pandas() for file in (files[0], files[-1])]
    first, last = (table[(table.split == split) & (table.reward == reward)].value.mean() for table in tables)
    return float(first), float(last)


@pytest.mark.exhaustive
def test_a_sweep_is_killed_stopped_and_kept_from_one_of_its_runs(tmp_path: Path) -> None:
    """What the test before shows, and a stop in the middle of a run, and a directory that another has taken."""
    out, file = tmp_path / "sweep", tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(DECLARED | {"seeds": [0, 1]}))
    blocked = out / "trials" / "sft-00-seed1"

    def learned(since: float) -> list[str]:
        """Runs that were begun or gone on with since then, and have made an update."""
        found = []
        for run in out.glob("trials/*"):
            files = [run / "provenance.json", run / "progress.json"]
            if all(file.exists() for file in files) and json.loads(files[1].read_text())["update"]:
                begun, told = (file.stat().st_mtime for file in files)
                found += [run.name] if since < begun < told else []
        return found

    kill_when_one_is_done(file, out)
    blocked.mkdir(parents=True, exist_ok=True)
    if not (blocked / "config.json").exists():  # a run that cannot begin is told of, and the others go on
        (blocked / "something.txt").write_text("mine")
    since = time.time()
    with begin(file, out) as stopped:
        until(lambda: stopped.poll() is not None or learned(since), "a run to learn")
        assert stopped.poll() is None
        name = learned(since)[0]
        stopped.terminate()
        _, said = stopped.communicate(timeout=HANG_GUARD)
    assert stopped.returncode == 143 and "stopped by SIGTERM after" in said
    assert statuses(out)[name] in ("waiting", "done") and "running" not in statuses(out).values()
    assert list((out / "trials" / name / "checkpoints").glob("[0-9]*"))
    before = metrics_of_done(out)
    with begin(file, out) as again:
        shown, said = again.communicate(timeout=HANG_GUARD)
    if (blocked / "something.txt").exists():
        assert again.returncode == 2
        assert "1 of 4 runs failed (sft-00-seed1: expected an empty or new directory" in said
        assert "1 of 4 runs of sweep failed and are left out" in shown
    else:
        assert again.returncode == 0, said
    assert list(statuses(out).values()).count("done") >= 3
    assert all(path.stat() == stat for path, stat in before.items())
    for name in ("toy-ddpo-00-seed1", "sft-00-seed0"):
        check_weights(load(str(file)), name, out, tmp_path)
