"""Learner workers without Ray. As a script it is one of several: `RANK=0 WORLD_SIZE=2 ... worker.py DIRECTORY [DIRECTORY ...]`.

Each directory has been claimed by a run, which is gone on with to its end, or to the middle of the update that makes step STOP_AT.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from raysuite.config import RunConfig
from raysuite.families import open_policy
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.stop import StopRequested
from raysuite.stages.train import Training
from tests.cluster import rewards  # noqa: F401 - the configuration names a reward in it
from tests.processes import HANG_GUARD, free_port

ROOT = Path(__file__).parents[2]


def begin(config: RunConfig, directory: Path, check: Callable[[], None] = lambda: None) -> Training:
    """A run in this process, alone."""
    RunDirectory(directory).claim(config, ["test"])
    policy = open_policy(config, torch.device("cpu"))
    return Training(config, directory, policy, LocalCollector(policy, config), Accelerator(cpu=True), check=check)


def stop_in_the_midst(config: RunConfig, directory: Path, *, after: int) -> None:
    """A run whose update after so many is lost: it reached the metrics but no checkpoint."""
    run = begin(config, directory)
    run.resume()
    run.evaluate()
    for _ in range(after):
        run.update()
        run.save()
    run.update()


def train_alone(config: RunConfig, directory: Path) -> Training:
    """The same to its end: what several processes are compared with."""
    run = begin(config, directory)
    run.train()
    return run


def main(*directories: str) -> None:
    for directory in map(Path, directories):
        config = RunDirectory(directory).config()
        # a policy that is spread over workers cannot draw for one of them
        policy, drawing = (open_policy(config, torch.device("cpu")) for _ in range(2))
        accelerator = Accelerator(cpu=True)
        training = Training(config, directory, policy, LocalCollector(drawing, config), accelerator)
        if accelerator.is_main_process and "STOP_AT" in os.environ:
            training.check = lambda optimizer=training.optimizer: stop_at(optimizer, int(os.environ["STOP_AT"]))
        training.train()
        np.save(directory / f"weights{accelerator.process_index}.npy", policy.weights())
    os._exit(0)


def leave(*exception: Any) -> None:
    """End with what an exception says, and nothing else.

    Gloo's threads outlive the group while a device mesh knows it, and one that lets go of a tensor when the interpreter is half gone
    aborts the process: no worker unwinds.
    """
    sys.__excepthook__(*exception)
    sys.stderr.flush()
    os._exit(1)


def stop_at(optimizer: torch.optim.Optimizer, step: int) -> None:
    if any(entry["step"] == step for entry in optimizer.state.values()):
        raise StopRequested("the test")


def start_two(*directories: Path, **environment: str) -> list[subprocess.Popen]:
    """Two processes of this script that go on with runs, one after the other."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    shared["OMP_NUM_THREADS"] = "1"  # or the threads of autograd and gloo spin in each other's way
    shared["PYTHONFAULTHANDLER"] = "1"  # or one that the system kills says nothing
    command = [sys.executable, str(ROOT / "tests/stages/worker.py"), *map(str, directories)]
    return [
        subprocess.Popen(command, env=os.environ | shared | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


def train_with_two(*directories: Path) -> None:
    """Go on with runs to their ends.

    Once more where a thread of Gloo's crashed, as Ray Train does with its workers (`cluster.max_failures`): it was seen once, in
    malloc (docs/log.md, 2026-11-29).
    """
    codes = _ended(directories)
    if {-signal.SIGSEGV, -signal.SIGABRT} & set(codes):  # either is how a broken heap ends a process
        codes = _ended(directories)
    assert codes == [0, 0], f"expected both workers to end well, got exit codes {codes}"


def _ended(directories: Sequence[Path]) -> list[int]:
    workers = start_two(*directories)
    try:
        return [worker.wait(timeout=HANG_GUARD) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def stop_with_two(directory: Path, step: int) -> None:
    """Go on with a run until the first worker is told to stop; the other waits for it, and is then killed, as by Ray Train."""
    first, second = start_two(directory, STOP_AT=str(step))
    assert first.wait(timeout=HANG_GUARD) == 1
    second.kill()
    second.wait()


if __name__ == "__main__":
    sys.excepthook = leave
    main(*sys.argv[1:])
