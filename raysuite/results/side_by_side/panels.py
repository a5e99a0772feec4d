"""Figures of several runs: rewards against what was spent and against the KL, in the colours of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from raysuite.results import comparison
from raysuite.results.figures import MARKERS, RUNS, Chart, Line
from raysuite.results.page import SPENT
from raysuite.results.run import SPLITS, Run
from raysuite.results.side_by_side.methods import best_so_far
from raysuite.results.side_by_side.runs import SideBySide

GLYPHS = ["●", "■", "▲", "◆", "▼", "✚", "✖", "★"]
"""MARKERS as letters."""
KL = "KL from the reference, nats a trajectory"

Look = tuple[int, int]
"""Places in RUNS and in MARKERS."""


def looks(together: SideBySide) -> list[Look]:
    """Colour and marker of every run: a colour for each method, another marker for each of its repetitions."""
    found, used = {}, Counter[int]()
    for method, places in enumerate(together.methods):
        colour = method % len(RUNS)
        for place in places:
            found[place] = colour, (colour + used[colour]) % len(MARKERS)
            used[colour] += 1
    return [found[place] for place in range(len(together.runs))]


def curves(together: SideBySide) -> Iterator[tuple[str, str, Chart]]:
    """Reward, split and chart with a line for each run."""
    for i, reward in enumerate(together.rewards):
        for split in together.splits:
            lines = {}
            for name, look, run in _each(together):
                c = comparison.curve(run, reward, split)
                lines[name] = _line(look, c.network_evaluations, (c.mean, c.low, c.high))
            title = f"{reward} on {SPLITS[split]} prompts"
            describe = f"{title} against {SPENT}, a line for each run"
            yield reward, split, Chart(f"reward{i}-{split}", title, describe, lines, {"xlabel": SPENT})


def _each(together: SideBySide) -> Iterator[tuple[str, Look, Run]]:
    return zip(together.names, looks(together), together.runs, strict=True)


def best_curve(together: SideBySide) -> Chart:
    """The best evaluation so far on the headline reward against the budget, a line for each method: the mean of its runs."""
    found = looks(together)
    lines = {}
    for number, places in enumerate(together.methods):
        spent, *best = best_so_far(together, number)
        lines[together.method_name(number)] = _line(found[places[0]], spent, best)
    title = f"Best {together.headline} on {SPLITS[together.along]} prompts within a budget"
    return Chart("best", title, f"{title}, a line for each method", lines, {"xlabel": SPENT})


def _line(look: Look, x: np.ndarray, y: np.ndarray | Sequence[np.ndarray], *, band: bool = True) -> Line:
    return Line(x, y[0], RUNS[look[0]], y[1], y[2], marker=MARKERS[look[1]], band=band)


def kl_curves(together: SideBySide) -> Chart | None:
    """The KL with a line for each run; None where none measured it."""
    lines = {}
    for name, look, run in _each(together):
        found = comparison.kl(run)
        if len(found) > 1:
            columns = np.array([(i.estimate, i.low, i.high) for i in found.values()]).T
            lines[name] = _line(look, run.spent(list(found)), columns)
    if not lines:
        return None
    describe = f"{KL}, against {SPENT}, a line for each run"
    return Chart("kl", KL, describe, lines, {"xlabel": SPENT, "reference": 0.0})


def frontiers(together: SideBySide) -> Iterator[tuple[str, Chart]]:
    """Every reward on the split that shows the way against the KL, a path of evaluations for each run."""
    split = together.along
    for i, reward in enumerate(together.rewards):
        paths = {name: _path(look, run, reward, split) for name, look, run in _each(together)}
        lines = {name: line for name, line in paths.items() if line is not None}
        if lines:
            title = f"{reward} on {SPLITS[split]} prompts against the KL"
            describe = f"{reward} on {SPLITS[split]} prompts against the {KL}, a path for each run"
            base = float(together.runs[0].scores.where(reward=reward, split=split, update=0).value.mean())
            options = {"xlabel": KL, "reference": base, "whole": False}
            yield reward, Chart(f"frontier{i}", title, describe, lines, options)


def _path(look: Look, run: Run, reward: str, split: str) -> Line | None:
    """A run's evaluations as points of KL and reward."""
    kl, scores = comparison.kl(run), run.scores.where(reward=reward, split=split)
    updates = [update for update in run.evaluations if update in kl and update in scores.update]
    if len(updates) < 2:
        return None
    means = [comparison.mean(scores.where(update=update)) for update in updates]
    columns = np.array([(mean.estimate, mean.low, mean.high) for mean in means]).T
    return _line(look, np.array([kl[update].estimate for update in updates]), columns, band=False)
