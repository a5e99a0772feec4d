"""What becomes of a training that Ray Train gave up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train import TrainingFailedError, WorkerGroupError

from raysuite.cluster import launch
from raysuite.cluster.fitting import fit
from raysuite.config import load
from raysuite.errors import UserError


class Failing:
    """A trainer whose learners end so."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        self._failures = failures

    def fit(self) -> None:
        raise WorkerGroupError("Traceback (most recent call last)", self._failures)


def told(failures: dict[int, Exception], notes: Path, **options: Any) -> str:
    trainer: Any = Failing(failures)
    with pytest.raises(UserError) as raised:
        fit(trainer, notes, limit="than cluster.max_failures=2 allows", **options)
    return str(raised.value)


def test_learners_that_are_lost_too_often_are_a_sentence(tmp_path: Path) -> None:
    said = told({1: RuntimeError("out of\nmemory")}, tmp_path / "ray")
    assert "than cluster.max_failures=2 allows, the last one with RuntimeError: out of memory; " in said
    assert "Traceback" in (tmp_path / "ray" / "error.txt").read_text()


def test_a_sentence_of_a_learner_is_told_as_it_was_written(tmp_path: Path) -> None:
    """Also where it was not the first to end."""
    assert told({0: RuntimeError("connection closed"), 1: UserError("expected a cat")}, tmp_path) == "expected a cat"


def test_what_the_user_is_told_otherwise_is_not_told_twice(tmp_path: Path) -> None:
    trainer: Any = Failing({0: UserError("expected a cat")})
    fit(trainer, tmp_path, limit="2", known=lambda: True)
    assert issubclass(WorkerGroupError, TrainingFailedError)


def test_a_learner_that_does_not_see_the_runs_directory_computes_nothing(tmp_path: Path) -> None:
    """On its own disk nobody would find what it writes."""
    unseen = tmp_path / "run"
    options = launch._options(load("toy-ddpo", {}), unseen, threads=1, texts=None)
    with pytest.raises(UserError, match=r"expected a directory that all machines share, got .*run, which a learner on"):
        launch._learner(options)
    assert not unseen.exists()
