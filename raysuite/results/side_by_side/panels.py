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


def gains(together: SideBySide, methods: Sequence[Method]) -> Forest:
    """What each method gained on the headline reward, the most above, with a dot for each of its runs."""
    found = looks(together)
    split = together.splits[0]
    bars = []
    for number, method in enumerate(methods):
        look = next(look for look, shown in zip(found, together.shown, strict=True) if shown.method == number)
        single = [together.gains[place].difference.estimate for place in method.runs]
        bars.append(Bar(method.name, method.gain, RUNS[look[0]], MARKERS[look[1]], single if len(single) > 1 else ()))
    title = f"{together.headline} on {SPLITS[split]} prompts: gained, with 95 % intervals"
    bars.sort(key=lambda bar: -bar.interval.estimate)
    return Forest("gained", title, f"{title}, a bar for each method", bars, xlabel="above the model as it came")


def curves(together: SideBySide) -> Iterator[tuple[str, str, Chart]]:
    """Reward, split and chart with a line for each run or method."""
    for i, reward in enumerate(together.rewards):
        for split in together.splits:

            def track(run: Run, reward: str = reward, split: str = split) -> Track:
                scores = run.scores.where(reward=reward, split=split)
                updates = np.unique(scores.update)
                means = [comparison.mean(scores.where(update=update)) for update in updates]
                return dict(zip(updates.tolist(), zip(run.spent(updates).tolist(), means, strict=True), strict=True))

            title = f"{reward} on {SPLITS[split]} prompts"
            describe = f"{title} against {SPENT}, a line for each {_what(together)}"
            yield (
                reward,
                split,
                Chart(f"reward{i}-{split}", title, describe, _lines(together, track), {"xlabel": SPENT}),
            )


def best_curve(together: SideBySide) -> Chart:
    """The best evaluation so far on the headline reward against the budget, a line for each method: the mean of its runs."""
    found = looks(together)
    lines = {}
    for number in range(len(together.methods)):
        look = next(look for look, shown in zip(found, together.shown, strict=True) if shown.method == number)
        spent, *best = best_so_far(together, number)
        lines[together.method_name(number)] = _line(look, spent, best)
    title = f"Best {together.headline} on {SPLITS[together.along]} prompts within a budget"
    return Chart("best", title, f"{title}, a line for each method", lines, {"xlabel": SPENT})


def kl_curves(together: SideBySide) -> Chart | None:
    """The KL with a line for each run or method; None where none measured it."""

    def track(run: Run) -> Track:
        found = comparison.kl(run)
        return {u: (x, found[u]) for u, x in zip(found, run.spent(list(found)).tolist(), strict=True)}

    lines = _lines(together, track)
    if not lines:
        return None
    describe = f"{KL}, against {SPENT}, a line for each {_what(together)}"
    return Chart("kl", KL, describe, lines, {"xlabel": SPENT, "reference": 0.0})


def frontiers(together: SideBySide) -> Iterator[tuple[str, Chart]]:
    """Every reward on the split that shows the way against the KL, a path of evaluations for each run or method."""
    split = together.along
    for i, reward in enumerate(together.rewards):

        def track(run: Run, reward: str = reward) -> Track:
            kl, scores = comparison.kl(run), run.scores.where(reward=reward, split=split)
            updates = [update for update in run.evaluations if update in kl and update in scores.update]
            return {update: (kl[update].estimate, comparison.mean(scores.where(update=update))) for update in updates}

        lines = _lines(together, track, band=False)
        if lines:
            title = f"{reward} on {SPLITS[split]} prompts against the KL"
            what = f"a path for each {_what(together)}"
            describe = f"{reward} on {SPLITS[split]} prompts against the {KL}, {what}"
            base = float(together.runs[0].scores.where(reward=reward, split=split, update=0).value.mean())
            options = {"xlabel": KL, "reference": base, "whole": False}
            yield reward, Chart(f"frontier{i}", title, describe, lines, options)


def _what(together: SideBySide) -> str:
    return "method" if together.by_method else "run"


def _lines(together: SideBySide, track: Callable[[Run], Track], *, band: bool = True) -> dict[str, Line]:
    """A line for everything that is shown and has more than one point: a run with its intervals, or the mean of several with the
    lowest and the highest of them.
    """
    lines = {}
    for look, shown in zip(looks(together), together.shown, strict=True):
        tracks = [track(together.runs[place]) for place in shown.runs]
        updates = sorted(set.intersection(*(set(one) for one in tracks)))
        if len(updates) < 2:
            continue
        x_RU = np.array([[one[update][0] for update in updates] for one in tracks])
        if len(tracks) == 1:
            points = [tracks[0][update][1] for update in updates]
            y = np.array([(point.estimate, point.low, point.high) for point in points]).T
        else:
            y_RU = np.array([[one[update][1].estimate for update in updates] for one in tracks])
            y = np.array([y_RU.mean(0), y_RU.min(0), y_RU.max(0)])
        lines[shown.name] = _line(look, x_RU.mean(0), y, band=band)
    return lines


def _line(look: Look, x: np.ndarray, y: np.ndarray | Sequence[np.ndarray], *, band: bool = True) -> Line:
    return Line(x, y[0], RUNS[look[0]], y[1], y[2], marker=MARKERS[look[1]], band=band)
