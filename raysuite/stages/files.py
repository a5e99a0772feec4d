"""A run directory: what a run leaves behind. Every file is written whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raysuite.config import RunConfig, validate
from raysuite.errors import UserError

PACKAGES = ("raysuite", "ray", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "scipy")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_held(
    directory: Path,
    name: str,
    wanted: Mapping[str, Any],
    what: str,
    settled: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda found: found,
) -> bool:
    """Whether a directory already belongs to what is about to be put there; False where it is new or empty.

    Args:
        directory: where to.
        name: of the JSON file that says whose it is.
        wanted: what decides the content.
        what: it is, in a word.
        settled: that part of what the file says.

    Raises:
        UserError: it holds something else.
    """
    file = directory / name
    if file.exists():
        found = settled(json.loads(file.read_text()))
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if differing:
            raise UserError(
                f"expected {directory} to hold this {what}, got one that differs in {', '.join(differing)}: name another --out, "
                "or repeat the command that began it"
            )
        return True
    if directory.exists() and any(directory.iterdir()):
        raise UserError(
            f"expected an empty or new directory, or one that holds this {what}, got {directory}: name another --out"
        )
    return False


class RunDirectory:
    """The files of one run. Opening it checks that it belongs to the configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def claim(self, config: RunConfig, command: Sequence[str]) -> None:
        """Make the directory this configuration's, or find that it already is.

        Where work runs, what watches it and how long rewards may take may change between the parts of a run; nothing
        else may. A setting that the run's version did not have is at its default there.

        Raises:
            UserError: the directory holds something else.
        """
        file = self.path / "config.json"

        def identity(found: dict[str, Any]) -> dict[str, Any]:
            try:
                return validate(found).identity()
            except UserError as error:
                raise UserError(f"expected {file} of a run, this version cannot read it: {error}") from error

        is_held(self.path, file.name, config.identity(), "run", identity)
        write_json(file, config.canonical())
        known = self.path / "provenance.json"
        if known.exists():  # the run began elsewhere or earlier: what began it stays, what goes on with it is added
            began = json.loads(known.read_text())
            write_json(known, {**began, "continued": [*began.get("continued", []), provenance(command)]})
        else:
            write_json(known, provenance(command))

    def config(self) -> RunConfig:
        """What the run in the directory was declared as.

        Raises:
            UserError: there is none.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise UserError(
                f"expected a run in {self.path}, found no config.json: name the --out of a `raysuite train`"
            )
        return validate(json.loads(file.read_text()))

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Append metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            for name, value in values.items():
                file.write(json.dumps({"update": update, "name": name, "value": value}) + "\n")

    def metrics(self) -> dict[str, dict[int, float]]:
        """Every metric that was logged, by name and update. A line that was being written when a run was killed is none."""
        found: dict[str, dict[int, float]] = {}
        for _, row in self._logged():
            found.setdefault(row["name"], {})[row["update"]] = row["value"]
        return found

    def _logged(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of metrics.jsonl, and what they say."""
        file = self.path / "metrics.jsonl"
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                yield line, json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue

    def ledger(self) -> dict[str, Any]:
        """What the run has cost so far; empty before anything did."""
        file = self.path / "ledger.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def evaluated(self, update: int) -> bool:
        """Whether the policy after so many updates was evaluated to the end: its metrics are written last."""
        return any(update in values for name, values in self.metrics().items() if name.startswith("evaluation/"))

    def rewind(self, updates: int) -> None:
        """Drop what lies beyond a checkpoint: metrics of later updates, evaluations of later policies."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            kept = [
                line
                for line, row in self._logged()
                if row["update"] < updates or (row["update"] == updates and row["name"].startswith("evaluation/"))
            ]
            with replacing(file) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))
        for score in self.path.glob("scores/*.parquet"):
            if int(score.stem) > updates:
                score.unlink()

    def write_scores(self, update: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """One evaluation's scores."""
        with replacing(self.path / "scores" / f"{update:06d}.parquet") as temporary:
            pq.write_table(pa.table(dict(columns)), temporary)

    def write_image(self, update: int, name: str, image: np.ndarray) -> None:
        """One evaluation picture, uint8 (H, W, 3)."""
        with replacing(self.path / "images" / f"{update:06d}" / f"{name}.png") as temporary:
            Image.fromarray(image).save(temporary, format="PNG")

    def progress(self, **values: object) -> None:
        """Say what the run is doing now."""
        write_json(self.path / "progress.json", values)


def _accelerator() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What produced a run: versions, commit, command."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    source = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            run = subprocess.run(["git", *words], cwd=source, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None  # installed from a wheel: the version says it all
        return run.stdout.strip()

    status = git("status", "--porcelain")
    return {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
    }
