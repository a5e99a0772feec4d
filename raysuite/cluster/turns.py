"""Commands that share a cluster take their places in it one after another.

Ray has no word for "all of these or none": actors ask for their places one by one, and Ray Train asks for the learners' afterwards.
Two commands that begin together would each get a part of what they want, and wait for each other for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.util.placement_group import placement_group, remove_placement_group

from raysuite.cluster.placement import LOOKS_EVERY, Piece, bundles_of

TURN = {"name": "taking-places", "namespace": "raysuite"}
"""There is one of the name in a cluster."""
FOUND_SECONDS = 20.0
"""How long a command looks for places for all that it wants before others have a turn. A cluster that can grow hears of it."""


class Turn:
    """Is there while it is a command's turn, and goes with it."""


@contextmanager
def own_turn(pieces: Sequence[Piece]) -> Iterator[ray.actor.ActorHandle | None]:
    """A command's turn to take its places, which it has when there is one for every piece; at the latest it ends with the `with`.

    None where nobody else takes places: in a cluster that was not joined, and in a run of a sweep, which has places for its actors.
    """
    bundles = bundles_of(pieces)
    if not bundles or not os.environ.get("RAY_ADDRESS") or ray.util.get_current_placement_group():
        yield None
        return
    while (turn := _begun(bundles)) is None:
        time.sleep(LOOKS_EVERY)
    try:
        yield turn
    finally:
        ray.kill(turn)


def _begun(bundles: list[dict[str, float]]) -> ray.actor.ActorHandle | None:
    remote: Any = ray.remote(Turn)
    try:
        turn = remote.options(num_cpus=0, **TURN).remote()
    except ActorAlreadyExistsError:  # it is another command's
        return None
    places = placement_group(bundles)
    try:
        if places.wait(FOUND_SECONDS):
            return turn
    finally:
        remove_placement_group(places)
    ray.kill(turn)
    return None


def end_once_there(turn: ray.actor.ActorHandle | None, actors: Sequence[ray.actor.ActorHandle]) -> None:
    """Let others have a turn as soon as these actors have their places, without waiting for it here.

    Args:
        turn: that ends; None where there is none.
        actors: that answer `life`.
    """
    if turn is None:
        return

    def wait() -> None:
        with suppress(RayError):  # whoever asks them for something is told
            ray.get([actor.life.remote() for actor in actors])
        ray.kill(turn)

    threading.Thread(target=wait, daemon=True).start()
