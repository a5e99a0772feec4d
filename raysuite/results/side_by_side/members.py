"""Which runs are compared: those that are named, and of a sweep the best settings that each objective found."""

from __future__ import annotations

import json
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
class Chosen:
    """All that is compared, and what is to be said of what is not."""

    members: tuple[Member, ...]
    cautions: tuple[str, ...] = ()


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
    for directory in directories:
        if is_sweep(directory):
            rows = _rows(directory)
            members += _best(directory, rows)
            cautions += _left_out(directory, rows)
        else:
            members.append(Member(directory))
    return Chosen(tuple(members), tuple(cautions))


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
            origin = Origin(
                row["objective"], row["confirms"], len(tried[row["objective"]]), row["settings"] or {}, confirms=True
            )
            yield Member(directory / "trials" / row["name"], origin)
        return
    kept = 1 if len({row["objective"] for row in rows}) > 1 else MOST_SETTINGS
    for objective, trials in done.items():
        best = sorted(trials, key=lambda trial: (-len(trials[trial]), -_mean(trials[trial]), trial))
        for trial in best[:kept]:
            for row in sorted(trials[trial], key=lambda row: row["seed"]):
                origin = Origin(objective, trial, len(tried[objective]), row["settings"] or {})
                yield Member(directory / "trials" / row["name"], origin)


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of the held-out reward; runs without held-out prompts are all alike."""
    return sum(row["held_out"] or 0.0 for row in rows) / len(rows)


def _left_out(directory: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    failed = [row for row in rows if row["status"] == "failed"]
    left = sum(row["status"] in ("waiting", "running") for row in rows)
    if failed:
        yield (
            f"{len(failed)} of {len(rows)} runs of {directory.name} failed and are left out; {failed[0]['name']}: "
            f"{failed[0]['message']}"
        )
    yield from _carried(rows)
    if left:
        yield f"{left} of {len(rows)} runs of {directory.name} have not ended and are left out."


def _carried(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How far the choice of settings carried over to other seeds: of each objective, or of all together where there are many."""
    found: dict[str, tuple[float, float]] = {}
    sentences, most = [], 0
    for objective in dict.fromkeys(row["objective"] for row in rows):
        ended = [row for row in rows if row["objective"] == objective and row["status"] == "done"]
        again = [row for row in ended if row["trial"] is None]
        chose = [row for row in ended if again and row["trial"] == again[0]["confirms"]]
        if again and chose:
            most = max(most, len(again))
            found[objective] = _mean(chose), _mean(again)
            sentences.append(
                f"{objective}: the settings of trial {again[0]['confirms']:02d} were chosen at {_mean(chose):.3g} on held-out "
                f"prompts, and reach {_mean(again):.3g} there with {_seeds(len(again))}."
            )
    if len(found) <= MOST_SENTENCES:
        yield from sentences
        return
    chosen, reached = (sum(values) / len(found) for values in zip(*found.values(), strict=True))
    lost = {objective: after - before for objective, (before, after) in found.items()}
    worst, best = min(lost, key=lambda name: lost[name]), max(lost, key=lambda name: lost[name])
    yield (
        f"The settings of {len(found)} objectives were chosen at {chosen:.3g} on held-out prompts, mean over objectives, and reach "
        f"{reached:.3g} there with {_seeds(most)}: from {lost[worst]:+.2g} ({worst}) to {lost[best]:+.2g} ({best})."
    )


def _seeds(count: int) -> str:
    return "another seed" if count == 1 else f"{count} other seeds"
