"""What a run says: before against after, with intervals; what is wrong with it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysuite.kernel.guards import REMEDIES
from raysuite.kernel.stats import Interval, bootstrap_mean, by_prompt, paired_difference
from raysuite.results.run import EMPTY, SPLITS, Run, Scores

FEW_PROMPTS = 10
"""Below this many prompts an interval is too narrow to rely on."""
WARNED = {
    "held_out": "the trained reward had risen on training prompts and fallen on held-out ones",
    "watched": "the trained reward had risen, and one that is only watched had fallen",
    "diversity": "pictures of one prompt had become alike",
    "kl": "the KL was beyond its limit",
    "ratio": "the first importance ratio was off 1",
    "spread": "the pictures of most prompts had equal rewards",
    "prompts": "the soft prompts were becoming one",
    "finite": "a metric was not a finite number",
}
"""What each guard saw when it warned."""
LAST_UPDATES = 5
"""Updates over which a learner's metric is averaged to say where it ended: one update alone is noise."""


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
    return {update: mean(scores) for update, scores in _alike(run, reward, split, samples).items()}


def shared_samples(run: Run, reward: str, split: str) -> int:
    """How many pictures of a prompt every evaluation has that has the reward."""
    scores = run.scores.where(reward=reward, split=split)
    return min((1 + int(scores.where(update=update).sample.max()) for update in np.unique(scores.update)), default=0)


def _alike(run: Run, reward: str, split: str, samples: int | None = None) -> dict[int, Scores]:
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


def label(reward: str) -> str:
    """How a reward is called in a sentence."""
    return "strict pass rate" if reward.endswith("_strict") else f"reward {reward}"


def verdict(run: Run, comparisons: Sequence[Comparison]) -> str:
    """The run in one sentence, or two while it is unfinished."""
    if not run.evaluations:
        return f"Nothing has been evaluated yet: {run.progress} are done."
    reward, split = headline(run), run.splits[0]
    found = next((c for c in comparisons if (c.reward, c.split) == (reward, split)), None)
    if found is None:
        scores = run.scores.where(reward=reward, split=split, update=run.evaluations[-1])
        prompts = count(len(np.unique(scores.prompt)), f"{SPLITS[split]} prompt")
        policy = f"policy after {count(run.evaluations[-1], 'update')}" if run.evaluations[-1] else "model as it came"
        return (
            f"So far only the {policy} has been evaluated: on {prompts} the {label(reward)} is "
            f"{with_interval(mean(scores))}, 95 % bootstrap over prompts. "
            f"The run is unfinished: {run.progress} are done."
        )
    few = found.prompts < FEW_PROMPTS
    verb = "went" if few else {1: "rose", 0: "went", -1: "fell"}[found.direction]
    places = decimals(found.difference)
    over = "over prompts" if found.prompts > 1 else "over the pictures of that prompt"
    sentence = (
        f"On {count(found.prompts, f'{SPLITS[split]} prompt')} the {label(reward)} {verb} from "
        f"{number(found.before.estimate, places)} to {number(found.after.estimate, places)}: "
        f"{with_interval(found.difference, signed=True)}, 95 % bootstrap {over}"
    )
    if few:
        sentence += ". That is too few prompts to tell."
    else:
        sentence += ", which cannot be told from no change." if found.direction == 0 else "."
    if not run.finished:
        sentence += f" The run is unfinished: {run.progress} are done."
    return sentence


