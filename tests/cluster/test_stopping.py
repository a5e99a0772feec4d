"""A command is stopped whenever the signal comes: real processes, and signals at known events of their start and at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raysuite.cli import main
from tests.processes import HANG_GUARD, until

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]

RUN = ["--set", "updates=1000000", "--set", "checkpoints.every=1000000", "--set", "evaluation.every=1000000"]


def child(name: str) -> Callable[[psutil.Process, Path], bool]:
    """Whether a process of this name is below the command's."""

    def found(driver: psutil.Process, out: Path) -> bool:
        return any(name in process.name() for process in driver.children(recursive=True))

    return found


def torch_is_loaded(driver: psutil.Process, out: Path) -> bool:
    """The command has begun, and imports what it needs."""
    return any("libtorch" in mapped.path for mapped in driver.memory_maps())


MOMENTS: dict[str, tuple[signal.Signals, Callable[[psutil.Process, Path], bool], float]] = {
    "libraries are imported": (signal.SIGTERM, torch_is_loaded, 0.0),
    "Ray's first process is there": (signal.SIGINT, child("gcs_server"), 0.0),
    "Ray's last process is there": (signal.SIGTERM, child("raylet"), 0.0),
    "a rollout actor is there": (signal.SIGINT, child("RolloutActor"), 0.0),
    "at random, Ctrl-C": (signal.SIGINT, torch_is_loaded, 8.0),
    "at random, SIGTERM": (signal.SIGTERM, torch_is_loaded, 8.0),
}
"""Which signal, after what, and how many seconds later at most."""
MARKS = {"libraries are imported": [], "a rollout actor is there": [pytest.mark.slow]}
"""The earliest, and the latest of those before the learner: `tests/cluster/test_chaos.py` stops a learner at work."""


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=MARKS.get(moment, [pytest.mark.exhaustive])) for moment in MOMENTS]
)
def test_a_run_is_stopped_whenever_the_signal_comes(
    moment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number, event, later = MOMENTS[moment]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "raysuite.cli", "train", "toy-ddpo", *RUN, "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        process = psutil.Process(driver.pid)
        until(lambda: driver.poll() is not None or event(process, out), moment, every=0.01)
        time.sleep(random.uniform(0, later))
        if "actor" in moment:  # meanwhile nobody else works there
            for other in (["train", "toy-ddpo", *RUN, "--out", str(out)], ["evaluate", str(out), "--checkpoint", "0"]):
                with pytest.raises(SystemExit) as refused:
                    main(other)
                assert refused.value.code == 2
                assert f"expected {out} to be free, process {driver.pid} on " in capsys.readouterr().err
        os.killpg(driver.pid, number)  # as a terminal does
        said = driver.communicate(timeout=HANG_GUARD)[1]
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
    assert driver.returncode == 128 + number, said
    assert said.startswith(f"raysuite: stopped by {number.name}") and said.count("\n") == 1, said
