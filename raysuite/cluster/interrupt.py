"""Ctrl-C and SIGTERM (`ray job stop` sends one) while a run goes on: the learner is asked to stop, and the driver waits for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from types import FrameType, TracebackType
from typing import Self

from raysuite.errors import Stopped
from raysuite.signals import Interrupted, handled
from raysuite.stages.stop import POLL_SECONDS

PATIENCE_SECONDS = 20.0
"""How long the learner has to put its last update on disk; with what Ray takes to end, half a minute."""
GRACE_SECONDS = 10.0
"""How long Ray Train has to end by itself after the learner did."""


class Interruption:
    """For the length of a `with`, signals stop the run in an orderly way. A second signal stops it at once.

    Outside the main thread, where Python delivers no signals, nothing is changed.
    """

    def __init__(
        self, request: Callable[[str], None] | None = None, answered: Callable[[], bool] = lambda: False
    ) -> None:
        """Prepare.

        Args:
            request: asks what is going on to stop, by the name of a signal. None where nobody can be asked: the first signal stops it
                at once.
            answered: whether it has.
        """
        self._request, self._answered = request, answered
        self._heeds = threading.current_thread() is threading.main_thread()
        self._asked = False
        self.waiting = False
        """Whether there is a thread that waits for Ray."""
        self._deadline = float("inf")
        self._handlers = ExitStack()
        self.signum: signal.Signals | None = None
        """The signal that came, if one did."""

    def __enter__(self) -> Self:
        self._handlers.enter_context(handled(self._take))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.close()
        if isinstance(error, Interrupted):
            raise self._stopped(
                error.signum, "at once" if self._asked or self.waiting else "with no update under way"
            ) from None

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, signal.Signals(number)
        if not self.waiting or again or self._request is None:
            raise Interrupted(self.signum)
        self._asked = True
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._request(self.signum.name)

    def _stopped(self, number: signal.Signals, how: str) -> Stopped:
        return Stopped(
            f"stopped by {number.name} {how}: the same command goes on from the last checkpoint",
            number,
            left=self.waiting,
        )

    def _check(self) -> None:
        """Raise again what somebody swallowed."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def wait_for(self, work: Callable[[], object]) -> None:
        """Do the work in a thread, while this one waits for signals (Ray Train would take Ctrl-C for itself otherwise).

        Raises:
            Stopped: a signal came, and the learner did not answer in time.
        """
        if not self._heeds:
            work()
            return
        self._check()
        with ThreadPool(1) as thread:
            result, answered = thread.apply_async(work), False
            self.waiting = True
            while not result.ready() and time.monotonic() < self._deadline:
                result.wait(POLL_SECONDS)
                if self.signum is not None and not answered and self._answered():
                    answered, self._deadline = True, time.monotonic() + GRACE_SECONDS
            if result.ready():
                self.waiting = False
                result.get()
            elif not answered:
                assert self.signum is not None
                raise self._stopped(self.signum, f"without an answer of the learner for {PATIENCE_SECONDS:g} seconds")
