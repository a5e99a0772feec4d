"""Figures of several runs: rewards against what was spent and against the KL, in the colours of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from raysuite.kernel.stats import Interval
from raysuite.results import comparison
from raysuite.results.figures import MARKERS, RUNS, Bar, Chart, Forest, Line
from raysuite.results.page import SPENT
from raysuite.results.run import SPLITS, Run
from raysuite.results.side_by_side.methods import Method, best_so_far
from raysuite.results.side_by_side.runs import SideBySide

GLYPHS = ["●", "■", "▲", "◆", "▼", "✚", "✖", "★"]
"""MARKERS as letters."""
KL = "KL from the reference, nats a trajectory"

Look = tuple[int, int]
"""Places in RUNS and in MARKERS."""
Track = Mapping[int, tuple[float, Interval]]
"""A run's evaluations by updates: what is along, and what is up."""


def looks(together: SideBySide) -> list[Look]:
    """Colour and marker of everything that is shown: a colour for each method, another marker for each of its repetitions."""
    found, used = [], Counter[int]()
    for shown in together.shown:
        colour = shown.method % len(RUNS)
        found.append((colour, (colour + used[colour]) % len(MARKERS)))
        used[colour] += 1
    return found


def looks_of_methods(together: SideBySide) -> list[Look]:
    """Colour and marker of every method: those of its first run."""
    found: dict[int, Look] = {}
    for look, shown in zip(looks(together), together.shown, strict=True):
        found.setdefault(shown.method, look)
    return [found[number] for number in range(len(together.methods))]


def gains(together: SideBySide, methods: Sequence[Method]) -> Forest:
    """What each method gained on the headline reward, the most above, with a dot for each of its runs."""
    bars = []
    for (colour, marker), method in zip(looks_of_methods(together), methods, strict=True):
        single = [together.gains[place].difference.estimate for place in method.runs]
        bars.append(Bar(method.name, method.gain, RUNS[colour], MARKERS[marker], single if len(single) > 1 else ()))
    title = f"{together.headline} on {SPLITS[together.splits[0]]} prompts: gained, with 95 % intervals"
    bars.sort(key=lambda bar: -bar.interval.estimate)
    return Forest("gained", title, f"{title}, a bar for each method", bars, xlabel="above the model as it came")


def tuning(together: SideBySide) -> Forest | None:
    """What every setting reached that was tried for an objective, and what those that were chosen reach with other seeds; None where
    nothing was confirmed.
    """
    if not together.tuned:
        return None
    colours = {}
    for (colour, marker), places in zip(looks_of_methods(together), together.methods, strict=True):
        for origin in (together.origins[place] for place in places):
            if origin is not None and origin.confirms:
                colours[origin.sweep, origin.objective] = RUNS[colour], MARKERS[marker]
    bars = [
        Bar(
            one.name,
            Interval(one.reached, min(one.again), max(one.again)),
            *colours[one.sweep, one.objective],
            points=one.tried,
            hollow=one.chosen,
        )
        for one in sorted(together.tuned, key=lambda one: -one.reached)
    ]
    run = next(r for r, o in zip(together.runs, together.origins, strict=True) if o is not None and o.confirms)
    before = run.scores.where(reward=run.trained, split="held_out", update=0).value
    base = float(before.mean()) if len(before) else None  # what is compared may have other held-out prompts
    title = f"{run.trained} on {SPLITS['held_out']} prompts: the settings tried, those chosen, and these again"
    describe = f"{title} with other seeds, a row for each objective"
    return Forest(
        "tuning", title, describe, bars, xlabel=f"{run.trained}, {SPLITS['held_out']} prompts", reference=base
    )


def curves(together: SideBySide) -> Iterator[tuple[str, str, Chart]]:
    """Reward, split and chart with a line for each run or method."""
    for i, reward in enumerate(together.rewards):
        for split in together.splits:

            def track(run: Run, reward: str = reward, split: str = split) -> Track:
                return _against_spent(run, together.by_update(run, reward, split))

            title = f"{reward} on {SPLITS[split]} prompts"
            describe = f"{title} against {SPENT}, a line for each {_what(together)}"
            lines = _lines(together, track)
            yield reward, split, Chart(f"reward{i}-{split}", title, describe, lines, {"xlabel": SPENT})


