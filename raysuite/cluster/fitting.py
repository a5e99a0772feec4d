"""Ray Train, run to its end: what ends it early is a sentence for the user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from raysuite.errors import UserError, in_a_line

CAUSE = 400
"""Characters of the cause that are told."""


def fit(trainer: TorchTrainer, notes: Path, *, limit: str, known: Callable[[], bool] = lambda: False) -> None:
    """Let learners work until they have ended, each time one is lost anew.

    Args:
        trainer: of Ray Train.
        notes: directory that Ray Train writes into; what it says of a failure is kept there, with tracebacks.
        limit: how often learners may be lost, in words that begin with "than".
        known: whether the user is told otherwise why learners ended. One of several that finds what only the user can mend has to
            raise it, for the others wait for it, and Ray Train counts that as a loss.

    Raises:
        UserError: one that a learner raised, or that learners were lost more often than they may be.
    """
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if known():
            return
        failures = list(getattr(error, "worker_failures", {}).values())
        for failure in failures:
            if isinstance(failure, UserError):
                raise failure from None
        kept = notes / "error.txt"
        try:
            notes.mkdir(parents=True, exist_ok=True)
            kept.write_text(str(error))
            where = f"{kept} has all of it"
        except OSError as full:
            where = f"{kept} could not be written ({full})"
        cause = failures[0] if failures else error
        raise UserError(
            f"expected learners to be lost no more often {limit}, the last one with {type(cause).__name__}: "
            f"{in_a_line(cause, CAUSE)}; {where}; the same command goes on from the last checkpoint"
        ) from error
