"""Figures of a study. Each is a list of lines, which a page draws in its colours and a notebook in those of paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from raysuite.kernel.stats import Interval
from raysuite.results.figures import MARKERS, PRINT, RUNS, Chart, Line
from raysuite.results.study.read import Estimate, Gain, Study, read_study

EVEN = {"parameters": "gradients", "adam": "gradients as Adam scales them", "prediction": "changes of predictions"}
"""What is compared in each space, in words."""
APART = 0.05
"""Lines by objective lie this far apart, as a share of the distance between places."""

Place = TypeVar("Place", int, str)
"""A rung's number, or the name of a part."""


def heat_map(study: Study, quantity: str = "expected_cosine", *, space: str = "parameters", rung: int = 0) -> Figure:
    """Agreement of every two objectives with its interval in each cell; a dash where there is no direction.

    Cells are as deep as their intervals support at least.
    """
    labels, side = study.labels, len(study.labels)
    found = np.stack(study.matrix(quantity, space=space, rung=rung))
    longest = max(map(len, labels))
    size = (0.5 + 0.09 * longest + 1.15 * side, 0.7 + 0.04 * longest + 0.8 * side)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="#f0f1f2")
    deep = np.array([[supported(Interval(*found[:, i, j])) for j in range(side)] for i in range(side)])
    axes.imshow(deep, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for i, j in np.ndindex(side, side):
        if i != j:
            colour = "white" if abs(deep[i, j]) > 0.45 else PRINT["ink"]
            axes.text(j, i, cell(Interval(*found[:, i, j])), ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xticks(range(side), labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(side), labels, fontsize=9)
    axes.tick_params(length=0, colors=PRINT["ink"])
    axes.spines[:].set_visible(False)
    figure.suptitle(f"{NAMES[quantity]}, {EVEN[space]}", fontsize=10, color=PRINT["ink"], x=0.01, ha="left")
    return figure


COSINES = ("expected_cosine", "matched_cosine")
NAMES = {
    "expected_cosine": "cosine of expected directions",
    "matched_cosine": "the same with timesteps weighted alike",
    "batch_cosine": "cosine of these very batches",
}


def supported(found: Interval) -> float:
    """How deep a cell is coloured: the limit next to zero, 0 where the interval spans it; the estimate without limits."""
    if np.isnan(found.low):
        return found.estimate
    return max(found.low, 0.0) if found.estimate > 0 else min(found.high, 0.0)


def cell(found: Interval) -> str:
    """An estimate over its limits, or a dash."""
    if np.isnan(found.estimate):
        return "–"
    if np.isnan(found.low):
        return f"{found.estimate:.2f}"
    return f"{found.estimate:.2f}\n[{found.low:.2f}, {found.high:.2f}]"


def by_bin(study: Study, *, space: str = "parameters", rung: int = 0, base: str | None = None) -> Chart:
    """Agreement with one objective by timestep."""
    places = {str(number): (first + last) / 2 for number, (first, last) in enumerate(study.facts["bins"])}
    xlabel, apart = "timestep (noise to the right)", APART * np.ptp(study.facts["bins"][0])
    return _by_part(study, "bin", places, space, rung, base, title="by timestep", xlabel=xlabel, apart=apart)


def by_block(study: Study, *, space: str = "parameters", rung: int = 0, base: str | None = None) -> Chart:
    """Agreement with one objective by block of layers."""
    places = {block: float(number) for number, block in enumerate(study.blocks)}
    return _by_part(study, "block", places, space, rung, base, title="by layer", xlabel="", ticks=study.blocks)


def _by_part(
    study: Study,
    part: str,
    places: Mapping[str, float],
    space: str,
    rung: int,
    base: str | None,
    *,
    title: str,
    xlabel: str,
    apart: float = APART,
    ticks: Sequence[str] = (),
) -> Chart:
    against = base or study.base([study.rungs[rung]], space=space)

    def at(where: str, label: str) -> Estimate | None:
        return study.one("expected_cosine", against, label, space=space, rung=rung, part=part, where=where)

    return Chart(
        name=f"study-{part}-{space}-{rung}",
        title=f"agreement with {against} {title}",
        describe=f"{NAMES['expected_cosine']} with {against} {title}, a line for each objective",
        lines=_lines(study, against, places, at, apart=apart),
        options={"xlabel": xlabel, "reference": 0.0, "whole": False, "ticks": list(map(_short, ticks))},
    )


def along(
    study: Study, path: str, quantity: str = "expected_cosine", *, space: str = "parameters", base: str | None = None
) -> Chart:
    """Agreement with one objective along a ladder; `checkpoint` is one, too."""
    rungs = study.ladder(path)
    against = base or study.base(rungs, space=space)
    ticks = [] if path == "checkpoint" else [_short(rung.at(path)) for rung in rungs]
    places = {rung.number: float(place if ticks else rung.checkpoint) for place, rung in enumerate(rungs)}

    def at(rung: int, label: str) -> Estimate | None:
        return study.one(quantity, against, label, space=space, rung=rung)

    return Chart(
        name=f"study-along-{path.replace('.', '-')}-{quantity}-{space}",
        title=f"agreement with {against} along {path}" + (", matched" if quantity == "matched_cosine" else ""),
        describe=f"{NAMES[quantity]} with {against} along {path}, a line for each objective",
        lines=_lines(study, against, places, at, apart=APART if ticks else 0.0),
        options={
            "xlabel": "updates" if path == "checkpoint" else path,
            "reference": 0.0,
            "whole": not ticks,
            "ticks": ticks,
        },
    )


def snr(study: Study, *, space: str = "parameters", rung: int = 0) -> Chart:
    """Signal-to-noise of one unit, for the objectives that show a direction."""
    lines = {}
    for place, label in enumerate(study.labels):
        found = study.one("snr", label, space=space, rung=rung)
        if found is not None and study.shows_direction(label, space=space, rung=rung):
            lines[label] = _line([(float(place), found.interval)], place)
    return Chart(
        name=f"study-snr-{space}-{rung}",
        title="signal to noise of one unit",
        describe="signal to noise of one unit, a point for each objective that shows a direction",
        lines=lines,
        options={"xlabel": "", "whole": False, "ticks": list(map(_short, study.labels)), "log": True},
    )


def gains(study: Study, *, rung: int = 0, split: str = "training") -> Chart:
    """Realised against predicted gain of the trained reward, a point for each objective, and the line where they are equal."""
    lines = {}
    for place, label in enumerate(study.labels):
        found = next((g for g in trained_gains(study, rung, split) if g.objective == label), None)
        if found is not None:
            x, y = found.predicted, found.realised
            column = np.array([[x.estimate], [y.estimate], [y.low], [y.high]])
            lines[label] = Line(column[0], column[1], RUNS[place % 8], column[2], column[3], MARKERS[place % 8])
            ends = np.array([x.low, x.high])  # of the prediction; what begins with _ has no place in a legend
            lines[f"_{label}"] = Line(ends, np.full(2, y.estimate), RUNS[place % 8])
    if lines:
        reach = max(float(np.nanmax(np.abs(np.concatenate([line.x, line.y])))) for line in lines.values())
        lines = {"as predicted": Line(np.array([-reach, reach]), np.array([-reach, reach]), "rollouts"), **lines}
    return Chart(
        name=f"study-gains-{rung}-{split}",
        title=f"gain on {split.replace('_', '-')} prompts after a step of equal KL: realised",
        describe="realised against predicted change of the trained reward, a point for each objective",
        lines=lines,
        options={"xlabel": "predicted change of the reward", "reference": 0.0, "whole": False},
    )


def trained_gains(study: Study, rung: int, split: str) -> list[Gain]:
    """Those of the trained reward: the one with predictions."""
    return [g for g in study.gains if g.rung == rung and g.split == split and not np.isnan(g.predicted.estimate)]


def charts(study: Study) -> Iterator[tuple[str, Chart]]:
    """All that the page shows, by section."""
    rungs = {space: study.first_rung(space).number for space in study.spaces}
    found = [(f"snr-{space}", snr(study, space=space, rung=rung)) for space, rung in rungs.items()]
    found += [
        (f"parts-{space}", chart(study, space=space, rung=rung))
        for space, rung in rungs.items()
        for chart in (by_bin, by_block)
    ]
    found += [(f"ladder-{path}", along(study, path, quantity)) for path in study.ladders for quantity in COSINES]
    found += [
        (f"gains-{rung.number}", gains(study, rung=rung.number, split=split))
        for rung in study.rungs
        for split in ("held_out", "training")
    ]
    return ((section, chart) for section, chart in found if chart.lines)


def write_figures(directory: Path) -> Path:
    """Write every figure of a study as SVG into its `figures/`, and return that directory.

    They are white like paper, so that they can be read on anything. The same study gives the same bytes.

    Raises:
        UserError: the study is not finished, or a file of it is damaged.
    """
    study, folder = read_study(directory), directory / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {chart.name.removeprefix("study-"): chart.figure() for _, chart in charts(study)}
    for space in study.spaces:
        rung = study.first_rung(space).number
        for quantity in COSINES:
            if not np.isnan(study.matrix(quantity, space=space, rung=rung)[0]).all():
                drawn[f"{quantity}-{space}"] = heat_map(study, quantity, space=space, rung=rung)
    for name, figure in drawn.items():
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return folder


def _lines(
    study: Study, base: str, places: Mapping[Place, float], at: Callable[[Place, str], Estimate | None], *, apart: float
) -> dict[str, Line]:
    """A line for every objective but the base, through the places where there is an estimate.

    Where places are ranges or names, lines lie `apart` from each other, so that none hides another; else a band joins them.
    """
    lines, middle = {}, (len(study.labels) - 1) / 2
    for number, label in enumerate(study.labels):
        found = [(x + apart * (number - middle), at(place, label)) for place, x in places.items() if label != base]
        points = [(x, e.interval) for x, e in found if e is not None and not np.isnan(e.interval.estimate)]
        if points:
            lines[label] = _line(points, number, band=not apart)
    return lines


def _line(points: Sequence[tuple[float, Interval]], number: int, *, band: bool = True) -> Line:
    x, y, low, high = np.array([(at, *astuple(interval)) for at, interval in points]).T
    return Line(x, y, RUNS[number % 8], low, high, MARKERS[number % 8], band=band)


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"…{text[-17:]}"
