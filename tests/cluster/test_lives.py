"""Actors that cannot open what they need, or cannot be reached: what those are told who ask them. Nothing here starts Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from raysuite.cluster import lives
from raysuite.cluster.actors import RolloutActor, dealt
from raysuite.cluster.texts import TextEncoder
from raysuite.config import Model, load
from raysuite.errors import UserError


def test_actors_without_their_model_say_so_to_all_who_ask(tmp_path: Path) -> None:
    """As on a machine of a cluster that does not have it; of an exception in a constructor Ray would tell nobody."""
    config = load("toy-ddpo", {}).model_copy(update={"model": Model(path=str(tmp_path / "nowhere"))})
    drawing: Any = RolloutActor(config, threads=1)
    encoding = TextEncoder(config, tmp_path, threads=1)
    asked: list[Callable[[], object]] = [
        drawing.life,
        lambda: drawing.warm([None]),
        lambda: drawing.rollout(None, [np.zeros(2)], -1),
        encoding.life,
        lambda: encoding.encode(["a cat"]),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"expected .*nowhere"):
            ask()


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


@pytest.mark.parametrize("cause", [UserError("expected a cat"), KeyError("cat")])
def test_a_sentence_crosses_processes_as_it_was_written(cause: Exception) -> None:
    expected: type[Exception] = UserError if isinstance(cause, UserError) else ray.exceptions.RayTaskError
    with pytest.raises(expected) as raised, lives.as_written():
        raise ray.exceptions.RayTaskError("measure", "Traceback ...", cause)
    assert expected is not UserError or str(raised.value) == "expected a cat"
