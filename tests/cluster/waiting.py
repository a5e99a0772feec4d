"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_GUARD = 300.0  # seconds


def until(condition: Callable[[], object], what: str) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < HANG_GUARD, f"waited in vain for {what}"
        time.sleep(0.05)
