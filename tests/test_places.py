"""Places that cannot be written are told apart before anything is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from raysuite import places
from raysuite.cli import common
from raysuite.config import load
from raysuite.errors import UserError
from raysuite.rewards.network import check_directory
from raysuite.stages.models import find_model
from raysuite.study.declared import declare
from raysuite.sweeps import declared


def lay_out(root: Path) -> Path:
    """A file, a link to nowhere and one in a circle."""
    (root / "file").write_text("kept")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "circle").symlink_to(root / "circle")
    (root / "folder").mkdir()
    return root


BAD = [
    ("file", "where {root}/file is a file"),
    ("file/below", "where {root}/file is a file"),
    ("dangling", "is a link to {root}/nowhere, which is not there"),
    ("dangling/below", "is a link to {root}/nowhere, which is not there"),
    ("circle", "too many levels of symbolic links"),
    ("x" * 300, "name too long"),
    ("/dev/null", "/dev/null is a device"),
    ("/dev/null/below", "/dev/null is a device"),
    ("/proc/below/it", "expected a place that can be written, got /proc/below/it"),
]


def test_what_safetensors_cannot_write_is_the_systems_answer(tmp_path: Path) -> None:
    """Who looks for a full disk looks at `errno`; safetensors has an error of its own, which has the number in words."""
    with pytest.raises(FileNotFoundError), places.replacing(tmp_path / "tensors") as temporary:
        save_file({"a": np.zeros(2)}, temporary / "below")
    with pytest.raises(SafetensorError), places.replacing(tmp_path / "tensors"):
        raise SafetensorError("of another kind")
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses its power keeps names whose contents it had in memory alone."""
    done, fsync, replace = list[str](), os.fsync, Path.replace

    def synced(opened: int) -> None:
        done.append(Path(f"/proc/self/fd/{opened}").readlink().name)
        fsync(opened)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with places.replacing(tmp_path / "checkpoint") as temporary:
        (temporary / "adapter").mkdir(parents=True)
        (temporary / "adapter" / "weights").write_text("1")
        (temporary / "state").write_text("2")
    assert sorted(done[:4]) == sorted([temporary.name, "adapter", "weights", "state"])
    assert done[4:] == ["to checkpoint", tmp_path.name]


def test_a_file_system_that_keeps_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a mounted bucket: what can be kept is."""

    def write(name: str, refused: Callable[[Path], bool]) -> Path:
        def synced(opened: int) -> None:
            if refused(Path(f"/proc/self/fd/{opened}").readlink()):
                raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "fsync", synced)
        with places.replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
        return tmp_path / name

    assert write("of directories", Path.is_dir).read_text() == "whole"
    with pytest.raises(OSError, match="Invalid argument"):
        write("of files", Path.is_file)
    assert [path.name for path in tmp_path.iterdir()] == ["of directories"]


@pytest.mark.parametrize(("place", "mentions"), BAD, ids=[place[:20] for place, _ in BAD])
def test_a_directory_that_cannot_be_made(place: str, mentions: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError) as refused:
        places.directory(root / place)
    assert mentions.format(root=root) in str(refused.value)
    assert sorted(root.rglob("*")) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("place", "mentions"),
    [
        ("folder", "which is a directory"),
        ("nowhere/page.html", "{root}/nowhere is not there"),
        ("file/page.html", "{root}/file is a file"),
        ("dangling", "which is not there"),
        ("/dev/null", "which is a device"),
        ("/proc/page.html", "expected a place that can be written, got /proc/page.html"),
    ],
)
def test_a_file_that_cannot_be_written(place: str, mentions: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    with pytest.raises(UserError) as refused:
        places.file(root / place)
    assert mentions.format(root=root) in str(refused.value)


@pytest.mark.parametrize("of", [places.directory, places.file])
def test_what_can_be_written_is_given_from_the_root_and_left_alone(
    of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay_out(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))]
    assert of("new") == of("~/new") == root / "new"
    assert of("folder/new") == root / "folder" / "new"
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))] == before


def test_a_file_system_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for of in (places.directory, places.file):
        with pytest.raises(UserError, match="read-only file system; name another"):
            of(tmp_path / "new")


def test_what_is_read_must_be_there(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    assert places.existing(root / "folder") == root / "folder"
    for place, what in (("file", "which is a file"), ("nowhere", "where there is nothing"), ("dangling", "nothing")):
        with pytest.raises(UserError, match=what):
            places.existing(root / place)


NOBODYS = "~nobody-of-this-name/run"
READERS: dict[str, Callable[[str], object]] = {
    "a path": places.whole,
    "a run's declaration": load,
    "a setting": lambda path: load("toy-ddpo", {"model.path": path}),
    "a sweep's declaration": declared.load,
    "what is studied": lambda path: declare(path, objectives=["ddpo"]),
    "who draws": find_model,
    "a reward's model": lambda path: check_directory(path, [], "name another"),
    "where a command works": lambda path: common.place(Path(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_the_home_of_nobody(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / places.JOBS_CODE).mkdir()
    monkeypatch.chdir(tmp_path / places.JOBS_CODE)  # as in a job, which is asked for whole paths
    with pytest.raises(UserError, match=f"got {NOBODYS}, of which nobody is the user: write it out"):
        READERS[reader](NOBODYS)
