"""A study of directions as its directory has it. docs/architecture.md lists the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError
from raysuite.kernel.stats import Interval


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
    def title(self) -> str:
        """What is particular to it."""
        words = [f"{self.along} = {json.dumps(self.value)}"] if self.along else []
        return ", ".join([*words, f"after {self.checkpoint} updates" if self.checkpoint else "the model as it came"])


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
    gains = directory / "gains.parquet"
    return Study(
        directory=directory,
        settings=_json(directory / "study.json"),
        facts=_json(directory / "facts.json"),
        provenance=_json(directory / "provenance.json"),
        estimates=tuple(_estimate(row) for row in _rows(directory / "estimates.parquet")),
        gains=tuple(_gain(row) for row in _rows(gains)) if gains.is_file() else (),
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
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error
    return rows


def _damaged(file: Path, what: object) -> UserError:
    return UserError(
        f"expected {file} as the study wrote it, it is missing or damaged ({what}): copy the whole directory again"
    )
