"""Who works in a directory: one command at a time, on whatever machine.

The lock is a file, so that it holds wherever the directory can be seen. It is linked into its place, which either works or
does not, on shared file systems too. A command that was killed leaves it behind: on the machine where it ran, whether its
process lives decides; from elsewhere, whether it was touched lately, by the clock of the file system.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysuite.background import meanwhile
from raysuite.errors import UserError

FILE = "lock"
TOUCH_SECONDS = 20.0
"""Every how many seconds whoever holds a lock touches it."""
AGAIN_SECONDS = 0.5
FORGOTTEN_SECONDS = 180.0
"""After how many without a touch it may be taken over from another machine."""


@contextmanager
def locked(directory: Path, *, wait: bool | None = None) -> Iterator[None]:
    """Hold a directory, which is made if need be, for the length of a `with`.

    Args:
        directory: which.
        wait: for whoever holds it, until it would be free if that one were gone. By default who has RAY_ADDRESS set, as a submitted
            job has, waits: it may come after one whose machine was lost a moment ago, and has nobody who would give the command
            again.

    A process that finds that it does not hold it any more ends at once with a sentence, and with the status of a `UserError`: whatever
    it would still write, on its way out too, would lie among what another one writes.

    Raises:
        UserError: somebody else holds it, or it cannot be made.
    """
    made = _make(directory)
    file, own = directory / FILE, _card()
    patient = bool(os.environ.get("RAY_ADDRESS")) if wait is None else wait
    try:
        _take(file, own, FORGOTTEN_SECONDS + TOUCH_SECONDS if patient else 0.0)
        try:
            with meanwhile(lambda ended: _touch(file, own, ended)):
                yield
        finally:
            if _read(file) == own:
                file.unlink()
    finally:
        for new in made:  # nothing was put there
            if not any(new.iterdir()):
                new.rmdir()


def _make(directory: Path) -> list[Path]:
    """Make a directory and what is above it; what is new of them, the lowest first."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"expected to work in {directory}, could not make it ({error}): name another") from error
    return new


def _take(file: Path, own: bytes, patience: float) -> None:
    deadline, said = time.monotonic() + patience, False
    while not _placed(file, own):
        found = _read(file)
        if found is None:
            continue  # it was given back meanwhile
        if not _forgotten(file, found):
            if time.monotonic() >= deadline:
                raise UserError(_sentence(file, found))
            if not said:
                logging.getLogger("raysuite").warning(
                    "NOTE: %s is not free, %s: waiting up to %g seconds.", file.parent, _holder(found), patience
                )
                said = True
            time.sleep(AGAIN_SECONDS)
            continue
        _clear(file, found)


def _clear(file: Path, found: bytes) -> None:
    """Remove a lock that was left behind, unless it is gone or is another's by now.

    Of all that found it one may remove it: whoever came second would remove the lock of whoever came first. The kernel
    gives the file to one at a time, and back if its process dies.
    """
    try:
        with file.open("rb+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            if _read(file) == found:  # names its holder, so it is the file that is held
                file.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(
            f"expected to take over {file.parent}, which a command that ended left locked, could not ({error}): remove {file}"
        ) from error


def _placed(file: Path, own: bytes) -> bool:
    """Put the card in place, whole, unless there is one."""
    temporary = file.with_name(f".{FILE}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(own)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            try:  # a file system without links
                with file.open("xb") as opened:
                    opened.write(own)
            except FileExistsError:
                return False
        return True
    except OSError as error:
        raise UserError(f"expected to write into {file.parent}, could not ({error}): name another directory") from error
    finally:
        temporary.unlink(missing_ok=True)


def _touch(file: Path, own: bytes, ended: threading.Event) -> None:
    missing = 0
    while not ended.wait(TOUCH_SECONDS):
        with suppress(OSError):  # a network file system that answers again the next time
            found = _read(file)
            missing = missing + 1 if found is None else 0  # once may be a file system that is mounted again
            if found not in (own, None) or missing > 1:
                _leave(file, found)
            os.utime(file)


def _leave(file: Path, found: bytes | None) -> None:
    """End the process: it stood still, or could not reach the directory, for so long that it was taken for gone."""
    since = _holder(found) if found is not None else "which has ended since, or somebody removed its lock"
    logging.getLogger("raysuite").error(
        "raysuite: expected to hold %s, another command has taken it over (%s): this process was stopped, or out of reach, for more "
        "than %g minutes; it ends and writes no more there. Give the same command again when the directory is free",
        *(file.parent, since, FORGOTTEN_SECONDS / 60),
    )
    os._exit(UserError.status)


def _card() -> bytes:
    """Who this process is."""
    card = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "began": _began(os.getpid()),
        "id": uuid.uuid4().hex,
    }
    return json.dumps(card).encode()


def _machine() -> str:
    """Names the place where numbers of processes mean the same: a boot of a machine, and a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: numbers of processes come round. None where there is none to see."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _forgotten(file: Path, found: bytes) -> bool:
    """Whether nobody is there any more who put it down."""
    card = _parsed(found)
    if card.get("machine") == _machine():
        try:
            os.kill(card["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        return bool(card["began"] != _began(card["pid"]))
    probe = file.with_name(f".{FILE}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - file.stat().st_mtime > FORGOTTEN_SECONDS
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _parsed(found: bytes) -> dict[str, Any]:
    try:
        card = json.loads(found)
        return card if isinstance(card, dict) else {}
    except ValueError:  # being written, where there are no links
        return {}


def _holder(found: bytes) -> str:
    card = _parsed(found)
    return (
        f"process {card['pid']} on {card['host']} works there since {card['since']}" if card else "somebody works there"
    )


def _sentence(file: Path, found: bytes) -> str:
    here = _parsed(found).get("machine") == _machine()
    gone = "" if here else f" (if it is gone, remove {file}, or wait {FORGOTTEN_SECONDS / 60:g} minutes)"
    return f"expected {file.parent} to be free, {_holder(found)}{gone}: wait until it has ended or stop it, or name another directory"
