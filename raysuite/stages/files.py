"""A run directory: what a run leaves behind. Every file is written whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from raysuite.config import SPLITS, RunConfig, is_foreign, validate
from raysuite.cpus import processor, usable_cpus
from raysuite.errors import UserError
from raysuite.places import remove_unfinished, replacing
from raysuite.rewritten import FILE
from raysuite.stages import prompt_files
from raysuite.stages.rewrites import digest_of

UNBEGUN = (FILE, "choosing", "texts", "images", "scores", "ledger.json", "progress.json", "failure.json")
"""What a run leaves behind before it has begun: what it made of its prompts, and of a first evaluation that did not end. With other
settings it would be something else."""
ENDS = 1 << 24
"""Bytes at both ends of a file that is not read whole to know it."""
TENDED_ELSEWHERE = ("checkpoints", "suites", "trackers")
"""Of a run directory: what is looked after where it is written, or under a lock of its own."""
PACKAGES = ("raysuite", "ray", "torch", "diffusers", "transformers", "accelerate", "peft", "trl", "numpy", "scipy")


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(path: str) -> str:
    """By what a model is known again: a digest of the files of a directory, or of one; the name of what is elsewhere.

    Of large files it has the size and both ends, so that tens of gigabytes take no minutes: training changes all weights. Hidden
    files and what there is to read (.md) decide nothing.
    """
    root = Path(path)
    if not root.exists():
        return path
    whole = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        name = file.relative_to(root)
        if file.is_file() and file.suffix != ".md" and not any(part[0] == "." for part in name.parts):
            size = file.stat().st_size
            whole.update(f"{name.as_posix()} {size}\n".encode())
            with file.open("rb") as opened:
                whole.update(opened.read(ENDS))
                opened.seek(max(ENDS, size - ENDS))
                whole.update(opened.read())
    return whole.hexdigest()


def is_held(
    directory: Path,
    name: str,
    wanted: Mapping[str, Any],
    what: str,
    settled: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda found: found,
    *,
    begun: Sequence[str],
) -> bool:
    """Whether a directory already belongs to what is about to be put there; False where it is new or empty, or nothing was
    done yet of what it belongs to (a command that failed on the way there has been mended).

    Args:
        directory: where to.
        name: of the JSON file that says whose it is.
        wanted: what decides the content.
        what: it is, in a word.
        settled: that part of what the file says.
        begun: patterns of files of which one is there as soon as there is something to lose.

    Raises:
        UserError: it holds something else.
    """
    file = directory / name
    if file.exists():
        differing = list(differences(settled(read_json(file, what)), wanted))
        if differing and _any(directory, begun):
            shown = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if differing[3:] else "")
            raise UserError(
                f"expected {directory} to hold this {what}, got one that differs in {shown}: name another --out, or repeat the "
                "command that began it"
            )
        return not differing
    refuse_occupied(directory, name, what)
    return False


def refuse_occupied(directory: Path, name: str, what: str) -> None:
    """The part of `is_held` that needs nothing but the directory: for those who have to open a model to know what they want.

    Raises:
        UserError: something is there, and no file of that name.
    """
    if (directory / name).exists() or not directory.exists():
        return
    if any(path.name != "lock" and path.name[0] != "." for path in directory.iterdir()):
        raise UserError(
            f"expected an empty or new directory, or one that holds this {what}, got {directory}: name another --out"
        )


def claim(
    directory: Path,
    name: str,
    wanted: Mapping[str, Any],
    what: str,
    command: Sequence[str],
    settled: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda found: found,
    *,
    begun: Sequence[str],
) -> None:
    """Make a directory this command's, or find that it is: `is_held`, and a provenance beside it. What one that was killed left
    half-written goes.

    Raises:
        UserError: it holds something else.
    """
    held, beside = is_held(directory, name, wanted, what, settled, begun=begun), directory / "provenance.json"
    if held:
        remove_unfinished(directory)
    else:
        write_json(directory / name, wanted)
    if not (held and beside.exists()):
        write_json(beside, provenance(command))


def _any(directory: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in directory.glob(pattern))


def read_json(file: Path, what: str, kind: type = dict) -> Any:
    """What a JSON file holds.

    Args:
        file: which.
        what: it belongs to, in a word.
        kind: of its outermost value.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, kind):
            raise ValueError(f"expected a {kind.__name__}, got a {type(found).__name__}")
        return found
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected {file} of a {what}, it is damaged ({error}): copy it from where it is whole, or name another --out"
        ) from error


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Every setting that is another, by its path, with both values."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        there, here = (json.dumps(value) for value in (found, wanted))
        yield f"{path} ({_short(there)} there, {_short(here)} here)"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what a run reads, by the setting that names it: the same path may hold something else the next time."""
    named = {f"prompts.{split}": getattr(config.prompts, split) for split in SPLITS}
    digests = {
        s: prompt_files.digest(source) for s, source in named.items() if source not in (None, *prompt_files.BUILT_IN)
    }
    if config.prompts.writer is not None and (writer := digest_of(config.prompts.writer)):
        digests["prompts.writer"] = writer
    for name in ("source", "held_out"):
        place: str | None = getattr(config.preferences, name)
        if place is not None and (summary := Path(place) / "summary.json").is_file():
            digests[f"preferences.{name}"] = digest(summary)
    models: dict[str, Any] = {"model.path": config.model.path, "parameters.start": config.parameters.start}
    for reward in (*config.rewards, *config.watched):
        models[f"the model of {reward.name}"] = reward.model
        models[f"options.clip of {reward.name}"] = reward.options.get("clip")
    digests |= {
        s: content(m) for s, m in models.items() if isinstance(m, str) and Path(m).is_absolute() and Path(m).exists()
    }
    if config.rollouts.replay is not None:
        replayed = Path(config.rollouts.replay) / "provenance.json"
        if replayed.is_file():  # gigabytes of rollouts are known by when their run began
            digests["rollouts.replay"] = str(read_json(replayed, "run")["date"])
    return digests


def edited(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first setting that names something whose digest is another."""
    return next((setting for setting in sorted(before.keys() & now.keys()) if before[setting] != now[setting]), None)


