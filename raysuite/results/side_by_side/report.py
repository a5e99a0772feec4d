"""The report of several runs: one HTML file that needs nothing else, and the same numbers for the terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raysuite.kernel.stats import RESAMPLES
from raysuite.results import comparison
from raysuite.results.comparison import Comparison, decimals, number, with_interval
from raysuite.results.figures import RUNS
from raysuite.results.page import costs, duration, limits, picture_with_marks, short, table, write_page
from raysuite.results.run import SPLITS, Run, flat
from raysuite.results.side_by_side import panels, sentences
from raysuite.results.side_by_side.runs import Contrast, SideBySide, contrasts, differing, listed, read_runs


def write_comparison(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of several runs and return its path. The same directories give the same bytes.

    Args:
        directories: of the runs, in the order of columns and colours.
        out: the file; `comparison.html` in the directory that holds them all unless told otherwise.

    Raises:
        UserError: a file of a run is missing or damaged, or the runs cannot be compared.
    """
    together = read_runs(directories)
    common = Path(os.path.commonpath([directory.resolve().parent for directory in directories]))
    return write_page("side_by_side.html.jinja", _content(together), out or common / "comparison.html")


def comparison_summary(directories: Sequence[Path]) -> str:
    """The verdict, what is wrong, and tables of the runs and of their differences, as plain text.

    Raises:
        UserError: a file of a run is missing or damaged, or the runs cannot be compared.
    """
    together = read_runs(directories)
    found = contrasts(together)
    lines = sentences.verdict(together, found)
    lines += [f"WARNING: {alarm}" for alarm in sentences.alarms(together)]
    lines += [f"Note: {caution}" for caution in sentences.cautions(together)]
    lines += ["", *table([("run", "updates", "spent", "base", "last", "difference [95 %]", "KL"), *_rows(together)])]
    if found:
        header = ("higher", "lower", f"difference {_level(found)}")
        lines += ["", *table([header, *(_pair(together, contrast) for contrast in found)])]
    return "\n".join(lines).replace("−", "-")


def _rows(together: SideBySide) -> Iterator[tuple[str, ...]]:
    gains = together.gains
    places = _places(gains)
    for name, run, gain, spent in zip(together.names, together.runs, gains, together.spent, strict=True):
        base, last = (with_interval(interval, places=places) for interval in (gain.before, gain.after))
        difference = with_interval(gain.difference, signed=True, places=places)
        yield name, str(gain.last), f"{spent:,.0f}", base, last, difference, _kl(run, gain.last)


def _places(gains: Sequence[Comparison]) -> int:
    """Decimal places for numbers that stand below each other."""
    return min(decimals(gain.difference) for gain in gains)


def _kl(run: Run, update: int) -> str:
    kl = comparison.kl(run).get(update)
    return with_interval(kl) if kl else "–"


def _pair(together: SideBySide, contrast: Contrast) -> tuple[str, ...]:
    higher, lower = together.method_name(contrast.higher), together.method_name(contrast.lower)
    return higher, lower, with_interval(contrast.difference, signed=True)


def _level(found: Sequence[Contrast]) -> str:
    return "[95 %]" if len(found) == 1 else f"[95 % for all {len(found)} at once]"


def _content(together: SideBySide) -> dict[str, Any]:
    found = contrasts(together)
    trees = [
        {key: value for key, value in run.provenance.items() if key not in ("command", "date")} for run in together.runs
    ]
    lead, *more = sentences.verdict(together, found)
    return {
        "title": listed(together.names),
        "together": together,
        "label": comparison.label(together.headline),
        "splits": SPLITS,
        "tags": [
            (RUNS[colour], panels.GLYPHS[marker], name)
            for (colour, marker), name in zip(panels.looks(together), together.names, strict=True)
        ],
        "lead": lead,
        "more": more,
        "alarms": sentences.alarms(together),
        "cautions": sentences.cautions(together),
        "tiles": list(_tiles(together)),
        "gains": list(_gains(together)),
        "contrasts": found,
        "level": _level(found),
        "curves": [(reward, split, Markup(chart.svg())) for reward, split, chart in panels.curves(together)],
        "kl": Markup(kl.svg()) if (kl := panels.kl_curves(together)) else None,
        "frontiers": [(reward, Markup(chart.svg())) for reward, chart in panels.frontiers(together)],
        "pictures": list(_pictures(together)),
        "costs": list(_costs(together.runs)),
        "differing": differing([run.config for run in together.runs]),
        "same": _same(together.runs),
        "commands": [_command(run) for run in together.runs if run.provenance.get("command")],
        "origins": differing(trees),
        "dirty": [name for name, run in zip(together.names, together.runs, strict=True) if run.provenance.get("dirty")],
        "resamples": RESAMPLES,
    }


def _tiles(together: SideBySide) -> Iterator[tuple[str, str, int]]:
    """Of every run the change of the headline reward, what stands below it, and whether it is good, bad or neither."""
    gains = together.gains
    places = _places(gains)
    for run, gain, spent in zip(together.runs, gains, together.spent, strict=True):
        was = f"{number(gain.before.estimate, places)} → {number(gain.after.estimate, places)}"
        kl = comparison.kl(run).get(gain.last)
        cost = f"{short(spent)} evaluations" + (f"\nKL {number(kl.estimate, decimals(kl))}" if kl else "")
        below = f"{limits(gain.difference, places)}\n{was}\n{cost}"
        yield number(gain.difference.estimate, places, signed=True), below, gain.direction


def _gains(together: SideBySide) -> Iterator[dict[str, Any]]:
    """Every reward and split with a row for each run."""
    for reward in together.rewards:
        for split in together.splits:
            rows = together.gains_in(reward, split)
            signs = [run.sign(reward) for run in together.runs]
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
    columns = [(0, 0), *((place, run.evaluations[-1]) for place, run in enumerate(together.runs))]
    for split in together.splits:
        for _, index, sample in sorted({key[1:] for key in kept[0] if key[1] == split}):
            row = [kept[place].get((update, split, index, sample)) for place, update in columns]
            found = [picture for picture in row if picture is not None]
            if len(found) == len(row) and len({picture.prompt for picture in found}) == 1:
                places = [place for place, _ in columns]
                marked = [picture_with_marks(together.runs[place], p) for place, p in zip(places, found, strict=True)]
                yield {"split": split, "prompt": found[0].prompt, "pictures": marked}


def _costs(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """What, and how much of it in every run."""
    yield "updates until the last evaluation", [str(run.evaluations[-1]) for run in runs]
    columns = [costs(run.ledger) for run in runs]
    for rows in zip(*columns, strict=True):
        yield f"training: {rows[0][0]}", [f"{training:,}" for _, training, _ in rows]
    for rows in zip(*columns, strict=True):
        if rows[0][0] == "network evaluations":
            yield f"evaluation: {rows[0][0]}", [f"{evaluation:,}" for _, _, evaluation in rows]
    seconds = [run.ledger.get("seconds", {}) for run in runs]
    for stage in dict.fromkeys(stage for spent in seconds for stage in spent):
        yield f"time: {stage}", [duration(spent.get(stage, 0.0)) for spent in seconds]
    yield "time: all", [duration(sum(spent.values())) for spent in seconds]


def _same(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Settings that are the same in all runs."""
    other = {path for path, _ in differing([run.config for run in runs])}
    return [(path, value) for path, value in flat(runs[0].config) if path not in other]


def _command(run: Run) -> str:
    first, *words = run.provenance["command"]
    return shlex.join([Path(first).name, *words])
