"""Pairs, training and evaluation of a writer with real Ray processes, as a user gives the commands."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raysuite.cli import main
from raysuite.cluster.writer import train_writer
from raysuite.errors import Stopped
from raysuite.stages.rewrites import BUNDLED
from raysuite.writer.losses import PairLoss
from raysuite.writer.model import open_writer
from raysuite.writer.train import Lesson, Pair, read_pairs, train
from tests.processes import HANG_GUARD

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's processes warn of their own affairs

SMALL = ["--set", "sampler.steps=2", "--set", "cluster.threads=1"]


@pytest.fixture(autouse=True)
def _ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0


@pytest.mark.slow
def test_a_writer_from_pairs_to_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, trained, compared = (str(tmp_path / name) for name in ("pairs", "trained", "compared"))
    making = [
        "writer",
        "pairs",
        "--out",
        pairs,
        "--prompts",
        "6",
        "--draws",
        "3",
        "--pictures",
        "2",
        "--margin",
        "0",
        *SMALL,
    ]
    run(*making)
    first = (tmp_path / "pairs" / "pairs.jsonl").read_bytes()
    for lost in ("pairs.jsonl", "summary.json", "candidates.jsonl"):
        (tmp_path / "pairs" / lost).unlink()
    next((tmp_path / "pairs" / "scores").iterdir()).unlink()
    run(*making)  # goes on, and finds the same
    assert (tmp_path / "pairs" / "pairs.jsonl").read_bytes() == first
    training = ["writer", "train", pairs, "--out", trained, "--loss", "cal_dpo", "--beta", "0.01", "--epochs", "1"]
    monkeypatch.setenv("RAY_ADDRESS", "local")  # as in a job
    run(*training)
    monkeypatch.delenv("RAY_ADDRESS")
    said = capsys.readouterr().out
    assert "WARNING: beta 0.01 pulls h of preferred rewrites to 50 nats" in said and "training: 1 of " in said
    assert not (tmp_path / "trained" / "ray").exists()
    assert json.loads((tmp_path / "trained" / "training.json").read_text())["loss"]["beta"] == 0.01
    run(*training)  # finished already
    lesson = Lesson(PairLoss("cal_dpo", 0.01), epochs=1)
    train(open_writer(BUNDLED), read_pairs(tmp_path / "pairs" / "pairs.jsonl"), lesson, tmp_path / "alone")
    for here, there in zip(
        *(sorted((tmp_path / one / "writer").iterdir()) for one in ("alone", "trained")), strict=True
    ):
        assert here.read_bytes() == there.read_bytes()  # whoever trains
    comparing = [
        "writer",
        "evaluate",
        "none",
        "oracle",
        trained,
        "--out",
        compared,
        "--prompts",
        "2",
        "--pictures",
        "1",
        *SMALL,
    ]
    ray.shutdown()
    run(*comparing, "--set", "cluster.actors=0")
    assert not ray.is_initialized()
    said = capsys.readouterr().out
    assert "Difference from none" in said and "seen phrasing, training, 2 prompts" in said
    run(*comparing)  # finished already, whoever drew
    assert "Difference from none" in capsys.readouterr().out


def test_ctrl_c_while_a_cluster_trains_a_writer_ends_the_command_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train takes Ctrl-C for itself, and ends as if all were done, where it finds itself in the main thread."""
    left = threading.Event()

    class Trainer:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def fit(self) -> None:
            if threading.current_thread() is threading.main_thread():
                return
            os.kill(os.getpid(), signal.SIGINT)
            left.wait(HANG_GUARD)

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("raysuite.cluster.session.connect", lambda: None)
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("raysuite.cluster.writer.check_room", lambda *_, **__: None)
    monkeypatch.setattr("raysuite.cluster.writer.TorchTrainer", Trainer)
    with pytest.raises(Stopped, match="stopped by SIGINT at once") as stopped:
        train_writer(BUNDLED, [Pair("a", "b", "c")], Lesson(PairLoss("sigmoid", 0.1)), tmp_path, pytest.fail)
    left.set()
    assert stopped.value.status == 130


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["writer", "evaluate", "none", "none", "--out", "x"], "expected writers, each once"),
        (["writer", "evaluate", "nobody", "--out", "x"], "expected a writer (scenes-writer"),
        (["writer", "pairs", "--pictures", "1", "--out", "x"], "expected --margin 0 with one picture"),
        (["writer", "train", "nowhere.jsonl", "--out", "x"], "expected a set of preferences"),
        (["writer", "train", "nowhere.jsonl", "--out", "x", "--beta", "0"], "expected --beta above 0"),
    ],
)
def test_refusals(
    words: list[str], mentions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2 and mentions in capsys.readouterr().err
