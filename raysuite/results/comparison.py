"""What a run says in numbers: before against after, and its way through the evaluations, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysuite.kernel.stats import Interval, bootstrap_mean, by_prompt, paired_difference
from raysuite.results.run import EMPTY, Run, Scores

FEW_PROMPTS = 10
"""Below this many prompts an interval is too narrow to rely on."""


@dataclass(frozen=True)
class Comparison:
    """One reward on the same prompts and noise under two policies, each named by its number of updates."""

    reward: str
    split: str
    first: int
    last: int
    prompts: int
    pictures: int
    before: Interval
    after: Interval
    difference: Interval

    @property
    def direction(self) -> int:
        """+1 or -1 where the interval of the difference lies on one side of zero, else 0."""
        return self.difference.direction


@dataclass(frozen=True, eq=False)
class Curve:
    """A reward's mean and interval at each evaluation, against what the policy's training cost."""

    network_evaluations: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def compare(run: Run) -> list[Comparison]:
    """The first evaluation against the last: every reward, by split as in `Run.splits`. Empty before the second."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]
    return [c for reward in run.rewards for split in run.splits if (c := compare_one(run, reward, split, first, last))]


def compare_one(run: Run, reward: str, split: str, first: int, last: int) -> Comparison | None:
    """One reward on one split over the (prompt, sample) pairs that both evaluations have; None without any."""
    before, after = (run.scores.where(reward=reward, split=split, update=update) for update in (first, last))
    prompt, old, new = _paired(before, after)
    if not len(prompt):
        return None
    groups = by_prompt(prompt)
    return Comparison(
        reward=reward,
        split=split,
        first=first,
        last=last,
        prompts=len(np.unique(prompt)),
        pictures=len(prompt),
        before=bootstrap_mean(old, groups, generator()),
        after=bootstrap_mean(new, groups, generator()),
        difference=paired_difference(old, new, groups, generator()),
    )


def _paired(before: Scores, after: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts and values of the pictures that both have, in the same order. Each is of one reward, split and update."""
    row_of = {key: row for row, key in enumerate(zip(before.prompt, before.sample, strict=True))}
    rows = [(row_of[key], row) for row, key in enumerate(zip(after.prompt, after.sample, strict=True)) if key in row_of]
    rows_before, rows_after = np.array(rows, dtype=int).reshape(-1, 2).T
    return after.prompt[rows_after], before.value[rows_before], after.value[rows_after]


def curve(run: Run, reward: str, split: str, *, samples: int | None = None) -> Curve:
    """A reward's way through the evaluations, as `by_update` has it."""
    means = by_update(run, reward, split, samples=samples)
    columns = np.array([(p.estimate, p.low, p.high) for p in means.values()]).reshape(-1, 3).T
    return Curve(run.spent(list(means)), *columns)


def by_update(run: Run, reward: str, split: str, *, samples: int | None = None) -> dict[int, Interval]:
    """A reward's mean at each evaluation that has it, over the pictures that all of these have: at most `samples` of a prompt."""
    return {update: mean(scores) for update, scores in alike(run, reward, split, samples).items()}


def shared_samples(run: Run, reward: str, split: str) -> int:
    """How many pictures of a prompt every evaluation has that has the reward."""
    scores = run.scores.where(reward=reward, split=split)
    return min((1 + int(scores.where(update=update).sample.max()) for update in np.unique(scores.update)), default=0)


def alike(run: Run, reward: str, split: str, samples: int | None = None) -> dict[int, Scores]:
    """A reward's scores at each evaluation that has it, of the pictures that all of these have: the first and the last have more, and
    the noise of one picture of a prompt may be kinder than that of the next.
    """
    scores = run.scores.where(reward=reward, split=split)
    scores = scores.keep(scores.sample < (shared_samples(run, reward, split) if samples is None else samples))
    return {update: scores.where(update=update) for update in np.unique(scores.update).tolist()}


def mean(scores: Scores) -> Interval:
    """The mean of one reward at one evaluation."""
    return bootstrap_mean(scores.value, by_prompt(scores.prompt), generator())


def generator() -> np.random.Generator:
    """The same draws for every number: a report made twice is the same report, whatever else is in it."""
    return np.random.default_rng(0)


def kl(run: Run) -> dict[int, Interval]:
    """The KL from the reference by policy. Its limits were computed when the trajectories were there; else NaN."""
    series = [run.metrics.get(f"evaluation/kl{suffix}", EMPTY) for suffix in ("", "_low", "_high")]
    points = [dict(zip(s.updates.tolist(), s.values.tolist(), strict=True)) for s in series]
    return {update: Interval(*(p.get(update, float("nan")) for p in points)) for update in points[0]}


def headline(run: Run) -> str:
    """The reward that the verdict is about: a watched pass rate where there is one, the trained reward otherwise."""
    return next((name for name in run.watched if name.endswith("_strict")), run.trained)
