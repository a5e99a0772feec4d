"""The report of several runs: one HTML file that needs nothing else, and the same numbers for the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from raysuite.kernel.stats import RESAMPLES, Interval
from raysuite.results.comparison import Comparison
from raysuite.results.figures import RUNS
from raysuite.results.numerals import decimals, number, with_interval
from raysuite.results.page import command, costs, duration, limits, picture_with_marks, short, table, write_page
from raysuite.results.run import SPLITS, Run, flat
from raysuite.results.sentences import label
from raysuite.results.side_by_side import panels, sentences
from raysuite.results.side_by_side.members import is_sweep
from raysuite.results.side_by_side.methods import Contrast, Method, contrasts, summarise, write_numbers, write_scores
from raysuite.results.side_by_side.runs import SideBySide, differing, listed, read_runs

MOST_COLUMNS = 8
"""Above this many runs pictures are shown of the first run of each method."""


def page_of(directories: Sequence[Path]) -> Path:
    """Where the page of several runs lies: in the directory that holds all of them, or is the sweep."""
    holders = [directory.resolve() if is_sweep(directory) else directory.resolve().parent for directory in directories]
    return Path(os.path.commonpath(holders)) / "comparison.html"


@dataclass(frozen=True)
class Report:
    """What several runs say, worked out once: for the terminal and for a page."""

    together: SideBySide
    methods: Sequence[Method]
    contrasts: Sequence[Contrast]

    @classmethod
    def of(cls, directories: Sequence[Path]) -> Report:
        """That of runs and sweeps, in the order of columns and colours.

        Raises:
            UserError: a file of a run is missing or damaged, or the runs cannot be compared.
        """
        together = read_runs(directories)
        return cls(together, summarise(together), contrasts(together))

    def write(self, page: Path) -> Path:
        """The page; its numbers beside it, and the scores that they come from. The same directories give the same bytes."""
        content = _content(self.together, self.methods, self.contrasts)
        written = write_page("side_by_side.html.jinja", content, page)
        write_numbers(self.together, self.methods, self.contrasts, page.with_suffix(".parquet"))
        write_scores(self.together, self.methods, page.with_suffix(".scores.parquet"))
        return written

    def summary(self, width: int | None = None) -> str:
        """The verdict, what is wrong, and tables of the methods and of their differences, for a terminal of so many characters."""
        together, methods, found = self.together, self.methods, self.contrasts
        lines = sentences.verdict(together, methods, found)
        lines += [f"WARNING: {alarm}" for alarm in sentences.alarms(together)]
        lines += [f"Note: {caution}" for caution in sentences.cautions(together)]
        lines += ["", *table([_header(methods), *(_row(methods, method) for method in methods)], width)]
        if found:
            header = ("higher", "lower", *(f"{what} {_level(found)}" for what in ("difference", "P(improvement)")))
            lines += ["", *table([header, *(_pair(together, contrast) for contrast in found)], width, names=2)]
        return "\n".join(lines).replace("−", "-")


def _header(methods: Sequence[Method]) -> tuple[str, ...]:
    diversity = ("diversity",) if methods[0].diversity else ()
    return "method", "seeds", "trials", "last [95 %]", "gained [95 %]", *diversity, "KL", "spent", "time"


def _row(methods: Sequence[Method], method: Method) -> tuple[str, ...]:
    places = min(decimals(m.gain) for m in methods)
    diversity = (_estimate(method.diversity),) if methods[0].diversity else ()
    return (
        method.name,
        str(len(method.runs)),
        "–" if method.tried is None else str(method.tried),
        with_interval(method.last, places=places),
        with_interval(method.gain, signed=True, places=places),
        *diversity,
        _estimate(method.kl),
        f"{method.network_evaluations:,.0f}",
        duration(method.seconds),
    )


def _estimate(interval: Interval | None) -> str:
    return f"{interval.estimate:.3g}" if interval else "–"


def _places(gains: Sequence[Comparison]) -> int:
    """Decimal places for numbers that stand below each other."""
    return min(decimals(gain.difference) for gain in gains)


def _pair(together: SideBySide, contrast: Contrast) -> tuple[str, ...]:
    higher, lower = together.method_names[contrast.higher], together.method_names[contrast.lower]
    return higher, lower, with_interval(contrast.difference, signed=True), with_interval(contrast.improvement, places=2)


def _level(found: Sequence[Contrast]) -> str:
    return "[95 %]" if len(found) == 1 else f"[95 % for all {len(found)} at once]"


def _content(together: SideBySide, methods: Sequence[Method], found: Sequence[Contrast]) -> dict[str, Any]:
    first = [together.runs[shown.runs[0]] for shown in together.shown]
    trees = [{key: value for key, value in run.provenance.items() if key not in ("command", "date")} for run in first]
    lead, *more = sentences.verdict(together, methods, found)
    return {
        "title": listed([method.name for method in methods]),
        "together": together,
        "label": label(together.headline),
        "splits": SPLITS,
        "tags": [
            (RUNS[colour], panels.GLYPHS[marker], shown.name)
            for (colour, marker), shown in zip(panels.looks(together), together.shown, strict=True)
        ],
        "tags_of": [
            [place for place, shown in enumerate(together.shown) if shown.method == number]
            for number in range(len(methods))
        ],
        "lead": lead,
        "more": more,
        "alarms": sentences.alarms(together),
        "cautions": sentences.cautions(together),
        "tiles": list(_tiles(methods, together)),
        "header": _header(methods),
        "rows": [_row(methods, method) for method in methods],
        "named_apart": [
            method.name != " + ".join(shown.name for shown in together.shown if shown.method == number)
            for number, method in enumerate(methods)
        ],
        "repeated": any(len(method.runs) > 1 for method in methods),
        "gained": Markup(panels.gains(together, methods).svg()),
        "tuning": Markup(tuning.svg()) if (tuning := panels.tuning(together)) else None,
        "best": Markup(panels.best_curve(together).svg()),
        "gains": list(_gains(together)),
        "contrasts": found,
        "level": _level(found),
        "curves": [(reward, split, Markup(chart.svg())) for reward, split, chart in panels.curves(together)],
        "kl": Markup(kl.svg()) if (kl := panels.kl_curves(together)) else None,
        "frontiers": [(reward, Markup(chart.svg())) for reward, chart in panels.frontiers(together)],
        "pictures": list(_pictures(together)),
        "shown": _columns(together),
        "costs": list(_costs(together)),
        "differing": differing([run.config for run in first]),
        "same": _same(together.runs),
        "commands": list(dict.fromkeys(filter(None, (command(run.provenance) for run in together.runs)))),
        "origins": differing(trees),
        "dirty": [name for name, run in zip(together.names, together.runs, strict=True) if run.provenance.get("dirty")],
        "resamples": RESAMPLES,
    }


def _tiles(methods: Sequence[Method], together: SideBySide) -> Iterator[tuple[str, str, int]]:
    """Of every method the change of the headline reward, what stands below it, and whether it is good, bad or neither."""
    places = min(decimals(method.gain) for method in methods)
    for method in methods:
        base = float(together.values(together.methods.index(list(method.runs)), first=True).mean())
        was = f"{number(base, places)} → {number(method.last.estimate, places)}"
        kl = f"\nKL {_estimate(method.kl)}" if method.kl else ""
        below = f"{limits(method.gain, places)}\n{was}\n{short(method.network_evaluations)} evaluations{kl}"
        yield number(method.gain.estimate, places, signed=True), below, method.direction


def _gains(together: SideBySide) -> Iterator[dict[str, Any]]:
    """Every reward and split with a row for each run or method."""
    for reward in together.rewards:
        for split in together.splits:
            found = (together.gain_of(shown.runs, reward, split) for shown in together.shown)
            rows = [gain for gain in found if gain is not None]
            signs = [together.runs[shown.runs[0]].sign(reward) for shown in together.shown]
            yield {
                "reward": reward,
                "split": split,
                "rows": rows,
                "places": _places(rows),
                "signs": signs,
            }


def _pictures(together: SideBySide) -> Iterator[dict[str, Any]]:
    """Every prompt and sample that all runs kept, under the model as it came and every run's last evaluation."""
    kept = [{(p.update, p.split, p.index, p.sample): p for p in run.pictures} for run in together.runs]
    places = [together.shown[column].runs[0] for column in _columns(together)]
    columns = [(0, 0), *((place, together.runs[place].evaluations[-1]) for place in places)]
    for split in together.splits:
        for _, index, sample in sorted({key[1:] for key in kept[0] if key[1] == split}):
            row = [kept[place].get((update, split, index, sample)) for place, update in columns]
            found = [picture for picture in row if picture is not None]
            if len(found) == len(row) and len({picture.prompt for picture in found}) == 1:
                runs = [together.runs[place] for place, _ in columns]
                marked = [picture_with_marks(run, picture) for run, picture in zip(runs, found, strict=True)]
                yield {"split": split, "prompt": found[0].prompt, "pictures": marked}


