"""What tests of several processes share."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

HANG_GUARD = 300.0  # seconds


def until(condition: Callable[[], object], what: str, *, every: float = 0.05) -> None:
    """Wait for what another process does, looking for it again after so many seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < HANG_GUARD, f"waited in vain for {what}"
        time.sleep(every)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
