"""Evaluations that lie in several runs, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raysuite.results.page import table
from raysuite.results.suites.numbers import lines
from raysuite.results.suites.read import SuiteResults, read_begun
from raysuite.results.suites.report import over, overall


def suites_across(runs: Sequence[Path], width: int | None = None) -> str:
    """Tables of the suites that runs were evaluated on, in `suites/` of each; empty where there are none.

    Those of one protocol stand in one table, and each run is compared with its base. An evaluation of which nobody is finished has
    nothing to show.

    Raises:
        UserError: an evaluation is damaged.
    """
    together: list[SuiteResults] = []
    for run in runs:
        for directory in sorted(file.parent for file in run.glob("suites/*/protocol.json")):
            if not any(directory.glob("members/*/scores/*.parquet")):
                continue
            found = read_begun(directory)
            if not found.members:
                continue
            place = next((n for n, other in enumerate(together) if other.protocol == found.protocol), None)
            if place is None:
                together.append(found)
            else:
                together[place] = _joined(together[place], found, run)
    said: list[str] = []
    for found in sorted(together, key=lambda one: one.name):
        numbers = lines(found)
        for reward in found.rewards:
            said += [f"{found.name}: {reward}, {over(found)}", *table(overall(numbers, reward), width), ""]
    return "\n".join(said).rstrip().replace("−", "-")


def _joined(first: SuiteResults, second: SuiteResults, run: Path) -> SuiteResults:
    """The members of both; of the same name the second's has its run before it, unless its scores are the same."""
    bases, scores = dict(first.bases), dict(first.scores)
    names = {
        label: label if label not in bases or _equal(first, second, label) else f"{run.parent.name}/{run.name}: {label}"
        for label in second.members
    }
    for label, base in second.bases.items():
        bases[names[label]], scores[names[label]] = names.get(base, base), second.scores[label]
    ordered = sorted(bases, key=lambda label: (bases[label], label != bases[label], label))
    return replace(first, bases={label: bases[label] for label in ordered}, scores=scores)


def _equal(first: SuiteResults, second: SuiteResults, label: str) -> bool:
    return all((first.scores[label][reward] == second.scores[label][reward]).all() for reward in first.rewards)