def _columns(together: SideBySide) -> list[int]:
    """Of what is shown, that of which there are pictures: of a method with several runs those of the first."""
    if len(together.shown) <= MOST_COLUMNS:
        return list(range(len(together.shown)))
    methods = [shown.method for shown in together.shown]
    return [methods.index(number) for number in range(len(together.methods))]


def _costs(together: SideBySide) -> Iterator[tuple[str, list[str]]]:
    """What, and how much of it in every run; where a method's runs are shown as one their mean."""

    def means(values: Sequence[float]) -> list[float]:
        return [float(np.mean([values[place] for place in shown.runs])) for shown in together.shown]

    def counts(values: Sequence[float]) -> list[str]:
        return [f"{value:,.0f}" for value in means(values)]

    runs = together.runs
    yield "updates until the last evaluation", counts([run.evaluations[-1] for run in runs])
    for rows in zip(*(costs(run.ledger) for run in runs), strict=True):
        yield f"training: {rows[0][0]}", counts([training for _, training, _ in rows])
        if rows[0][0] == "network evaluations":
            yield f"evaluation: {rows[0][0]}", counts([evaluation for _, _, evaluation in rows])
    seconds = [run.ledger.get("seconds", {}) for run in runs]
    for stage in dict.fromkeys(stage for spent in seconds for stage in spent):
        yield f"time: {stage}", [duration(value) for value in means([spent.get(stage, 0.0) for spent in seconds])]
    yield "time: all", [duration(value) for value in means([sum(spent.values()) for spent in seconds])]


def _same(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Settings that are the same in all runs."""
    other = {path for path, _ in differing([run.config for run in runs])}
    return [(path, value) for path, value in flat(runs[0].config) if path not in other]
