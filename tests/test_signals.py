"""Ctrl-C and SIGTERM in this process. Whole commands are stopped in tests/cluster/test_stopping.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import pytest

from raysuite.cluster.interrupt import Interruption
from raysuite.errors import Stopped
from raysuite.signals import SIGNALS, Interrupted, handled, heeded, postponed
from tests.processes import HANG_GUARD


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_what_would_swallow_it(number: signal.Signals) -> None:
    heard: list[int] = []
    with handled(lambda which, frame: heard.append(which)):
        with postponed():
            with contextlib.suppress(Exception):
                send(number)
            send(number)
            assert not heard
        assert heard == [number]
        with postponed():
            signal.signal(number, signal.SIG_IGN)  # as Ray does
        send(number)
    assert heard == [number, number]


def test_how_ray_answers_sigterm_while_it_starts_is_a_signal_too() -> None:
    heard: list[int] = []
    with handled(lambda which, frame: heard.append(which)), postponed():
        signal.signal(signal.SIGTERM, lambda which, frame: sys.exit(which))
        send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("ray_runs", [False, True])
def test_a_command_leaves_at_once_until_ray_runs(ray_runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: ray_runs)
    left: list[int] = []
    expected = pytest.raises(Interrupted, match="SIGINT") if ray_runs else contextlib.nullcontext()
    with expected, heeded(left.append):
        send(signal.SIGINT)
    assert left == ([] if ray_runs else [signal.SIGINT])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_learning_stops_the_run_even_if_what_it_raised_is_swallowed(
    number: signal.Signals,
) -> None:
    def run() -> None:
        with Interruption(lambda who: None, lambda: True) as interruption:
            with contextlib.suppress(BaseException):
                send(number)
            interruption.wait_for(lambda: pytest.fail("it went on"))

    with pytest.raises(Stopped, match=f"stopped by {number.name} with no update under way") as stopped:
        run()
    assert stopped.value.status == 128 + number


def test_what_cannot_be_asked_to_stop_is_left_at_once() -> None:
    """By the first signal, without the time that a learner has for its last update."""
    going, left = threading.Event(), threading.Event()

    def work() -> None:
        going.set()
        left.wait(HANG_GUARD)

    def run() -> None:
        with Interruption() as interruption:
            threading.Thread(target=lambda: going.wait(HANG_GUARD) and send(signal.SIGINT)).start()
            interruption.wait_for(work)

    with pytest.raises(Stopped, match="stopped by SIGINT at once") as stopped:
        run()
    left.set()
    assert stopped.value.status == 130 and stopped.value.left
