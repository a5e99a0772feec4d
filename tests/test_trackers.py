"""Trackers against their own libraries: what they were told is read back with those, or from the files that they write."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysuite import trackers
from raysuite.cli import main
from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.stages.files import RunDirectory, write_json
from raysuite.trackers import follow
from tests.processes import until
from tests.stages import worker

Told = dict[tuple[str, int], list[float]]
"""Values by name and update."""
PARTS = 2
"""How often the run that all trackers are told of is followed: it is stopped once."""
SETTINGS = {
    "tensorboard": {"trackers.tensorboard": "true"},
    "wandb": {"trackers.wandb.project": "tests", "trackers.wandb.mode": "offline"},
    "mlflow": {"trackers.mlflow.experiment": "tests"},
}


def config(tracker: str) -> RunConfig:
    return load("toy-ddpo", SETTINGS[tracker])


def begin(tracker: str, directory: Path) -> RunDirectory:
    run = RunDirectory(directory)
    run.claim(config(tracker), ["raysuite", "train", "toy-ddpo"])
    return run


def evaluate(run: RunDirectory, updates: int) -> None:
    """Write what an evaluation writes, in its order."""
    run.write_image(updates, "held_out-0-0", np.full((8, 8, 3), updates, np.uint8))
    write_json(run.path / "images" / "prompts.json", {"held_out-0": "left"})
    run.log(updates, {"evaluation/held_out/toy": updates / 10})


def records(file: Path, header: int, block: int) -> Iterator[bytes]:
    """Records of a log of LevelDB's form: checksum, length and kind before each, in blocks."""
    data, at, whole = file.read_bytes(), header, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind or at + 7 + length > len(data):  # nothing yet, or not all of it
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def told_tensorboard(run: Path) -> tuple[Told, list[str]]:
    from tensorboardX.proto.event_pb2 import Event

    numbers, pictures = Told(), []
    for file in sorted((run / "trackers" / "tensorboard").glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures.append(value.tag)
                elif value.HasField("tensor") and not value.tag.startswith("config"):
                    pictures[-1] += f" {value.tensor.string_val[0].decode()}"
                elif value.HasField("simple_value"):
                    numbers.setdefault((value.tag, event.step), []).append(value.simple_value)
    return numbers, pictures


def told_wandb(run: Path) -> tuple[Told, list[str]]:
    from wandb.proto.wandb_internal_pb2 import Record

    def parts() -> Mapping[Path, Sequence[Record]]:
        files = sorted((run / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
        return {file: [Record.FromString(r) for r in records(file, header=7, block=32768)] for file in files}

    def ends() -> list[bool]:  # its service is another process, and still writes when a run is finished
        return [any(record.HasField("exit") for record in part) for part in parts().values()]

    until(lambda: ends() == [True] * PARTS, "the files of W&B")
    numbers, pictures, names = Told(), [], set()
    for file, part in parts().items():
        names.add(file.name)
        for record in part:
            row = {(i.key or i.nested_key[0], *i.nested_key[1:]): json.loads(i.value_json) for i in record.history.item}
            pictures += [f"{name} {value}" for (name, *of), value in row.items() if of == ["caption"]]
            for (name, *of), value in row.items():
                if not of and name != "update" and not name.startswith("_"):
                    numbers.setdefault((name, row["update",]), []).append(value)
    assert len(names) == 1  # one run there, however often it was stopped here
    return numbers, pictures


def told_mlflow(run: Path) -> tuple[Told, list[str]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(run / "trackers" / "mlflow"))
    experiment = client.get_experiment_by_name("tests")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["objective.name"] == "ddpo"
    numbers = Told()
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            numbers.setdefault((name.replace(".", "/"), metric.step), []).append(metric.value)
    prompts = {n.removeprefix("prompt/"): v for n, v in found.data.tags.items() if n.startswith("prompt/")}
    images = (file.path for file in client.list_artifacts(found.info.run_id, "images"))
    kept = [path.removeprefix("images/").split("+")[0].replace("~", "/") for path in images if path.endswith(".png")]
    return numbers, [f"{name} {prompts[name]}" for name in kept]


READ: Mapping[str, Callable[[Path], tuple[Told, list[str]]]] = {
    "tensorboard": told_tensorboard,
    "wandb": told_wandb,
    "mlflow": told_mlflow,
}


@pytest.mark.parametrize("tracker", SETTINGS)
def test_every_number_and_picture_is_told_once_though_the_run_is_stopped_and_repeats_updates(
    tracker: str, tmp_path: Path
) -> None:
    run = begin(tracker, tmp_path / "run")
    with trackers.following(config(tracker), run.path):
        evaluate(run, 0)
        run.log(0, {"train/reward": 0.25, "train/reward/redness": 0.25, "learn/loss": 1.0})
        run.log(1, {"train/reward": 0.5, "learn/loss": 2.0})
    run.rewind(1, again=False)  # update 1 was after the last checkpoint, and is done again
    with trackers.following(config(tracker), run.path):
        run.log(1, {"train/reward": 0.5, "learn/loss": 2.0})
        evaluate(run, 2)
        run.log(1, {"guard/diversity": 1.0})
    numbers, pictures = READ[tracker](run.path)
    assert numbers == {
        ("evaluation/held_out/toy", 0): [0.0],
        ("train/reward", 0): [0.25],
        ("train/reward/redness", 0): [0.25],
        ("learn/loss", 0): [1.0],
        ("train/reward", 1): [0.5],
        ("learn/loss", 1): [2.0],
        ("evaluation/held_out/toy", 2): [pytest.approx(0.2)],
        ("guard/diversity", 1): [1.0],
    }
    assert pictures == ["held_out/0 left"] * 2


def test_a_finished_run_is_tracked_afterwards(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.claim(load("toy-ddpo"), ["raysuite", "train", "toy-ddpo"])
    evaluate(run, 0)
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            main(["track", str(run.path), "--set", "trackers.tensorboard=true"])
    numbers, pictures = told_tensorboard(run.path)
    assert numbers == {("evaluation/held_out/toy", 0): [0.0]} and pictures == ["held_out/0 left"]
    assert run.config() == load("toy-ddpo")


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_second_destination_is_told_everything(tracker: str, tmp_path: Path) -> None:
    run, setting = begin(tracker, tmp_path / "run"), {"wandb": "project", "mlflow": "experiment"}[tracker]
    run.log(0, {"train/reward": 0.25})
    for name in ("first", "second", "second"):
        where = {**SETTINGS[tracker], f"trackers.{tracker}.{setting}": name}
        with trackers.following(load("toy-ddpo", where), run.path):
            pass
    told = json.loads((run.path / "trackers" / f"told-{tracker}.json").read_text())
    assert [name.split(" at ")[0].rpartition("/")[2] for name in sorted(told)] == ["first", "second"]
    assert list(told.values()) == [{"train/reward": 0}] * 2
    if tracker == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=str(run.path / "trackers" / "mlflow"))
        for name in ("first", "second"):
            (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
            history = client.get_metric_history(found.info.run_id, "train/reward")
            assert [(metric.step, metric.value) for metric in history] == [(0, 0.25)]


class Forgetful(trackers.Tracker):
    """Cannot be told anything for the first `times`."""

    errors = (ConnectionError,)
    destination = "nowhere"

    def __init__(self, times: int) -> None:
        self.times, self.told, self.completed = times, Told(), False

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        if self.times:
            self.times -= 1
            raise ConnectionError("nobody\nthere")
        for name, value in values.items():
            self.told.setdefault((name, update), []).append(value)

    def pictures(self, update: int, pictures: Sequence[trackers.Picture]) -> None:
        raise AssertionError("there are none")

    def close(self, *, completed: bool) -> None:
        self.completed = completed


@pytest.mark.parametrize(("times", "warned"), [(1, False), (10_000, True)])
def test_an_unreachable_tracker_is_told_later_and_never_harms_the_run(
    times: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Forgetful(times)
    monkeypatch.setattr(follow, "open_tracker", lambda name, run: tracker)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    run = begin("tensorboard", tmp_path / "run")
    with caplog.at_level(logging.WARNING), trackers.following(config("tensorboard"), run.path):
        run.log(0, {"train/reward": 0.25})
        until(lambda: tracker.times < times, "the tracker to be told", every=0.001)
    assert tracker.completed and tracker.told == ({} if warned else {("train/reward", 0): [0.25]})
    assert bool(caplog.messages) == warned
    if warned:
        assert "nobody there" in caplog.text and "raysuite track" in caplog.text


class Incomplete(Forgetful):
    """Lacks a package that it needs for pictures, and one to close."""

    def pictures(self, update: int, pictures: Sequence[trackers.Picture]) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    def close(self, *, completed: bool) -> None:
        raise KeyError(completed)


def test_a_tracker_that_raises_anything_else_is_given_up_and_never_harms_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Incomplete(0)
    monkeypatch.setattr(follow, "open_tracker", lambda name, run: tracker)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    run = begin("tensorboard", tmp_path / "run")
    evaluate(run, 0)
    with caplog.at_level(logging.WARNING), trackers.following(config("tensorboard"), run.path):
        until(lambda: tracker.told, "the tracker to be told", every=0.001)
        evaluate(run, 1)
    assert tracker.told == {("evaluation/held_out/toy", 0): [0.0]}  # once, and nothing after that
    (said,) = caplog.messages
    assert "tensorboard could not be told everything" in said and "raysuite track" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "expected a tracker, got none"),
        (["--set", "learn.epochs=2"], "expected a setting under trackers"),
        (["--set", "trackers.wandb.mode=later"], "trackers.wandb.mode"),
    ],
)
def test_what_track_cannot_do_is_said(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin("tensorboard", tmp_path / "run")
    write_json(run.path / "config.json", load("toy-ddpo").canonical())
    with pytest.raises(SystemExit) as stopped:
        main(["track", str(run.path), *settings])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("failure", [True, False])
def test_only_a_run_that_did_not_fail_is_told_as_completed(
    failure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Forgetful(0)
    monkeypatch.setattr(follow, "open_tracker", lambda name, run: tracker)
    run = begin("tensorboard", tmp_path / "run")
    with trackers.following(config("tensorboard"), run.path):
        if failure:  # as a learner leaves it
            write_json(run.path / "failure.json", {"message": "out of paint"})
    assert tracker.completed != failure


def test_a_run_that_was_killed_is_told_afterwards_as_one_that_was_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Forgetful(0)
    monkeypatch.setattr(follow, "open_tracker", lambda name, run: tracker)
    config = load("toy-ddpo", {"updates": "2", "evaluation.pictures": "0", **SETTINGS["tensorboard"]})
    run = worker.begin(config, tmp_path / "run")
    run.resume()
    run.evaluate()
    for number, done in enumerate([False, True], 1):
        run.update()
        run.evaluate()
        run.save()  # here it is killed, with no word of that anywhere
        assert run.state.updates == number
        with pytest.raises(SystemExit, match="0"):
            main(["track", str(tmp_path / "run")])
        assert tracker.completed == done


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(follow.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(UserError, match=r"pip install 'raysuite\[wandb\]'"):
        trackers.preflight(config("wandb").trackers)


def test_mlflow_that_refuses_is_told_in_a_sentence(tmp_path: Path) -> None:
    run = begin("mlflow", tmp_path / "run")
    changed: Any = load("toy-ddpo", {**SETTINGS["mlflow"], "trackers.mlflow.uri": "nowhere://"})
    with pytest.raises(UserError, match="expected MLflow at nowhere://"), trackers.following(changed, run.path):
        pass


@pytest.mark.parametrize("name", ["databricks", "databricks-uc"])
@pytest.mark.parametrize("by_environment", [True, False])
def test_a_server_of_mlflow_that_has_a_name_is_no_directory(
    name: str, by_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def client(tracking_uri: str) -> None:
        raise MlflowException(f"{tracking_uri} wants a token")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raysuite.trackers.mlflow.MlflowClient", client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", name if by_environment else "")
    settings = SETTINGS["mlflow"] | ({} if by_environment else {"trackers.mlflow.uri": name})
    run = begin("mlflow", tmp_path / "run")
    said = f"expected MLflow at {name} to take the run, got: {name} wants a token"
    with pytest.raises(UserError, match=said), trackers.following(load("toy-ddpo", settings), run.path):
        pass


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
@pytest.mark.parametrize("there", [True, False], ids=["silent", "nobody"])
def test_a_server_that_does_not_answer_is_told_before_anything_starts(
    tracker: str, there: bool, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://{silent if there else '127.0.0.1:1'}"
    monkeypatch.setattr(follow, "ANSWER_SECONDS", 0.2)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = SETTINGS[tracker] | ({"trackers.wandb.mode": "online"} if tracker == "wandb" else {})
    with pytest.raises(UserError, match=f"the server of trackers.{tracker} at {address} to answer within 0.2 seconds"):
        trackers.preflight(load("toy-ddpo", settings).trackers)


def test_wandb_is_off_line_where_the_environment_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    silent = load("toy-ddpo", {"trackers.wandb.project": "tests"})
    trackers.preflight(silent.trackers)
    run = begin("wandb", tmp_path / "run")
    run.log(0, {"train/reward": 0.25})
    with trackers.following(silent, run.path):
        pass
    (told,) = json.loads((run.path / "trackers" / "told-wandb.json").read_text())
    assert told.endswith("tests at offline")
