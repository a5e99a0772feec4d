"""Actors that cannot open what they need, or cannot be reached: what those are told who ask them. Nothing here starts Ray."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from raysuite.cluster import actors, judges, lives
from raysuite.cluster.actors import RolloutActor, dealt
from raysuite.cluster.judges import Judges
from raysuite.cluster.texts import TextEncoder
from raysuite.config import Model, Reward, load
from raysuite.errors import UserError


def test_actors_without_their_model_say_so_to_all_who_ask(tmp_path: Path) -> None:
    """As on a machine of a cluster that does not have it; of an exception in a constructor Ray would tell nobody."""
    config = load("toy-ddpo", {}).model_copy(update={"model": Model(path=str(tmp_path / "nowhere"))})
    drawing: Any = RolloutActor(config, threads=1)
    encoding = TextEncoder(config, tmp_path, threads=1)
    asked: list[Callable[[], object]] = [
        drawing.life,
        lambda: drawing.warm([None]),
        lambda: drawing.rollout(None, [ray.ObjectRef.from_random()], -1),
        encoding.life,
        lambda: encoding.encode(["a cat"]),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"expected .*nowhere"):
            ask()


def test_what_else_keeps_a_policy_from_being_opened_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause, and not that a reward may have ended the process."""

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(actors, "open_policy", broken)
    drawing: Any = RolloutActor(load("toy-ddpo", {}), threads=1)
    with pytest.raises(RuntimeError, match="no kernel image"):
        drawing.life()


def test_a_question_that_waited_behind_one_that_hung_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is ended with the one that hangs, and Ray repeats what waits only so often."""
    lost, seen = [ray.exceptions.RayActorError()] * 2, list[str]()
    monkeypatch.setattr(ray, "get_actor", lambda name: SimpleNamespace())

    def answered(*asked: object) -> tuple[str, list[float], list[UserError]]:
        if lost:
            raise lost.pop()
        return "life", [0.5], []

    monkeypatch.setattr(judges, "answer", answered)
    block: Any = SimpleNamespace(index=0, first_sample=0)
    ask = Judges({"mine:score": ["judge"]}).ask
    reward, pictures = Reward(name="mine:score", retries=2), np.zeros((1, 2, 2, 3), np.uint8)
    assert ask(reward, pictures, block, lambda failure: seen.append(str(failure))) == [0.5]
    assert seen == ["a judge of mine:score was lost"] * 2
    lost += [ray.exceptions.RayActorError()] * 3
    with pytest.raises(UserError, match="its process ended again and again"):
        ask(reward, pictures, block, lambda failure: None)


def test_work_of_an_actor_that_was_out_of_reach_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def get(asked: Any) -> Any:
        seen.append(asked)
        if asked == "life":
            return asked
        if seen.count(asked) == 1 and asked == (0, "b"):
            raise ray.exceptions.ActorUnavailableError("socket closed", None)
        return asked[1].upper()

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda flying, num_returns: (flying[:1], flying[1:]))
    actor: Any = SimpleNamespace(number=0, life=SimpleNamespace(remote=lambda: "life"))
    answers = dealt([actor], lambda actor, piece: (actor.number, piece), ["a", "b", "c"])
    assert list(answers) == ["A", "B", "C"]
    assert seen == [(0, "a"), (0, "b"), "life", (0, "b"), (0, "c")]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("cause", [UserError("expected a cat"), FULL, OSError(errno.EIO, "bad disk"), KeyError("cat")])
def test_what_can_be_mended_crosses_processes_as_it_was_raised(cause: Exception) -> None:
    """A full disk is known by its number, which Ray's own error has not; of anything else Ray says where it happened."""
    task = ray.exceptions.RayTaskError("measure", "Traceback ...", cause)
    mendable = isinstance(cause, UserError) or cause is FULL
    with pytest.raises(type(cause) if mendable else ray.exceptions.RayTaskError) as raised, lives.as_written():
        raise task.as_instanceof_cause()
    assert (raised.value is cause) == mendable


def test_an_actor_whose_gpu_has_no_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence is not asked for again; anything else once more, of a fresh process that would have no more room."""

    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(actors, "sample", full)
    actor = RolloutActor(load("toy-ddpo"), threads=1)
    block: Any = SimpleNamespace()
    loaded: Any = SimpleNamespace(hex=lambda: "")  # as if these weights had been used before
    told = r"expected room on a GPU, found none \(CUDA out of memory\)"
    with pytest.raises(UserError, match=told):
        actor.rollout(block, [loaded], 0)
    monkeypatch.setattr(actors, "open_policy", full)
    with pytest.raises(UserError, match=told):
        RolloutActor(load("toy-ddpo"), threads=1).life()
