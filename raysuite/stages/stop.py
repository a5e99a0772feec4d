"""A request to stop: a file in the run directory, so that it reaches a learner on any machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from raysuite.places import replacing

FILE = "stop"
POLL_SECONDS = 0.2


class StopRequested(Exception):
    """Somebody wants the run to stop; the message says who."""


class StopFile:
    """Looks for the request a few times a second. As a `with`, it forgets requests at the end."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._looked = 0.0

    def request(self, who: str) -> None:
        """Ask whoever watches to stop."""
        with replacing(self._file) as temporary:
            temporary.write_text(who)

    def forget(self) -> None:
        """What was asked of an earlier attempt. Whoever begins a run does so: the run itself may be asked as it starts."""
        self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.forget()

    def check(self) -> None:
        """Nothing, unless there is a request.

        Raises:
            StopRequested: there is.
        """
        if time.monotonic() - self._looked < POLL_SECONDS:
            return
        self._looked = time.monotonic()
        if self._file.exists():
            raise StopRequested(self._file.read_text())
