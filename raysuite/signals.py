"""Ctrl-C and SIGTERM, from a command's first moment to its last.

Before Ray runs there is nothing to undo, and libraries that are being imported swallow what a handler raises: the command
leaves at once. While Ray starts, which swallows it too, a signal waits until it has. After that it raises `Interrupted`, so that
all that was started ends in order.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came. No `Exception`: what tries again after any of those lets it pass."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        self.signum = signum


@contextmanager
def handled(take: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals go to `take` for the length of a `with`. Outside the main thread, where Python delivers none, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def heeded(leave: Callable[[signal.Signals], None]) -> Iterator[None]:
    """For the length of a `with`, a signal ends the command: by `leave`, which does not return, or once Ray runs by `Interrupted`."""

    def take(number: int, frame: FrameType | None) -> None:
        ray_runs = getattr(sys.modules.get("ray"), "is_initialized", bool)
        if ray_runs():
            raise Interrupted(signal.Signals(number))
        leave(signal.Signals(number))

    with handled(take):
        yield


@contextmanager
def postponed() -> Iterator[None]:
    """A signal that comes meanwhile is delivered at the end of the `with`, whatever handlers the block puts in place."""
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with handled(lambda number, frame: came.append(number)):
        try:
            yield
        except SystemExit:  # how Ray answers SIGTERM, which it takes for itself as it starts
            came.append(signal.SIGTERM)
    if came and callable(handler := handlers[signal.Signals(came[0])]):
        handler(came[0], None)
