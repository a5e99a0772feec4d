"""What an evaluation on a suite says: means, differences and win rates, paired by prompt and noise, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError
from raysuite.kernel.stats import Interval, bootstrap_mean, bootstrap_share, by_prompt, mean_over_strata
from raysuite.places import replacing
from raysuite.results.comparison import generator
from raysuite.results.suites.read import SuiteResults


@dataclass(frozen=True)
class Line:
    """One member's scores of one reward, over all prompts or those of a category."""

    member: str
    reference: str
    """Whom it is compared with; itself for who is compared with nobody."""
    reward: str
    category: str
    """Empty for all prompts."""
    prompts: int
    mean: Interval
    difference: Interval | None
    """From the reference, on the same prompts with the same noise."""
    wins: Interval | None
    """Share of pictures that score higher than the reference's of the same prompt and noise, ties counted half."""

    @property
    def direction(self) -> int:
        """+1 or -1 where the interval of the difference lies on one side of zero, else 0."""
        found = self.difference
        return 0 if found is None else found.direction


def lines(found: SuiteResults, against: str | None = None) -> list[Line]:
    """Every member, reward and category, all prompts of a reward first.

    Args:
        found: the evaluation.
        against: the label of whom all are compared with, or the name of a run; None for the base of each.

    Raises:
        UserError: nobody finished is called so, or several are.
    """
    reference = None if against is None else called(against, found.members)
    return [
        _line(found, member, reference or _base(found, member), reward, category)
        for reward in found.rewards
        for category in ("", *found.categories)
        for member in found.members
    ]


def called(against: str, members: Sequence[str]) -> str:
    """The member that is meant by its label, or by the name of its run.

    Raises:
        UserError: nobody is called so, or several are.
    """
    name = against.rstrip("/").rpartition("/")[2]
    found = [label for label in members if name in (label, label.rpartition("@")[0])]
    if len(found) != 1:
        raise UserError(f"expected --against one of {', '.join(members)}, got {against}: name one of them")
    return found[0]


def _base(found: SuiteResults, member: str) -> str:
    base = found.bases[member]
    return base if base in found.members else member


def _line(found: SuiteResults, member: str, reference: str, reward: str, category: str) -> Line:
    inside = found.categories_P == category if category else np.ones(len(found.prompts_P), dtype=bool)
    mine, other = (found.scores[label][reward][inside] for label in (member, reference))

    def mean(values_PS: np.ndarray, *, of: Callable[..., Interval] = bootstrap_mean) -> Interval:
        groups = np.repeat(found.groups_P[inside], values_PS.shape[1])
        if found.by_category and not category:
            strata = np.repeat(found.categories_P, values_PS.shape[1])
            return mean_over_strata(values_PS.ravel(), groups, strata, generator())
        return of(values_PS.ravel(), by_prompt(groups), generator())

    alone = member == reference
    passes = bool(np.isin(mine, (0, 1)).all())
    return Line(
        member,
        reference,
        reward,
        category,
        int(inside.sum()),
        mean(mine, of=bootstrap_share if passes else bootstrap_mean),
        None if alone else mean(mine - other),
        None if alone else mean((mine > other) + 0.5 * (mine == other), of=bootstrap_share),
    )


def write_lines(found: list[Line], file: Path) -> None:
    """All of it as Parquet: a row a line, limits in columns of their own."""
    columns = {name: [getattr(line, name) for line in found] for name in _PLAIN}
    for name in ("mean", "difference", "wins"):
        for part, suffix in (("estimate", ""), ("low", "_low"), ("high", "_high")):
            columns[name + suffix] = [
                None if (i := getattr(line, name)) is None else getattr(i, part) for line in found
            ]
    with replacing(file) as temporary:
        pq.write_table(pa.table(columns), temporary)


_PLAIN = ("member", "reference", "reward", "category", "prompts")


def of(found: list[Line], *, reward: str, category: str = "") -> Iterator[Line]:
    """The lines of a reward and category, in the order of members."""
    return (line for line in found if (line.reward, line.category) == (reward, category))