def alarms(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    """Signs that the reward is gamed or the prompts learned by heart, and what guards saw: what must not be overlooked."""
    by = {(c.reward, c.split): c for c in comparisons}
    found = []
    training, held_out = by.get((run.trained, "training")), by.get((run.trained, "held_out"))
    memorised = training and held_out and training.difference.estimate > 0 > held_out.direction
    if training and held_out and memorised:
        found.append(
            f"The trained reward rose on training prompts ({_change(training)}) and fell on held-out prompts "
            f"({_change(held_out)}): what was learned does not carry over. Prefer an earlier checkpoint."
        )
    gaming = []
    for split in run.splits:
        trained = by.get((run.trained, split))
        for name in run.watched:
            watched = by.get((name, split))
            if trained and watched and trained.direction > 0 > watched.direction:
                gaming.append(
                    f"On {SPLITS[split]} prompts the trained reward {run.trained} rose ({_change(trained)}) while "
                    f"{name}, which is only watched, fell ({_change(watched)}): the trained reward is being gamed."
                )
    said = [name for name, is_said in {"held_out": memorised, "watched": gaming}.items() if is_said]
    return [*found, *gaming, *_guard_alarms(run, said=said)]


def _guard_alarms(run: Run, *, said: Sequence[str]) -> list[str]:
    """What the run's guards warned of, unless it is `said` of the run as a whole."""
    warned = {name.removeprefix("guard/"): run.metrics[name].updates for name in run.metrics if name[:6] == "guard/"}
    return [
        f"Guard {name}: {WARNED[name]} after {count(int(updates[0]) + 1, 'update')}"
        f"{f' and {len(updates) - 1} more times' if len(updates) > 1 else ''}; {REMEDIES[name]}"
        for name, updates in warned.items()
        if name not in said
    ]


def cautions(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    """What limits the conclusions."""
    by = {(c.reward, c.split): c for c in comparisons}
    found = [f"The last attempt to train ended early: {run.failure}."] if run.failure else []
    training, held_out = by.get((run.trained, "training")), by.get((run.trained, "held_out"))
    if training and held_out and training.direction > 0 and held_out.direction == 0:
        found.append(
            f"The trained reward rose on training prompts ({_change(training)}); on held-out prompts the change "
            f"({_change(held_out)}) cannot be told from none."
        )
    for split in [split for split in run.splits if split != "test"][:1]:
        means = {update: scores.value.mean() for update, scores in _alike(run, run.trained, split).items()}
        best = max(run.evaluations, key=lambda update: means.get(update, -math.inf))
        since = compare_one(run, run.trained, split, best, run.evaluations[-1])
        if since and best > run.evaluations[0] and since.direction < 0:
            gone = not (run.directory / "checkpoints" / f"{best:06d}").is_dir()
            found.append(
                f"On {SPLITS[split]} prompts the trained reward was best after {count(best, 'update')} and has changed "
                f"by {_change(since)} since. The best of {len(run.evaluations)} evaluations is partly luck; even so, "
                f"that checkpoint may be the better one{'; it was not kept (checkpoints.best keeps it)' if gone else ''}."
            )
    if run.splits == ["training"]:
        found.append(
            "There are no held-out prompts: nothing here shows whether a gain carries over. Set prompts.held_out."
        )
    if run.evaluations and not run.watched:
        found.append(
            "Only the trained reward is evaluated, so a run that games it looks like one that works. Name another in "
            "evaluation.rewards."
        )
    few = {c.split: c.prompts for c in comparisons if c.prompts < FEW_PROMPTS}
    if few:
        where = " and ".join(count(n, f"{SPLITS[split]} prompt") for split, n in few.items())
        found.append(f"With only {where}, intervals are too narrow to rely on. Evaluate more (evaluation.prompts).")
    return [*found, *_learner_cautions(run)]


def _learner_cautions(run: Run) -> list[str]:
    """What the learner's own numbers warn of."""
    found = []
    rankings = run.metrics.get("train/rankings", EMPTY).values
    if tied := int((rankings == 0).sum()):
        found.append(
            f"In {tied} of {count(len(rankings), 'update')} every ranking was tied, so that nothing was learned from. Draw "
            "more pictures a prompt, or train on a reward that has more values."
        )
    error = run.metrics.get("learn/preferred_error", EMPTY).values[-LAST_UPDATES:]
    if len(error) and error.mean() > 0:
        found.append(
            f"Over the last {count(len(error), 'update')} the denoising error of preferred pictures was above the "
            f"reference's ({error.mean():+.2g}): the preferred pictures became less likely than under the reference."
        )
    return found


def _change(comparison: Comparison) -> str:
    return with_interval(comparison.difference, signed=True)


def count(how_many: int, what: str) -> str:
    """'1 prompt', '2 prompts'."""
    return f"{how_many:,} {what}{'' if how_many == 1 else 's'}"


def decimals(interval: Interval) -> int:
    """Decimal places that show the width of an interval to two digits."""
    width = interval.high - interval.low
    rounding = 1e-9 * max(abs(interval.low), abs(interval.high))
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width > rounding else 3


def number(value: float, places: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")


def with_interval(interval: Interval, *, signed: bool = False, places: int | None = None) -> str:
    """An estimate and its limits: 0.14 [0.09, 0.19]."""
    places = decimals(interval) if places is None else places
    low, high = number(interval.low, places), number(interval.high, places)
    return f"{number(interval.estimate, places, signed=signed)} [{low}, {high}]"
