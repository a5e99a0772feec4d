"""Which runs are compared: those that are named, and of a sweep the best settings that each objective found."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysuite.errors import UserError

MOST_SENTENCES = 3
"""Objectives of which it is said one by one how far their settings carried over."""
MOST_SETTINGS = 8
"""Settings that are shown of a sweep of one objective, the best first: there are as many colours."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from, if that is a sweep."""

    sweep: str
    objective: str
    trial: int
    tried: int
    """Settings that the sweep tried for this objective."""
    settings: Mapping[str, Any]
    """Those of this one, by path."""
    confirms: bool = False
    """Whether it had no part in choosing them."""


@dataclass(frozen=True)
class Member:
    """A run that is compared."""

    directory: Path
    origin: Origin | None = None


@dataclass(frozen=True)
class Tuned:
    """How settings of an objective were chosen and how far they carried over, by the trained reward on held-out prompts."""

    sweep: str
    objective: str
    name: str
    """The objective, with its sweep where there are several."""
    trial: int
    """That was chosen."""
    tried: tuple[float, ...]
    """What each of the settings reached, as far as they went."""
    chosen: float
    """What those reached that were chosen, with the seeds that chose them."""
    again: tuple[float, ...]
    """What the same reached with each of the seeds that did not."""

    @property
    def median(self) -> float:
        """Of what the settings reached."""
        return statistics.median(self.tried)

    @property
    def reached(self) -> float:
        """Mean over the seeds that did not choose."""
        return sum(self.again) / len(self.again)

    @property
    def difference(self) -> float:
        """How far that lies above what they were chosen at."""
        return self.reached - self.chosen


@dataclass(frozen=True)
class Chosen:
    """All that is compared, and what is to be said of what is not."""

    members: tuple[Member, ...]
    cautions: tuple[str, ...] = ()
    tuned: tuple[Tuned, ...] = ()


def is_sweep(directory: Path) -> bool:
    """Whether it is the --out of a `raysuite sweep`."""
    return (directory / "sweep.json").is_file()


def choose(directories: Sequence[Path]) -> Chosen:
    """The runs that directories stand for: a run for itself, a sweep for the best settings of each of its objectives.

    The best settings are those with the highest mean held-out reward over most seeds. Of a sweep with one objective it is the
    eight best. Where a sweep confirms them, the runs are those that do.

    Raises:
        UserError: a sweep has nothing to compare yet, or its files are damaged.
    """
    members: list[Member] = []
    cautions: list[str] = []
    tuned: list[Tuned] = []
    sweeps = sum(map(is_sweep, directories))
    for directory in directories:
        if is_sweep(directory):
            rows = _rows(directory)
            members += _best(directory, rows)
            tuned += (carried := list(_tuned(directory.name, rows, alone=sweeps == 1)))
            cautions += _left_out(directory, rows, carried)
        else:
            members.append(Member(directory))
    return Chosen(tuple(members), tuple(cautions), tuple(tuned))


def _rows(directory: Path) -> list[dict[str, Any]]:
    file = directory / "trials.json"
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected the runs of a sweep in {file}, it is missing or damaged: copy the whole directory, or repeat the command "
            "that began the sweep"
        ) from error
    return rows


