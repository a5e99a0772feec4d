"""Places to write to, looked at before anything slow begins, without writing there; and files that are written whole or not at all,
even where the machine loses its power: some that are lent cheaply go without a word.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from raysuite.errors import UserError

_UMASK = os.umask(0o077)  # there is no other way to read it than to set it
os.umask(_UMASK)
JOBS_CODE = "working_dir_files"
"""Where Ray keeps the code that jobs are submitted with: a place of its own for each submission and machine."""


def in_job() -> bool:
    """Whether this command runs in the copy of the code that was made for a submitted job."""
    return JOBS_CODE in Path.cwd().parts


def whole(path: Path | str) -> Path:
    """A path without `~`, from the root.

    Raises:
        UserError: `~name` of nobody.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"expected a path, got {path}, of which nobody is the user: write it out") from error


def existing(path: Path | str) -> Path:
    """A directory that is there, to read; the path as `whole` gives it.

    Raises:
        UserError: it is not there.
    """
    place = whole(path)
    if not place.is_dir():
        what = "which is a file" if place.exists() else "where there is nothing"
        raise UserError(f"expected a directory that an earlier command wrote, got {place}, {what}: check the path")
    return place


def directory(path: Path | str) -> Path:
    """A directory to work in, which exists or can be made; the path as `whole` gives it.

    Raises:
        UserError: it cannot be made or written.
    """
    place = whole(path)
    for at in (place, *place.parents):
        found = _kind(at, place)
        if found is None:
            continue
        if not stat.S_ISDIR(found):
            raise UserError(f"expected a directory to work in, got {place}, where {at} is {_name(found)}: name another")
        _try(at, place)
        return place
    raise AssertionError("the root is a directory")


def file(path: Path | str) -> Path:
    """A file to write, whose directory exists; the path as `whole` gives it.

    Raises:
        UserError: it cannot be written.
    """
    place = whole(path)
    above = _kind(place.parent, place)
    if above is None or not stat.S_ISDIR(above):
        what = "is not there" if above is None else f"is {_name(above)}"
        raise UserError(f"expected a file in a directory that exists, got {place}: {place.parent} {what}; name another")
    found = _kind(place, place)
    if found is not None and not stat.S_ISREG(found):
        raise UserError(f"expected a file to write, got {place}, which is {_name(found)}: name another")
    _try(place.parent, place)
    return place


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not: of a file, or of a directory
    where there is none yet.

    Raises:
        OSError: what the system answered, for safetensors too, which has an error of its own for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}"
    )  # another machine may write there, with the same process number
    try:
        yield temporary
        _for_others(temporary)
        _to_disk(temporary, *temporary.rglob("*"))
        temporary.replace(path)
        _to_disk(path.parent)
    except SafetensorError as error:
        if (told := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(number := int(told[1]), os.strerror(number), str(path)) from error
    finally:
        _remove(temporary)


def remove_unfinished(directory: Path, *, but: Collection[str] = ()) -> None:
    """Remove what `replacing` was writing anywhere below when its process was killed, and nothing else that is hidden.

    Args:
        directory: which, held by who asks.
        but: what in it is looked after by others.
    """
    for left in [path for path in directory.rglob(".*") if re.search(r"\.[0-9a-f]{32}$", path.name)]:
        if left.relative_to(directory).parts[0] not in but:
            _remove(left)


def _remove(path: Path) -> None:
    """A file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _for_others(path: Path) -> None:
    """Give a file, or all in a directory, the mode that files of this process have: safetensors writes for their owner alone."""
    for at in path.rglob("*") if path.is_dir() else [path]:
        if at.is_file():
            at.chmod(0o666 & ~_UMASK)


def _to_disk(*paths: Path) -> None:
    """Wait until files, and the names that directories hold, are on the disk and not in the system's memory alone."""
    for at in paths:
        opened = os.open(at, os.O_RDONLY)
        try:
            os.fsync(opened)
        except OSError as error:  # some file systems keep no directories, and say so
            if not (at.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}):
                raise
        finally:
            os.close(opened)


def _kind(at: Path, place: Path) -> int | None:
    """What there is, as in `stat`'s mode; None for nothing."""
    try:
        return at.stat().st_mode
    except NotADirectoryError:
        return None  # a parent will be told of
    except FileNotFoundError as error:
        if at.is_symlink():
            raise UserError(
                f"expected a place that can be written, got {place}, where {at} is a link to {at.readlink()}, which is not there: "
                "remove the link, or name another"
            ) from error
        return None
    except OSError as error:
        raise _cannot(place, error) from error


def _name(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device"


def _try(existing: Path, place: Path) -> None:
    """Write a file without a name there, which leaves no trace."""
    try:
        tempfile.TemporaryFile(dir=existing).close()
        if len(os.fsencode(place.name)) > 240:  # temporary files beside it have longer names
            raise OSError(errno.ENAMETOOLONG, "its name is too long")
    except OSError as error:
        raise _cannot(place, error) from error


def _cannot(place: Path, error: OSError) -> UserError:
    return UserError(
        f"expected a place that can be written, got {place}: {(error.strerror or str(error)).lower()}; name another"
    )
