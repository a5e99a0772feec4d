"""Ctrl-C and SIGTERM (`ray job stop` sends one) while a run goes on: the learner is asked to stop, and the driver waits for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from types import FrameType, TracebackType
from typing import Any, Self

from raysuite.errors import Stopped
from raysuite.stages.stop import POLL_SECONDS

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 20.0
"""How long the learner has to put its last update on disk; with what Ray takes to end, well within half a minute."""
GRACE_SECONDS = 5.0
"""How long Ray Train has to end by itself after the learner did."""


class Interruption:
    """For the length of a `with`, signals stop the run in an orderly way. A second signal stops it at once.

    Outside the main thread, where Python delivers no signals, nothing is changed.
    """

    def __init__(self, request: Callable[[str], None], answered: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            request: asks what is going on to stop, by the name of a signal.
            answered: whether it has.
        """
        self._request, self._answered = request, answered
        self._heeds = threading.current_thread() is threading.main_thread()
        self._learning = False
        self._deadline = float("inf")
        self._previous: dict[signal.Signals, Any] = {}
        self.signum: signal.Signals | None = None
        """The signal that came, if one did."""

    def __enter__(self) -> Self:
        if self._heeds:
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Take signals; once more after `ray.init`, which takes SIGTERM for itself."""
        for number in self._previous:
            signal.signal(number, self._take)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's own answer, while it starts
            raise self._stopped(signal.SIGTERM, "with no update under way") from None

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.signum = self.signum is not None, signal.Signals(number)
        if not self._learning or again:
            raise self._stopped(self.signum, "at once" if again else "with no update under way")
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._request(self.signum.name)

    def _stopped(self, number: signal.Signals, how: str) -> Stopped:
        return Stopped(f"stopped by {number.name} {how}: the same command goes on from the last checkpoint", number)

    def wait_for(self, work: Callable[[], object]) -> None:
        """Do the work in a thread, while this one waits for signals (Ray Train would take Ctrl-C for itself otherwise).

        Raises:
            Stopped: a signal came, and the learner did not answer in time.
        """
        if not self._heeds:
            work()
            return
        with ThreadPool(1) as thread:
            result = thread.apply_async(work)
            self._learning = True
            while not result.ready():
                result.wait(POLL_SECONDS)
                answered = self.signum is not None and self._answered()
                if answered:
                    self._deadline = min(self._deadline, time.monotonic() + GRACE_SECONDS)
                if time.monotonic() > self._deadline:
                    break
            self._learning = False
            if result.ready():
                result.get()
            elif not answered:
                assert self.signum is not None
                raise self._stopped(self.signum, f"without an answer of the learner for {PATIENCE_SECONDS:g} seconds")
