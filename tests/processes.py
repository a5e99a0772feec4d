"""What tests of several processes share."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

import psutil

HANG_GUARD = 300.0  # seconds


def until(condition: Callable[[], object], what: str, *, every: float = 0.05) -> None:
    """Wait for what another process does, looking for it again after so many seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < HANG_GUARD, f"waited in vain for {what}"
        time.sleep(every)


def free_port() -> int:
    """A port that stays free until it is used: neither the system nor Ray's workers take any of this range by themselves."""
    for port in random.sample(range(20_000, 32_768), 1_000):
        with contextlib.closing(socket.socket()) as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port
    raise OSError("expected a free port between 20000 and 32767, found none")


def below(process: subprocess.Popen) -> Sequence[psutil.Process]:
    """All processes that one has started, and those have started."""
    return psutil.Process(process.pid).children(recursive=True)


def called(name: str) -> list[psutil.Process]:
    """Processes below this one that have something in their command line; Ray's say what they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended as it was looked at
            found += [process] if name in " ".join(process.cmdline()) else []
    return found


def ended(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end by themselves. Returns those that did not."""
    return psutil.wait_procs(processes, timeout=HANG_GUARD)[1]


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone: what they were doing to files is done."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not ended(processes)
