"""The page of an evaluation on a suite, and the same numbers for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysuite.kernel.stats import Interval
from raysuite.results.comparison import FEW_PROMPTS
from raysuite.results.numerals import count, number, with_interval
from raysuite.results.page import origin, table, write_page
from raysuite.results.run import flat
from raysuite.results.suites import pictures
from raysuite.results.suites.numbers import Line, lines, of, write_lines
from raysuite.results.suites.read import SuiteResults, read_suite


def suite_summary(directory: Path, width: int | None = None, *, against: str | None = None) -> str:
    """The verdict and the tables as plain text for a terminal of so many characters.

    Args:
        directory: of the evaluation.
        width: of the terminal in characters; None where lines may have any length.
        against: the label of whom all are compared with; None for the base of each.

    Raises:
        UserError: nothing is finished, a file is damaged, or nobody has that label.
    """
    found = read_suite(directory)
    numbers = lines(found, against)
    said = [*verdict(found, numbers), *(f"Note: {caution}" for caution in cautions(found))]
    for reward in found.rewards:
        said += ["", f"{reward}, {over(found)}", *table(overall(numbers, reward), width)]
    if found.categories:
        for reward in found.rewards:
            said += ["", f"{reward} by category", *table(by_category(found, numbers, reward), width)]
    return "\n".join(said).replace("−", "-")


def write_suite_report(directory: Path, out: Path | None = None, *, against: str | None = None) -> Path:
    """Write an evaluation's page, `report.html` in its directory unless told otherwise, and its numbers as Parquet beside it; return
    the page's path.

    The same directory gives the same bytes.

    Raises:
        UserError: as of `suite_summary`, or a picture is damaged.
    """
    page = out or directory / "report.html"
    found = read_suite(directory)
    numbers = lines(found, against)
    written = write_page("suite.html.jinja", _content(found, numbers), page)
    write_lines(numbers, page.with_suffix(".parquet"))
    return written


def verdict(found: SuiteResults, numbers: Sequence[Line]) -> list[str]:
    """What the first reward says of every member that is compared, in a sentence each."""
    reward = found.rewards[0]
    said = []
    for line in of(list(numbers), reward=reward):
        if line.difference is None or line.wins is None:
            continue
        verb = {1: "scores higher than", 0: "is not told apart from", -1: "scores lower than"}[line.direction]
        said.append(
            f"On {found.name} {line.member} {verb} {line.reference} by {reward}: "
            f"{with_interval(line.difference, signed=True)}, and wins {_percent(line.wins)} of pictures."
        )
    return said or [f"On {found.name} there is nothing to compare yet: {', '.join(found.members)}."]


def cautions(found: SuiteResults) -> list[str]:
    """What limits the conclusions."""
    said = []
    if found.unfinished:
        said.append(f"{', '.join(found.unfinished)} is not finished: give the command that began it again.")
    if len(found.prompts_P) < FEW_PROMPTS:
        said.append(f"With only {count(len(found.prompts_P), 'prompt')}, intervals are too narrow to rely on.")
    return said


def overall(numbers: Sequence[Line], reward: str) -> list[tuple[str, ...]]:
    """A row a member: its mean, the difference from whom it is compared with, and the win rate."""
    rows: list[tuple[str, ...]] = [("model", "mean [95 %]", "compared with", "difference [95 %]", "wins [95 %]")]
    for line in of(list(numbers), reward=reward):
        against = "–" if line.difference is None else line.reference
        wins = "–" if line.wins is None else _percent(line.wins)
        rows.append((line.member, cell(line.mean), against, cell(line.difference, signed=True), wins))
    return rows


def by_category(found: SuiteResults, numbers: Sequence[Line], reward: str) -> list[tuple[str, ...]]:
    """A row a category: the mean of each member, and where it is compared the difference."""
    rows: list[tuple[str, ...]] = []
    for category in found.categories:
        mine = list(of(list(numbers), reward=reward, category=category))
        if not rows:
            compared = [f"{line.member} − {line.reference}" for line in mine if line.difference]
            rows.append(("category", "prompts", *(line.member for line in mine), *compared))
        differences = [cell(line.difference, signed=True) for line in mine if line.difference]
        rows.append((category, str(mine[0].prompts), *(cell(line.mean) for line in mine), *differences))
    return rows


def cell(interval: Interval | None, *, signed: bool = False) -> str:
    """An interval in a table; a dash for none."""
    return "–" if interval is None else with_interval(interval, signed=signed)


def over(found: SuiteResults) -> str:
    """What the one number of a member is the mean of."""
    how = "mean over the categories' means" if found.by_category else "mean over prompts"
    prompts, samples = count(len(found.prompts_P), "prompt"), count(found.protocol["samples"], "picture")
    return f"{how}: {prompts} with {samples} each"


def _percent(interval: Interval) -> str:
    estimate, low, high = (number(100 * part, 0) for part in (interval.estimate, interval.low, interval.high))
    return f"{estimate} % [{low}, {high}]"


def _content(found: SuiteResults, numbers: list[Line]) -> dict[str, Any]:
    compared = [(line.member, line.reference) for line in of(numbers, reward=found.rewards[0]) if line.difference]
    shown = pictures.shown(found, compared)
    return {
        "suite": found.name,
        "over": over(found),
        "by_category": found.by_category,
        "verdict": verdict(found, numbers),
        "cautions": cautions(found),
        "overall": [(reward, overall(numbers, reward)) for reward in found.rewards],
        "categories": [(reward, by_category(found, numbers, reward)) for reward in found.rewards if found.categories],
        "members": found.members,
        "sorts": ["as in the suite", *pictures.orders(found, compared)],
        "cards": pictures.cards(found, compared, shown),
        "shown": pictures.choice(found),
        "protocol": list(flat(found.protocol)),
        **origin(found.provenance),
    }
