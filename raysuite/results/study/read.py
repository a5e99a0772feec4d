"""A study of directions as its directory has it. docs/architecture.md lists the files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError
from raysuite.kernel.stats import Interval

CONTENT = {
    "study.json": ("run", "objectives", "units", "gain"),
    "facts.json": ("objectives", "bins", "blocks", "projection_error", "rungs"),
    "provenance.json": ("command",),
    "estimates.parquet": ("rung", "space", "quantity", "a", "b", "part", "where", "estimate", "low", "high", "note"),
    "gains.parquet": (
        *("rung", "objective", "split", "reward"),
        *(f"{name}{end}" for name in ("kl", "predicted", "realised") for end in ("", "_low", "_high")),
    ),
}
"""What is read of every file."""
BINS, WEAK = "bins ", "low power"
"""How the words of a note begin (`study.estimates`)."""


@dataclass(frozen=True)
class Rung:
    """One measurement: the study with one setting changed, at one policy."""

    number: int
    along: str
    """Path of the changed setting; empty where nothing is changed."""
    value: Any
    checkpoint: int
    facts: Mapping[str, Any]

    @property
    def network_evaluations(self) -> int:
        """Of drawing, measuring and, with --gain-kl, taking steps."""
        return int(self.facts["network_evaluations"] + self.facts.get("step_evaluations", 0))

    @property
    def title(self) -> str:
        """What is particular to it."""
        words = [f"{self.along} = {json.dumps(self.value)}"] if self.along else []
        return ", ".join([*words, f"after {self.checkpoint} updates" if self.checkpoint else "the model as it came"])

    def at(self, path: str) -> str:
        """Where it stands on a ladder."""
        value = self.checkpoint if path == "checkpoint" else self.value
        return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Estimate:
    """One number of one rung, with its interval; NaN where there is none."""

    rung: int
    space: str
    quantity: str
    a: str
    b: str
    part: str
    where: str
    interval: Interval
    note: str

    @property
    def bins(self) -> tuple[int, ...]:
        """Ranges of timesteps in which both objectives of a matched cosine show a direction: it rests on these alone."""
        said = next((words for words in self.note.split("; ") if words.startswith(BINS)), BINS)
        return tuple(map(int, filter(None, said.removeprefix(BINS).split(", "))))

    @property
    def weak(self) -> str:
        """Which objectives may have been found by luck."""
        return next((words for words in self.note.split("; ") if words.startswith(WEAK)), "")


@dataclass(frozen=True)
class Gain:
    """A step of a given KL along one objective's direction: what it should have changed, and what it did."""

    rung: int
    objective: str
    split: str
    reward: str
    kl: Interval
    predicted: Interval
    realised: Interval
    note: str
    """Why there is no prediction of the trained reward."""


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that a study found."""

    directory: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    provenance: Mapping[str, Any]
    estimates: tuple[Estimate, ...]
    gains: tuple[Gain, ...]

    @property
    def labels(self) -> list[str]:
        """The objectives, in the order in which they were asked for."""
        return list(self.facts["objectives"])

    @cached_property
    def rungs(self) -> list[Rung]:
        """All measurements in order."""
        return [
            Rung(facts["rung"], facts["along"], json.loads(facts["value"]), facts["checkpoint"], facts)
            for facts in self.facts["rungs"]
        ]

    @property
    def spaces(self) -> list[str]:
        """Those in which gradients were compared."""
        return list(dict.fromkeys(e.space for e in self.estimates))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two objectives."""
        return list(combinations(self.labels, 2))

    def select(self, **fixed: object) -> list[Estimate]:
        """Estimates whose fields have these values."""
        return [e for e in self.estimates if all(getattr(e, name) == value for name, value in fixed.items())]

    def one(
        self,
        quantity: str,
        a: str,
        b: str = "",
        *,
        space: str = "parameters",
        rung: int = 0,
        part: str = "whole",
        where: str = "",
    ) -> Estimate | None:
        """One estimate, whichever way round its objectives stand."""
        keys = {(a, b or a), (b or a, a)}
        found = self._index.get((quantity, space, rung, part, where), ())
        return next((e for e in found if (e.a, e.b) in keys), None)

    def cautions(self, e: Estimate) -> str:
        """What is to be read beside a cosine: whether it may be luck, and which timesteps it rests on if not all."""
        edges, kept = self.facts["bins"], e.bins
        if len(kept) == len(edges):
            return e.weak
        runs = [[edges[n][0], edges[n][1]] for n in kept if n - 1 not in kept]
        for run, last in zip(runs, [n for n in kept if n + 1 not in kept], strict=True):
            run[1] = edges[last][1]
        at = f"timesteps {' and '.join(f'{first} to {last}' for first, last in runs)} alone" if runs else ""
        return "; ".join(filter(None, [e.weak, at]))

    def matrix(
        self, quantity: str = "expected_cosine", *, space: str = "parameters", rung: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimates, lower and upper limits of every two objectives, (A, A) each in the order of `labels`.

        NaN where there is none, and on the diagonal.
        """
        side = len(self.labels)
        values = np.full((3, side, side), np.nan)
        for (i, a), (j, b) in combinations(enumerate(self.labels), 2):
            if (found := self.one(quantity, a, b, space=space, rung=rung)) is not None:
                values[:, i, j] = values[:, j, i] = astuple(found.interval)
        return values[0], values[1], values[2]

    @property
    def blocks(self) -> list[str]:
        """Those of layers whose gradients were compared, in the order of the network."""
        return list(dict.fromkeys(e.where for e in self.estimates if e.part == "block"))

    @property
    def ladders(self) -> list[str]:
        """Paths along which there is more than one rung; `checkpoint` is one, too."""
        paths = [*dict.fromkeys(rung.along for rung in self.rungs if rung.along), "checkpoint"]
        return [path for path in paths if len(self.ladder(path)) > 1]

    def ladder(self, path: str) -> list[Rung]:
        """The rungs along a path, at the first checkpoint; of `checkpoint`, with the first value."""
        first = self.rungs[0]
        if path == "checkpoint":
            return [rung for rung in self.rungs if (rung.along, rung.value) == (first.along, first.value)]
        return [rung for rung in self.rungs if (rung.along, rung.checkpoint) == (path, first.checkpoint)]

    def base(self, rungs: Sequence[Rung], *, space: str = "parameters") -> str:
        """What others are compared with: the first objective that shows a direction at one of the rungs, if any does."""
        shown = (a for a in self.labels if any(self.shows_direction(a, space=space, rung=r.number) for r in rungs))
        return next(shown, self.labels[0])

    def first_rung(self, space: str) -> Rung:
        """The first that compared gradients in a space: at the model as it came there is no optimiser to scale them."""
        measured = {e.rung for e in self.estimates if e.space == space}
        return next(rung for rung in self.rungs if rung.number in measured)

    @cached_property
    def _index(self) -> dict[tuple[str, str, int, str, str], list[Estimate]]:
        index: dict[tuple[str, str, int, str, str], list[Estimate]] = {}
        for e in self.estimates:
            index.setdefault((e.quantity, e.space, e.rung, e.part, e.where), []).append(e)
        return index

    def shows_direction(self, label: str, *, space: str = "parameters", rung: int = 0) -> bool:
        """Whether an objective's expected gradient is told from zero at 95 %."""
        found = self.one("squared_norm", label, space=space, rung=rung)
        return found is not None and found.interval.low > 0


def read_study(directory: Path | str) -> Study:
    """Read a finished study.

    Raises:
        UserError: there is none, it is not finished, or a file of it is damaged.
    """
    directory = Path(directory)
    if not (directory / "study.json").is_file():
        raise UserError(
            f"expected a study in {directory}, found no study.json: name the --out of a `raysuite directions`"
        )
    if not (directory / "estimates.parquet").is_file():
        raise UserError(
            f"expected a finished study in {directory}, found no estimates.parquet: repeat the command that began it"
        )
    settings = _json(directory / "study.json")
    return Study(
        directory=directory,
        settings=settings,
        facts=_json(directory / "facts.json"),
        provenance=_json(directory / "provenance.json"),
        estimates=tuple(_estimate(row) for row in _rows(directory / "estimates.parquet")),
        gains=tuple(_gain(row) for row in _rows(directory / "gains.parquet")) if settings["gain"] else (),
    )


def _estimate(row: Mapping[str, Any]) -> Estimate:
    names = ("rung", "space", "quantity", "a", "b", "part", "where", "note")
    return Estimate(**{name: row[name] for name in names}, interval=Interval(row["estimate"], row["low"], row["high"]))


def _gain(row: Mapping[str, Any]) -> Gain:
    def interval(name: str) -> Interval:
        return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])

    return Gain(
        rung=row["rung"],
        objective=row["objective"],
        split=row["split"],
        reward=row["reward"],
        kl=interval("kl"),
        predicted=interval("predicted"),
        realised=interval("realised"),
        note=row.get("note", ""),  # those under docs/results have none
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    tree: dict[str, Any] = found if isinstance(found, dict) else {}
    _check(file, tree)
    return tree


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error
    _check(file, table.column_names)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check(file: Path, found: Collection[str]) -> None:
    missing = [name for name in CONTENT[file.name] if name not in found]
    if missing:
        raise _damaged(file, f"it has no {', '.join(missing)}")


def _damaged(file: Path, what: object) -> UserError:
    return UserError(
        f"expected {file} as the study wrote it, it is missing or damaged ({what}): copy the whole directory again, or "
        "repeat the command that began the study"
    )
