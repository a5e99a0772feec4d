"""Who works in a directory, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raysuite.errors import UserError
from raysuite.stages import lock
from raysuite.stages.lock import locked
from tests.processes import HANG_GUARD, until

HOLD = """
import sys, time
from pathlib import Path
from raysuite.stages.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_directory_is_held_by_one_process_until_it_ends_or_dies(tmp_path: Path) -> None:
    out = tmp_path / "above" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    expected = rf"expected {out} to be free, process {holder.pid} on .* works there since 20.*: wait until it has ended"
    with pytest.raises(UserError, match=expected), locked(out):
        pass
    assert json.loads((out / "lock").read_text())["pid"] == holder.pid
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(out):  # what a dead process left is taken over
        assert json.loads((out / "lock").read_text())["pid"] == os.getpid()
    assert not any(out.iterdir())
    holder.stdout.close()


def test_of_a_directory_in_which_nothing_was_put_nothing_is_left(tmp_path: Path) -> None:
    with locked(tmp_path / "above" / "run"):
        pass
    assert not any(tmp_path.iterdir())


def test_what_was_put_there_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_the_number_of_a_process_that_came_round_again_is_another_process(tmp_path: Path) -> None:
    card = json.loads(lock._card())
    (tmp_path / "lock").write_text(json.dumps({**card, "began": "1"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["began"] == card["began"]


def test_a_lock_of_another_machine_is_taken_over_when_it_was_not_touched_for_long(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    card = json.loads(lock._card())
    file.write_text(json.dumps({**card, "host": "elsewhere", "machine": "elsewhere"}))
    expected = rf"process {os.getpid()} on elsewhere works there .*\(if it is gone, remove {file}, or wait 3 minutes\)"
    with pytest.raises(UserError, match=expected), locked(tmp_path):
        pass
    now = file.stat().st_mtime
    os.utime(file, (now - lock.FORGOTTEN_SECONDS - 1,) * 2)
    with locked(tmp_path):
        assert json.loads(file.read_text())["host"] == card["host"]


def test_a_job_waits_until_the_lock_of_a_lost_machine_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    for name, seconds in {"FORGOTTEN_SECONDS": 0.3, "TOUCH_SECONDS": 1.5, "AGAIN_SECONDS": 0.05}.items():
        monkeypatch.setattr(lock, name, seconds)
    card = json.loads(lock._card())
    file = tmp_path / "lock"
    file.write_text(json.dumps({**card, "host": "elsewhere", "machine": "elsewhere"}))
    touched = file.stat().st_mtime + 1  # or a slow machine may have forgotten it before it looks
    os.utime(file, (touched, touched))
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["host"] == card["host"]
        (said,) = (record.getMessage() for record in caplog.records)
        assert "is not free, process" in said and "on elsewhere works there since" in said
        with pytest.raises(UserError, match="to be free"), locked(tmp_path):
            pass  # whoever lives is not waited for without end


def test_whoever_holds_a_lock_touches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        until(lambda: (tmp_path / "lock").stat().st_mtime > 0, "a touch")


HOLD_LONG = f"from raysuite.stages import lock\nlock.TOUCH_SECONDS = 0.01\n{HOLD}"


@pytest.mark.parametrize("given_back", [False, True], ids=["held", "given back"])
def test_who_was_taken_for_gone_ends_and_leaves_the_lock_to_its_successor(given_back: bool, tmp_path: Path) -> None:
    """As one wakes on a machine that stood still."""
    words = [sys.executable, "-c", HOLD_LONG, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        other = json.dumps({**json.loads(lock._card()), "host": "elsewhere"})
        (tmp_path / "lock").unlink()
        if not given_back:
            (tmp_path / "lock").write_text(other)
        holder.send_signal(signal.SIGCONT)
        _, said = holder.communicate(timeout=HANG_GUARD)
    assert holder.returncode == 2
    told = (
        "which has ended since, or somebody removed its lock"
        if given_back
        else f"process {os.getpid()} on elsewhere works there since"
    )
    assert f"expected to hold {tmp_path}, another command has taken it over ({told}" in said
    assert "Traceback" not in said
    if not given_back:
        assert (tmp_path / "lock").read_text() == other


def test_of_many_that_want_it_at_once_one_has_it(tmp_path: Path) -> None:
    for turn in range(20):  # what is rare in one is not in all
        directory = tmp_path / str(turn)
        directory.mkdir()
        (directory / "lock").write_text(json.dumps({**json.loads(lock._card()), "began": "1"}))  # forgotten
        had, refused = _all_at_once(8, directory)
        assert (had, refused) == (1, 7)


def _all_at_once(count: int, directory: Path) -> tuple[int, int]:
    """Of so many that want a directory at the same time, how many had it at once and how many were refused."""
    inside, refused, most = [], [], [0]
    barrier, done = threading.Barrier(count), threading.Event()

    def want() -> None:
        barrier.wait()
        try:
            with locked(directory):
                inside.append(1)
                most.append(len(inside))
                done.wait(30)
                inside.pop()
        except UserError as error:
            refused.append(str(error))
        if len(refused) == count - 1:
            done.set()

    threads = [threading.Thread(target=want) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(most), len(refused)


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not make it"), locked(tmp_path / "file" / "run"):
        pass
