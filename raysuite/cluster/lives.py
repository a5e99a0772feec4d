"""Actors that Ray restarts: which of its lives one is in, and how it is asked when it cannot be reached.

Ray does not know at once that a node is lost: until it has been silent for some time, what was there is taken for alive, and
calls fail as "unavailable". They fail alike where the call itself ends the process. So a call that failed is made once more,
when the actor answers again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raysuite.errors import UserError, is_full

REACHED_SECONDS = 300.0
"""How long an actor may be out of reach. By default Ray gives up a silent node after less than a minute."""
PAUSE_SECONDS = 1.0


def life_of(actor: Any) -> str:
    """Which of its lives an actor is in, which is waited for: where it is restarted, and where nobody knows yet that it is gone.

    Raises:
        ActorUnavailableError: it could not be reached for `REACHED_SECONDS`.
    """
    until = time.monotonic() + REACHED_SECONDS
    while True:
        try:
            return str(ray.get(actor.life.remote()))
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_SECONDS)


def life_after(actor: Any, ended: str | None) -> str:
    """Which life it is in after one that was ended: the process of that one may answer for a moment yet."""
    while (life := life_of(actor)) == ended:
        time.sleep(PAUSE_SECONDS)
    return life


def answer(actor: Any, ask: Callable[[], ray.ObjectRef], asked: ray.ObjectRef | None = None) -> Any:
    """What an actor answers, or has when it was `asked` before; where it could not be reached it is asked once more.

    Raises:
        RayActorError: it could not be reached, or not be kept alive.
    """
    try:
        return ray.get(ask() if asked is None else asked)
    except ray.exceptions.ActorUnavailableError:
        life_of(actor)
        return ray.get(ask())


@contextmanager
def as_written() -> Iterator[None]:
    """For the length of a `with`, what the user can mend crosses processes as `raised` has it.

    Raises:
        UserError: an actor did.
        OSError: there is no room where an actor writes.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise raised(error) from None


def raised(error: ray.exceptions.RayTaskError) -> Exception:
    """A sentence for the user, or that a disk is full, as the actor raised it: without Ray's own words, and with its number. Anything
    else as Ray tells it, with where it happened.
    """
    cause: Exception = error.cause
    mendable = isinstance(cause, UserError) or (isinstance(cause, OSError) and is_full(cause))
    return cause if mendable else error