def best_curve(together: SideBySide) -> Chart:
    """The best evaluation so far on the headline reward against the budget, a line for each method: the mean of its runs."""
    lines = {}
    for number, look in enumerate(looks_of_methods(together)):
        spent, *best = best_so_far(together, number)
        lines[together.method_names[number]] = _line(look, spent, best)
    title = f"Best {together.headline} on {SPLITS[together.along]} prompts within a budget"
    describe = (
        f"{title}, a line for each method: a highest of noisy evaluations, so that more of them reach further by chance"
    )
    return Chart("best", title, describe, lines, {"xlabel": SPENT})


def kl_curves(together: SideBySide) -> Chart | None:
    """The KL with a line for each run or method; None where none measured it."""
    lines = _lines(together, lambda run: _against_spent(run, comparison.kl(run)))
    if not lines:
        return None
    describe = f"{KL}, against {SPENT}, a line for each {_what(together)}"
    return Chart("kl", KL, describe, lines, {"xlabel": SPENT, "reference": 0.0})


def frontiers(together: SideBySide) -> Iterator[tuple[str, Chart]]:
    """Every reward on the split that shows the way against the KL, a path of evaluations for each run or method."""
    split = together.along
    for i, reward in enumerate(together.rewards):

        def track(run: Run, reward: str = reward) -> Track:
            kl, means = comparison.kl(run), together.by_update(run, reward, split)
            return {update: (kl[update].estimate, mean) for update, mean in means.items() if update in kl}

        lines = _lines(together, track, band=False)
        if lines:
            title = f"{reward} on {SPLITS[split]} prompts against the KL"
            describe = f"{reward} on {SPLITS[split]} prompts against the {KL}, a path for each {_what(together)}"
            base = together.by_update(together.runs[0], reward, split)[0].estimate  # of the paths' own pictures
            options = {"xlabel": KL, "reference": base, "whole": False}
            yield reward, Chart(f"frontier{i}", title, describe, lines, options)


def _against_spent(run: Run, found: Mapping[int, Interval]) -> Track:
    return dict(zip(found, zip(run.spent(list(found)).tolist(), found.values(), strict=True), strict=True))


def _what(together: SideBySide) -> str:
    return "method" if together.by_method else "run"


def _lines(together: SideBySide, track: Callable[[Run], Track], *, band: bool = True) -> dict[str, Line]:
    """A line for everything that is shown and has more than one point: a run with its intervals, or the mean of several with the
    lowest and the highest of them.
    """
    lines = {}
    for look, shown in zip(looks(together), together.shown, strict=True):
        tracks = _alike([track(together.runs[place]) for place in shown.runs])
        if len(tracks[0]) < 2:
            continue
        x_RU = np.array([[spent for spent, _ in one] for one in tracks])
        if len(tracks) == 1:
            y = np.array([(point.estimate, point.low, point.high) for _, point in tracks[0]]).T
        else:
            y_RU = np.array([[point.estimate for _, point in one] for one in tracks])
            y = np.array([y_RU.mean(0), y_RU.min(0), y_RU.max(0)])
        lines[shown.name] = _line(look, x_RU.mean(0), y, band=band)
    return lines


def _alike(tracks: Sequence[Track]) -> list[list[tuple[float, Interval]]]:
    """Of every run the evaluations that all have, and its own last one: updates may differ in cost, and a budget then ends runs of one
    method after other numbers of them.
    """
    ends = [max(one, default=None) for one in tracks]
    between = sorted(set.intersection(*(set(one) for one in tracks)) - set(ends))
    return [
        [one[update] for update in between] + ([] if end is None else [one[end]])
        for one, end in zip(tracks, ends, strict=True)
    ]


def _line(look: Look, x: np.ndarray, y: np.ndarray | Sequence[np.ndarray], *, band: bool = True) -> Line:
    return Line(x, y[0], RUNS[look[0]], y[1], y[2], marker=MARKERS[look[1]], band=band)
