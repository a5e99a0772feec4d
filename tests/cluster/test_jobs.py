"""`ray job submit` against a `ray start --head` that somebody started by hand."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import typer.main

from raysuite import cli
from raysuite.stages.checkpoint import completed
from raysuite.stages.files import RunDirectory
from tests.processes import free_port, until

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
PLANTED = ("runs/old/checkpoint", ".venv/lib/torch", ".venv-peer/lib/torch")
Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has in front of them: the code, old runs, environments."""
    checkout = tmp_path_factory.mktemp("user") / "checkout"
    checkout.mkdir()
    for name in ("raysuite", "jobs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", checkout)
    for path in PLANTED:
        (checkout / path).parent.mkdir(parents=True)
        (checkout / path).write_text("large")
    return checkout


def answers(port: int, token: str) -> bool:
    """Whether the head takes jobs: asked without `ray job`, which takes seconds to start."""
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(question, timeout=10):
        return True
    return False


@pytest.fixture(scope="module")
def head(checkout: Path) -> Iterator[tuple[Path, Submit]]:
    """Ray's folder, and a way to run `ray job` against it. The cluster asks for a token of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: sockets lie in it
    dashboard, ray, secret = free_port(), str(Path(sys.executable).parent / "ray"), secrets.token_hex()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "PYTHONPATH"
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secret,
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_worker_niceness": "0",  # as in tests/conftest.py
        "RAY_agent_register_timeout_ms": "120000",  # a busy machine is slow, not broken
    }
    ports = {
        "port": 0,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": 0,
        "ray-client-server-port": free_port(),
    }
    started = subprocess.Popen(
        [ray, "start", "--head", "--block", "--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}"]
        + [f"--{name}={port}" for name, port in ports.items()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def job(*words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        verb, *rest = words
        return subprocess.run(
            [ray, "job", verb, "--address", f"http://127.0.0.1:{dashboard}", *rest],
            env=environment if token is None else environment | {"RAY_AUTH_TOKEN": token},
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        until(lambda: started.poll() is not None or answers(dashboard, secret), "the head")
        assert started.poll() is None
        yield folder, job
    finally:
        started.kill()  # told to stop, it would wait half a minute for its processes
        for process in psutil.process_iter(["cmdline"]):
            if any(str(folder) in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        started.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", ["train", "evaluate", "encode", "directions", "sweep", "writer"])
def test_a_job_is_the_command_of_its_name(name: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    words = [sys.executable, f"jobs/{name}.py", "--help"]
    shown = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert command.help.splitlines()[0] in shown


def toy(out: Path, **settings: object) -> list[str]:
    fixed = {"updates": 1, "evaluation.final_samples": 2, "rollouts.samples": 4, "learn.minibatches": 1}
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    return ["toy-ddpo", "--out", str(out), *(f"--set={path}={value}" for path, value in {**fixed, **changed}.items())]


@pytest.mark.slow
def test_jobs_train_and_fail(head: tuple[Path, Submit], tmp_path: Path) -> None:
    folder, job = head
    assert job("list", token="another").returncode != 0

    trained = job("submit", "--working-dir", ".", "--", "python", "jobs/train.py", *toy(tmp_path / "run"))
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "redness" in trained.stdout and "report: " in trained.stdout
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["phase"] == "done"
    (uploaded,) = (p for p in folder.glob("session_latest/runtime_resources/working_dir_files/*") if p.is_dir())
    assert (uploaded / "raysuite" / "cluster" / "launch.py").exists()
    assert not [path for path in PLANTED if (uploaded / path).exists()]

    failed = job(
        "submit", "--working-dir", ".", "--", "python", "jobs/train.py", *toy(tmp_path / "bad", cluster__workers=9)
    )
    assert failed.returncode != 0
    assert "expected the blocks of an update" in failed.stdout and "Traceback" not in failed.stdout


@pytest.mark.exhaustive  # tests/cluster/test_stopping.py sends the signals that Ray sends
def test_a_job_is_stopped(head: tuple[Path, Submit], tmp_path: Path) -> None:
    job, out = head[1], tmp_path / "long"
    words = ("--working-dir", ".", "--no-wait", "--submission-id", "long", "--", "python", "jobs/train.py")
    rarely = {"checkpoints__every": 1_000_000, "evaluation__every": 1_000_000}
    assert job("submit", *words, *toy(out, updates=100_000, **rarely)).returncode == 0
    until(lambda: len(RunDirectory(out).metrics().get("train/reward", ())) >= 2, "two updates")
    stopped = job("stop", "long")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "STOPPED" in job("status", "long").stdout.upper()
    (checkpoint,) = completed(out / "checkpoints")  # the run had no reason of its own to write one
    said = json.loads((out / "failure.json").read_text())["message"]
    assert said.startswith("stopped by SIGTERM") and f"checkpoints/{checkpoint.name} is the last" in said


@pytest.mark.exhaustive
def test_a_writer_is_made_by_jobs(head: tuple[Path, Submit], tmp_path: Path) -> None:
    """Pairs by rollout actors of the cluster, and training in Ray Train there."""
    _, job = head
    small = ("--prompts", "4", "--draws", "2", "--pictures", "2", "--margin", "0", "--set", "sampler.steps=2")
    pairs, made = tmp_path / "pairs", tmp_path / "made"
    for words in (("pairs", "--out", str(pairs), *small), ("train", str(pairs), "--out", str(made), "--epochs", "1")):
        done = job("submit", "--working-dir", ".", "--", "python", "jobs/writer.py", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"writer: {made}" in done.stdout and (made / "writer" / "model.safetensors").is_file()
    assert not (made / "ray").exists() and not (made / "checkpoints").exists()