def _best(directory: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[Member]:
    done: dict[str, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    tried: dict[str, set[int]] = defaultdict(set)
    confirming = [row for row in rows if row["trial"] is None and row["status"] == "done"]
    for row in rows:
        if row["trial"] is None:
            continue
        if row["status"] in ("done", "stopped"):
            tried[row["objective"]].add(row["trial"])
        if row["status"] == "done":
            done[row["objective"]][row["trial"]].append(row)
    if not done:
        raise UserError(
            f"expected finished runs in the sweep {directory}, found none: repeat the command that began it"
        )
    if confirming:
        order = list(dict.fromkeys(row["objective"] for row in rows))
        for row in sorted(confirming, key=lambda row: (order.index(row["objective"]), row["seed"])):
            objective, trial, settings = row["objective"], row["confirms"], row["settings"] or {}
            origin = Origin(directory.name, objective, trial, len(tried[objective]), settings, confirms=True)
            yield Member(directory / "trials" / row["name"], origin)
        return
    kept = 1 if len({row["objective"] for row in rows}) > 1 else MOST_SETTINGS
    for objective, trials in done.items():
        if len(trials) > 1 and any(row["held_out"] is None for of in trials.values() for row in of):
            raise UserError(
                f"expected held-out rewards, by which the best of {len(trials)} settings of {objective} in {directory} is chosen, "
                f"found none: compare the runs in {directory / 'trials'} by their names"
            )
        best = sorted(trials, key=lambda trial: (-len(trials[trial]), -_mean(trials[trial]), trial))
        for trial in best[:kept]:
            for row in sorted(trials[trial], key=lambda row: row["seed"]):
                origin = Origin(directory.name, objective, trial, len(tried[objective]), row["settings"] or {})
                yield Member(directory / "trials" / row["name"], origin)


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of the held-out reward; runs without held-out prompts are all alike."""
    return sum(row["held_out"] or 0.0 for row in rows) / len(rows)


def _left_out(directory: Path, rows: Sequence[Mapping[str, Any]], carried: Sequence[Tuned]) -> Iterator[str]:
    failed = [row for row in rows if row["status"] == "failed"]
    left = sum(row["status"] in ("waiting", "running") for row in rows)
    if failed:
        yield (
            f"{len(failed)} of {len(rows)} runs of {directory.name} failed and are left out; {failed[0]['name']}: "
            f"{failed[0]['message']}"
        )
    yield from _told(carried)
    if left:
        yield f"{left} of {len(rows)} runs of {directory.name} have not ended and are left out."


def _tuned(sweep: str, rows: Sequence[Mapping[str, Any]], *, alone: bool) -> Iterator[Tuned]:
    """Of each objective of a sweep whose choice was confirmed; with the sweep's name where it is not the only one."""
    for objective in dict.fromkeys(row["objective"] for row in rows):
        ended = [row for row in rows if row["objective"] == objective and row["status"] in ("done", "stopped")]
        again = [row for row in ended if row["trial"] is None and row["status"] == "done"]
        trials: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for row in ended:
            if row["trial"] is not None:
                trials[row["trial"]].append(row)
        if again and again[0]["confirms"] in trials:
            tried = {trial: _mean(of) for trial, of in trials.items()}
            chosen = again[0]["confirms"]
            yield Tuned(
                sweep=sweep,
                objective=objective,
                name=objective if alone else f"{objective} ({sweep})",
                trial=chosen,
                tried=tuple(tried.values()),
                chosen=tried[chosen],
                again=tuple(row["held_out"] or 0.0 for row in again),
            )


def _told(carried: Sequence[Tuned]) -> Iterator[str]:
    """How far the choice of settings carried over to other seeds: of each objective, or of all together where there are many."""
    if len(carried) <= MOST_SENTENCES:
        for one in carried:
            yield (
                f"{one.name}: the settings of trial {one.trial:02d} were chosen at {one.chosen:.3g} on held-out prompts, and "
                f"reach {one.reached:.3g} there with {_seeds(len(one.again))}."
            )
        return
    chosen, reached = (
        sum(values) / len(carried) for values in zip(*((t.chosen, t.reached) for t in carried), strict=True)
    )
    worst, best = (pick(carried, key=lambda one: one.difference) for pick in (min, max))
    yield (
        f"The settings of {len(carried)} objectives were chosen at {chosen:.3g} on held-out prompts, mean over objectives, and reach "
        f"{reached:.3g} there with {_seeds(max(len(one.again) for one in carried))}; differences from {worst.difference:+.2g} "
        f"({worst.name}) to {best.difference:+.2g} ({best.name})."
    )


def _seeds(count: int) -> str:
    return "another seed" if count == 1 else f"{count} other seeds"
