"""Methods: runs with the same settings are the repetitions of one. What each reached, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.kernel.stats import RESAMPLES, Interval, by_prompt, differences_of_methods, improvements
from raysuite.places import replacing
from raysuite.results import comparison
from raysuite.results.comparison import generator
from raysuite.results.run import EMPTY, Run
from raysuite.results.side_by_side.runs import SideBySide

MOST_RESAMPLES = 200_000
"""Of all pairs of methods: more take minutes, and gigabytes."""


@dataclass(frozen=True)
class Method:
    """What the runs of one method reached together."""

    name: str
    runs: tuple[int, ...]
    """Their places."""
    tried: int | None
    """Settings that its objective was tuned over; None where nobody said."""
    last: Interval
    """The headline reward at the last evaluation."""
    gain: Interval
    """How far that lies above the model as it came."""
    kl: Interval | None
    """KL from the reference at the last evaluation, nats a trajectory: the mean of the runs. Several runs have their lowest
    and highest for limits, one has its own interval."""
    diversity: Interval | None
    """The same of the diversity, where the runs measured it."""
    network_evaluations: float
    """Spent on training, mean of the runs."""
    seconds: float
    """Of wall time, with evaluation; mean of the runs."""

    @property
    def direction(self) -> int:
        """+1 or -1 where the interval of the gain lies on one side of zero, else 0."""
        return self.gain.direction


@dataclass(frozen=True)
class Contrast:
    """How far the last evaluations of one method lie above those of another, both named by their place."""

    higher: int
    lower: int
    difference: Interval
    improvement: Interval
    """The probability that a run of `higher` is better on a prompt than one of `lower`."""

    @property
    def told(self) -> bool:
        """Whether the difference can be told from none."""
        return self.difference.low > 0


def summarise(together: SideBySide) -> list[Method]:
    """Every method, in the order of its first run."""
    return [_method(together, number) for number in range(len(together.methods))]


def _method(together: SideBySide, number: int) -> Method:
    places = together.methods[number]
    runs = [together.runs[place] for place in places]
    gain = together.gain_of(places, together.headline, together.splits[0])
    assert gain is not None  # the headline is a reward that all runs have
    kls = [comparison.kl(run).get(run.evaluations[-1]) for run in runs]
    origin = together.origins[places[0]]
    return Method(
        name=together.method_names[number],
        runs=tuple(places),
        tried=origin.tried if origin else None,
        last=gain.after,
        gain=gain.difference,
        kl=_over_runs([kl for kl in kls if kl is not None]),
        diversity=_diversity(together, runs),
        network_evaluations=float(np.mean([together.spent[place] for place in places])),
        seconds=float(np.mean([sum(run.ledger.get("seconds", {}).values()) for run in runs])),
    )


def _over_runs(found: Sequence[Interval]) -> Interval | None:
    if len(found) < 2:
        return found[0] if found else None
    values = [interval.estimate for interval in found]
    return Interval(float(np.mean(values)), min(values), max(values))


def _diversity(together: SideBySide, runs: Sequence[Run]) -> Interval | None:
    """How unlike the pictures of one prompt are at the last evaluation, in the first split for which all runs say it. An unfinished
    run's last evaluation may have one picture a prompt, which says nothing.
    """
    for split in together.splits:
        name = f"evaluation/diversity/{split}"
        ends = {run: _at_last(run, name) for run in together.runs}
        if all(len(end) for end in ends.values()):
            values = [float(ends[run][0]) for run in runs]
            return _over_runs([Interval(value, float("nan"), float("nan")) for value in values])
    return None


def _at_last(run: Run, name: str) -> np.ndarray:
    """A metric at the last evaluation, (1,), or (0,) where that does not have it."""
    series = run.metrics.get(name, EMPTY)
    return series.values[series.updates == run.evaluations[-1]]


def contrasts(together: SideBySide) -> list[Contrast]:
    """Every pair of methods on the headline reward, paired by picture, the highest first.

    Intervals hold for all pairs at once with 95 % (Bonferroni): with m pairs each has a confidence of
    1 - 0.05 / m. They are over prompts and over the runs of both methods; with one run each they say nothing about other seeds.

    Up to 100 pairs 50 resamples lie beyond each limit. `MOST_RESAMPLES` then leaves 18 with 24 methods and 6 with 40: a limit is off
    by about 2 % of its distance from the estimate, from one draw to another, in place of 1 %.
    """
    prompts = by_prompt(together.last(0).prompt)
    values = [together.values(number) for number in range(len(together.methods))]
    order = sorted(range(len(values)), key=lambda method: -float(values[method].mean()))
    if not (pairs := list(combinations(order, 2))):
        return []
    confidence, resamples = 1 - 0.05 / len(pairs), min(RESAMPLES * len(pairs), MOST_RESAMPLES)
    found = (
        of(values, pairs, prompts, generator(), confidence=confidence, resamples=resamples)
        for of in (differences_of_methods, improvements)
    )
    return [Contrast(*pair, *intervals) for pair, *intervals in zip(pairs, *found, strict=True)]


def write_numbers(together: SideBySide, methods: Sequence[Method], found: Sequence[Contrast], path: Path) -> None:
    """All numbers as a table, a row each: `quantity` of `method`, or of `method` against `other`."""
    rows = [*_own(together, methods), *_between(together, found)]
    columns = ("method", "other", "quantity", "estimate", "low", "high", "runs", "tried")
    _put(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), path)


def write_scores(together: SideBySide, methods: Sequence[Method], path: Path) -> None:
    """What each picture scored that all runs have, so that a reader can compute anew what is said of the runs' ends: `evaluation` is
    "first" for the model as it came, "last" for where the run ended.
    """
    tables = []
    for method in methods:
        for place in method.runs:
            run = together.runs[place]
            for evaluation, update in {"first": run.evaluations[0], "last": run.evaluations[-1]}.items():
                found = run.scores.where(update=update)
                found = found.keep(np.isin(found.reward, together.rewards))
                own = {"method": method.name, "run": together.names[place], "seed": run.config["seed"]}
                columns = {name: [value] * len(found) for name, value in (own | {"evaluation": evaluation}).items()}
                columns |= {name: getattr(found, name) for name in ("split", "prompt", "sample", "reward", "value")}
                tables.append(pa.table(columns))
    _put(pa.concat_tables(tables), path)


def _put(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _own(together: SideBySide, methods: Sequence[Method]) -> Iterator[tuple[object, ...]]:
    nothing = float("nan")
    for number, method in enumerate(methods):
        reward = f"{together.splits[0]}/{together.headline}"
        quantities = {
            f"{reward} at the end": method.last,
            f"{reward} gained": method.gain,
            "KL from the reference, nats": method.kl,
            "diversity": method.diversity,
            "network evaluations": Interval(method.network_evaluations, nothing, nothing),
            "seconds": Interval(method.seconds, nothing, nothing),
        }
        for quantity, interval in quantities.items():
            if interval is not None:
                limits = interval.estimate, interval.low, interval.high
                yield method.name, None, quantity, *limits, len(method.runs), method.tried
        for spent, best in zip(*best_so_far(together, number)[:2], strict=True):
            quantity = f"best {together.along}/{together.headline} within {spent:.0f} network evaluations"
            yield method.name, None, quantity, float(best), nothing, nothing, len(method.runs), method.tried


def _between(together: SideBySide, found: Sequence[Contrast]) -> Iterator[tuple[object, ...]]:
    for contrast in found:
        names = together.method_names[contrast.higher], together.method_names[contrast.lower]
        for quantity, i in {"difference": contrast.difference, "improvement": contrast.improvement}.items():
            yield *names, quantity, i.estimate, i.low, i.high, len(together.methods[contrast.higher]), None


def best_so_far(together: SideBySide, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Network evaluations, and what the best evaluation within them reached (headline reward): mean, lowest, highest run."""
    tracks = []
    for place in together.methods[number]:
        curve = together.curve(place)
        tracks.append((curve.network_evaluations, np.maximum.accumulate(curve.mean)))
    budgets = np.unique(np.concatenate([spent for spent, _ in tracks]))
    best_RB = np.array([best[np.searchsorted(spent, budgets, side="right") - 1] for spent, best in tracks])
    return budgets, best_RB.mean(0), best_RB.min(0), best_RB.max(0)
