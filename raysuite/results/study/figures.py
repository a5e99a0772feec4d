"""Figures of a study. Each is a list of lines, which a page draws in its colours and a notebook in those of paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from raysuite.kernel.stats import Interval
from raysuite.results.figures import MARKERS, PRINT, RUNS, Chart, Line
from raysuite.results.study.read import Gain, Study

AGREEMENT = "cosine of expected directions"
EVEN = {"parameters": "gradients", "adam": "gradients as Adam scales them", "prediction": "changes of predictions"}
"""What is compared in each space, in words."""


def heat_map(study: Study, quantity: str = "expected_cosine", *, space: str = "parameters", rung: int = 0) -> Figure:
    """Agreement of every two objectives with its interval in each cell; a dash where there is no direction."""
    labels = study.labels
    side = len(labels)
    values = np.full((side, side), np.nan)
    figure = Figure(figsize=(1.6 + 1.15 * side, 1.0 + 0.85 * side), layout="constrained")
    axes = figure.add_subplot()
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            found = study.one(quantity, a, b, space=space, rung=rung) if i != j else None
            values[i, j] = 1.0 if i == j else (found.interval.estimate if found else np.nan)
            dark = abs(values[i, j]) > 0.6
            axes.text(
                j,
                i,
                "" if i == j else cell(found.interval if found else None),
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if dark else PRINT["ink"],
            )
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="#f0f1f2")
    axes.imshow(values, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(side), labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(side), labels, fontsize=9)
    axes.tick_params(length=0, colors=PRINT["ink"])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{NAMES[quantity]}, {EVEN[space]}", fontsize=10, color=PRINT["ink"], loc="left")
    return figure


NAMES = {
    "expected_cosine": "cosine of expected directions",
    "matched_cosine": "the same with timesteps weighted alike",
    "batch_cosine": "cosine of these very batches",
}


def cell(found: Interval | None) -> str:
    """An estimate over its limits, or a dash."""
    if found is None or np.isnan(found.estimate):
        return "–"
    if np.isnan(found.low):
        return f"{found.estimate:.2f}"
    return f"{found.estimate:.2f}\n[{found.low:.2f}, {found.high:.2f}]"


def by_bin(study: Study, *, space: str = "parameters", rung: int = 0, base: str | None = None) -> Chart:
    """Agreement with one objective by timestep."""
    middles = [(first + last) / 2 for first, last in study.facts["bins"]]
    places = [str(number) for number in range(len(middles))]
    return _by_part(
        study, "bin", places, middles, space, rung, base, title="by timestep", xlabel="timestep (noise to the right)"
    )


def by_block(study: Study, *, space: str = "parameters", rung: int = 0, base: str | None = None) -> Chart:
    """Agreement with one objective by block of layers."""
    blocks = list(study.facts["blocks"])
    return _by_part(
        study, "block", blocks, list(range(len(blocks))), space, rung, base, title="by layer", xlabel="", ticks=blocks
    )


def _by_part(
    study: Study,
    part: str,
    places: Sequence[str],
    x: Sequence[float],
    space: str,
    rung: int,
    base: str | None,
    *,
    title: str,
    xlabel: str,
    ticks: Sequence[str] = (),
) -> Chart:
    base = base or study.labels[0]
    lines = {}
    for place, label in enumerate(study.labels):
        if label == base:
            continue
        found = [study.one("expected_cosine", base, label, space=space, rung=rung, part=part, where=w) for w in places]
        line = _line([(x[i], f.interval) for i, f in enumerate(found) if f is not None], place, band=not ticks)
        if line is not None:
            lines[label] = line
    return Chart(
        name=f"study-{part}-{space}-{rung}",
        title=f"agreement with {base} {title}",
        describe=f"{AGREEMENT} with {base} {title}, a line for each objective",
        lines=lines,
        options={"xlabel": xlabel, "reference": 0.0, "whole": False, "ticks": ticks},
    )


def along(
    study: Study, path: str, quantity: str = "expected_cosine", *, space: str = "parameters", base: str | None = None
) -> Chart:
    """Agreement with one objective along a ladder; `checkpoint` is one, too."""
    base = base or study.labels[0]
    if path == "checkpoint":
        rungs = [r for r in study.rungs if r.along == study.rungs[0].along and r.value == study.rungs[0].value]
        x, ticks = [float(r.checkpoint) for r in rungs], []
    else:
        rungs = [r for r in study.rungs if r.along == path and r.checkpoint == study.rungs[0].checkpoint]
        x, ticks = list(map(float, range(len(rungs)))), [_short(r.value) for r in rungs]
    lines = {}
    for place, label in enumerate(study.labels):
        if label == base:
            continue
        found = [study.one(quantity, base, label, space=space, rung=rung.number) for rung in rungs]
        line = _line([(at, f.interval) for at, f in zip(x, found, strict=True) if f is not None], place)
        if line is not None:
            lines[label] = line
    return Chart(
        name=f"study-along-{path.replace('.', '-')}-{quantity}-{space}",
        title=f"agreement with {base} along {path}" + (", matched" if quantity == "matched_cosine" else ""),
        describe=f"{NAMES[quantity]} with {base} along {path}, a line for each objective",
        lines=lines,
        options={
            "xlabel": "updates" if path == "checkpoint" else path,
            "reference": 0.0,
            "whole": not ticks,
            "ticks": ticks,
        },
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
            ends = np.array([x.low, x.high])
            lines[f"{label}, predicted"] = Line(ends, np.full(2, y.estimate), RUNS[place % 8])
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
    found = [(f"parts-{space}", chart(study, space=space)) for space in study.spaces for chart in (by_bin, by_block)]
    found += [
        ("ladder", along(study, path, quantity))
        for path in ladders(study)
        for quantity in ("expected_cosine", "matched_cosine")
    ]
    found += [
        ("gains", gains(study, rung=rung.number, split=split))
        for rung in study.rungs
        for split in ("training", "held_out")
    ]
    return ((section, chart) for section, chart in found if chart.lines)


def ladders(study: Study) -> list[str]:
    """Paths along which there is more than one rung."""
    paths = list(dict.fromkeys(rung.along for rung in study.rungs if rung.along))
    return paths + (["checkpoint"] if len({rung.checkpoint for rung in study.rungs}) > 1 else [])


def write_figures(study: Study) -> Path:
    """Write every figure as SVG into `figures/` of the study, and return that directory."""
    folder = study.directory / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {chart.name.removeprefix("study-"): chart.figure() for _, chart in charts(study)}
    for space in study.spaces:
        for quantity in ("expected_cosine", "matched_cosine") if space != "prediction" else ("expected_cosine",):
            drawn[f"{quantity}-{space}"] = heat_map(study, quantity, space=space)
    for name, figure in drawn.items():
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return folder


def _line(points: Sequence[tuple[float, Interval]], place: int, *, band: bool = True) -> Line | None:
    """Points that are there; none where no estimate is."""
    there = [(at, i.estimate, i.low, i.high) for at, i in points if not np.isnan(i.estimate)]
    if not there:
        return None
    x, y, low, high = np.array(there).T
    return Line(x, y, RUNS[place % 8], low, high, MARKERS[place % 8], band=band)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 18 else f"…{text[-17:]}"