def was_edited(setting: str, what: str) -> UserError:
    """That what a setting names is not what it was."""
    return UserError(
        f"expected what {setting} names as it was when {what} began, its content was changed: put it back, or name another --out"
    )


def trained_rewards(metrics: Mapping[str, Mapping[int, float]], config: RunConfig, split: str) -> dict[int, float]:
    """The trained reward on a split's prompts at every evaluation, by the updates before it, ascending.

    Args:
        metrics: of the run, by name and update.
        config: of the run.
        split: `training`, `held_out` or `test`.
    """
    terms = [(metrics.get(f"evaluation/{split}/{reward.name}", {}), reward.weight) for reward in config.rewards]
    updates = sorted(set.intersection(*(set(values) for values, _ in terms)))
    return {update: sum(weight * values[update] for values, weight in terms) for update in updates}


class RunDirectory:
    """The files of one run. Opening it checks that it belongs to the configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def claim(self, config: RunConfig, command: Sequence[str]) -> None:
        """Make the directory this configuration's, or find that it already is.

        Where work runs, what watches it, how long it goes on, how many checkpoints stay and how long rewards may take may
        change between the parts of a run; nothing else may. A run of which nothing was done yet gives way, with what lies there of
        it. A setting that the run's version did not have is at its default there.

        Raises:
            UserError: the directory holds something else.
        """
        file = self.path / "config.json"

        def identity(found: dict[str, Any]) -> dict[str, Any]:
            objective = found.get("objective") or {}
            if is_foreign(objective.get("name"), config.objective["name"]):
                return {**config.identity(), "objective": objective}
            try:
                return validate(found).identity()
            except UserError as error:
                raise UserError(f"expected {file} of a run, this version cannot read it: {error}") from error

        begun = ("checkpoints/[0-9]*", "metrics.jsonl", "rollouts/*")
        held = is_held(self.path, file.name, config.identity(), "run", identity, begun=begun)
        if held:
            remove_unfinished(self.path, but=TENDED_ELSEWHERE)
        known, read = self.path / "provenance.json", inputs(config)
        began = read_json(known, "run") if held and known.exists() else {}
        before = began.get("inputs", {})
        changed = edited(before, read)
        if changed and _any(self.path, begun):
            raise was_edited(changed, f"the run in {self.path}")
        if changed or not held:  # nothing ties what lies there to what is claimed now
            self._drop_unbegun()
        if began:  # what began the run stays, what goes on with it is added
            told = {
                **began,
                "inputs": before | read,
                "continued": [*began.get("continued", []), provenance(command)],
            }
        else:
            told = {**provenance(command), "inputs": read}
        write_json(file, config.canonical())
        write_json(known, told)

    def _drop_unbegun(self) -> None:
        for place in (self.path / name for name in UNBEGUN):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def inputs(self) -> dict[str, str]:
        """Digests of what the run read when it began, by the setting that names it."""
        return dict(read_json(self.path / "provenance.json", "run").get("inputs", {}))

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
        return validate(read_json(file, "run"))

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Append metrics. They are on the disk before a checkpoint that says so is."""
        # what follows in the same line would make it a damaged one among others
        if _breaks_off(self.path / "metrics.jsonl"):
            self._keep(line for line, _ in self._logged())
        with (self.path / "metrics.jsonl").open("a") as file:
            for name, value in values.items():
                file.write(json.dumps({"update": update, "name": name, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> dict[str, dict[int, float]]:
        """Every metric that was logged, by name and update. A line that was being written when a run was killed is none."""
        found: dict[str, dict[int, float]] = {}
        for _, row in self._logged():
            found.setdefault(row["name"], {})[row["update"]] = row["value"]
        return found

    def _logged(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of metrics.jsonl, and what they say.

        Raises:
            UserError: a line before the last is none.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().splitlines() if file.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                known = {name: row[name] for name in ("update", "name", "value")}
                yield line.decode(), known
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):  # it was being written when the run was killed
                    return
                raise self._damaged(f"line {number} is no metric", "it and checkpoints/ to begin again") from error

    def _keep(self, lines: Iterable[str]) -> None:
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))

    def _damaged(self, how: str, begin: str) -> UserError:
        return UserError(
            f"expected {self.path / 'metrics.jsonl'} as the run wrote it, {how}: it was changed or cut short, and going on would not "
            f"write again what is missing; copy it back from where it is whole, or remove {begin}"
        )

    def check_metrics(self, updates: int) -> None:
        """Look whether all that was logged until a checkpoint after so many updates is still there.

        Raises:
            UserError: something is missing or damaged.
        """
        found = self.metrics()
        missing = sorted(set(range(updates)) - set(found.get("budget/network_evaluations", {})))
        if missing:
            raise self._damaged(
                f"the metrics of update {missing[0]} are missing",
                f"the checkpoints after {missing[0]} updates to go on from before",
            )
        if updates and not any(0 in values for name, values in found.items() if name.startswith("evaluation/")):
            raise self._damaged("those of the first evaluation are missing", "checkpoints/ to begin again")

    def ledger(self) -> dict[str, Any]:
        """What the run has cost so far; empty before anything did."""
        file = self.path / "ledger.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def evaluated(self, config: RunConfig, update: int, *, final: bool) -> bool:
        """Whether the policy after so many updates was evaluated to the end: its metrics are written last.

        Where a guard then ended the run, it was not: the same command evaluates again and ends the same way, though a signal had left
        a checkpoint of that policy.

        Args:
            config: of the run, as it is to go on.
            update: the number of updates that the policy has had.
            final: whether it is to be evaluated as the first and the last are; it was not, where a later one was to be the last.
        """
        metrics = self.metrics()
        done = [name for name, values in metrics.items() if name.startswith("evaluation/") and update in values]
        if final and config.prompts.test and not any(name.startswith("evaluation/test/") for name in done):
            return False
        if final and self.samples(update) < config.evaluation.final_samples:
            return False
        ending = (f"guard/{name}" for name, reaction in config.guards if reaction == "stop")
        return bool(done) and not any(update - 1 in metrics.get(name, {}) for name in ending)

    def first_pictures(self, split: str, samples: int) -> dict[str, dict[int, float]]:
        """Evaluation metrics of a split over the first `samples` pictures of each prompt: those that all evaluations have."""
        found: dict[str, dict[int, float]] = {}
        for file in sorted(self.path.glob("scores/[0-9]*.parquet")):
            rows = pq.read_table(file, filters=[("split", "=", split), ("sample", "<", samples)])
            for row in rows.group_by("reward").aggregate([("value", "mean")]).to_pylist():
                found.setdefault(f"evaluation/{split}/{row['reward']}", {})[int(file.stem)] = row["value_mean"]
        return found

    def samples(self, update: int) -> int:
        """Pictures a prompt that are scored after so many updates."""
        file = self.path / "scores" / f"{update:06d}.parquet"
        return 1 + int(max(pq.read_table(file, columns=["sample"])["sample"].to_pylist())) if file.exists() else 0

    def rewind(self, updates: int, *, again: bool) -> None:
        """Drop what lies beyond a checkpoint: metrics of later updates, evaluations of later policies.

        Args:
            updates: of the checkpoint.
            again: drop that policy's own evaluation, too, which the run is about to make.
        """
        if (self.path / "metrics.jsonl").exists():
            self._keep(
                line
                for line, row in self._logged()
                if row["update"] < updates
                or (row["update"] == updates and row["name"].startswith("evaluation/") and not again)
            )
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


def _breaks_off(file: Path) -> bool:
    """Whether a file's last line has no end: it was being written when the machine was lost."""
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read() != b"\n"


def _accelerator() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _arithmetic() -> dict[str, Any]:
    """What decides how a machine rounds: nothing here sets it, torch's defaults and the environment do."""
    kernels = ("flash", "mem_efficient", "cudnn", "math")
    return {
        "instructions of the CPU": torch.backends.cpu.get_cpu_capability(),
        "tf32 in products": torch.backends.cuda.matmul.allow_tf32,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32,
        "attention": os.environ.get("DIFFUSERS_ATTN_BACKEND", "native"),
        "native attention may be": [name for name in kernels if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()],
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages; raysuite itself may be a folder on a job's path."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What produced a run: versions, commit, command."""
    source = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            # without a lock, which would stay there and stop the user's git if this process were killed meanwhile
            command = ["git", "--no-optional-locks", *words]
            run = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None  # installed from a wheel: the version says it all
        return run.stdout.strip()

    status = git("status", "--porcelain")
    return {
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{processor()}, {usable_cpus()} cores, {_accelerator()}",
        "arithmetic": _arithmetic(),
        "python": sys.version.split()[0],
        "versions": versions_of(PACKAGES),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
    }
