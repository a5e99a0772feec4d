"""Figures as SVG for a page: text stays text, and colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from raysuite.kernel.stats import Interval

RUNS = [f"run{place}" for place in range(1, 9)]
"""Colours of runs side by side, from the first."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
"""Their markers, so that nobody has to tell colours apart."""
STAND_INS = {"ink": "#00f001", "grid": "#00f002", "rollouts": "#00f005"}
STAND_INS |= {"held_out": "#00f003", "training": "#00f004", "test": "#00f006"}
STAND_INS |= {name: f"#00f1{place:02}" for place, name in enumerate(RUNS)}
"""What Matplotlib draws with; `_page` puts the style sheet's variables in their place."""

PRINT = {"ink": "#4a525a", "grid": "#dcdfe2", "rollouts": "#aab1b8"}
PRINT |= {"held_out": "#2463c9", "training": "#c9701a", "test": "#1b7f6b"}
PRINT |= dict(
    zip(RUNS, ["#0072b2", "#d55e00", "#008a64", "#b0418c", "#8f6b00", "#3a9bd4", "#6a4fc0", "#56606a"], strict=True)
)
"""The same on paper and in notebooks."""

STEPS = [1, 2, 2.5, 5, 10]
"""Round numbers for ticks."""


@dataclass(frozen=True, eq=False)
class Line:
    """Points (n,) with, where it has one, an interval each. `colour` is a key of STAND_INS.

    `band` joins the intervals where x ascends.
    """

    x: np.ndarray
    y: np.ndarray
    colour: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marker: str = "o"
    band: bool = True


@dataclass(frozen=True, eq=False)
class Chart:
    """One figure: lines by name, and what the axes say. A page draws it in its colours, a notebook in those of paper."""

    name: str
    """Unique on a page."""
    title: str
    describe: str
    lines: Mapping[str, Line]
    options: Mapping[str, Any] = field(default_factory=dict)

    def svg(self) -> str:
        """For a page."""
        return panel(self.name, list(self.lines.values()), describe=self.describe, **self.options)

    def figure(self, size: tuple[float, float] = (7.0, 3.4)) -> Figure:
        """For a notebook or a paper, with its legend."""
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        plot(axes, list(self.lines.values()), **self.options)
        axes.set_title(self.title, fontsize=10, color=PRINT["ink"], loc="left")
        if not self.lines:
            axes.text(0.5, 0.5, "nothing that could be compared", ha="center", transform=axes.transAxes)
        for name, line in self.lines.items():
            axes.plot([], [], color=PRINT[line.colour], marker=line.marker, markersize=4, label=name)
        if self.lines:
            figure.legend(loc="outside right center", fontsize=8, frameon=False, labelcolor=PRINT["ink"])
        return figure


@dataclass(frozen=True, eq=False)
class Bar:
    """An estimate with its interval, and what it is the mean of. `colour` is a key of STAND_INS."""

    name: str
    interval: Interval
    colour: str
    marker: str = "o"
    points: Sequence[float] = ()
    hollow: float | None = None
    """Another estimate, to compare it with."""


@dataclass(frozen=True, eq=False)
class Forest:
    """Bars below each other, with their names on the left and a dashed line at `reference`."""

    name: str
    """Unique on a page."""
    title: str
    describe: str
    bars: Sequence[Bar]
    xlabel: str
    reference: float | None = 0.0

    def svg(self) -> str:
        """For a page."""
        with _of_a_page(self.name):
            return _svg(self._drawn(STAND_INS), self.name, self.describe)

    def figure(self) -> Figure:
        """For a notebook or a paper."""
        figure = self._drawn(PRINT)
        figure.axes[0].set_title(self.title, fontsize=10, color=PRINT["ink"], loc="left")
        return figure

    def _drawn(self, colours: Mapping[str, str]) -> Figure:
        figure = Figure(figsize=(7.0, 0.8 + 0.28 * len(self.bars)), layout="constrained")
        self.draw(figure.add_subplot(), colours)
        return figure

    def draw(self, axes: matplotlib.axes.Axes, colours: Mapping[str, str] = PRINT) -> None:
        """Into axes of a larger figure. A bar whose interval is of NaNs keeps its row, and shows nothing."""
        if self.reference is not None:
            axes.axvline(self.reference, color=colours["ink"], linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.6)
        for row, bar in enumerate(self.bars):
            colour = colours[bar.colour]
            axes.hlines(row, bar.interval.low, bar.interval.high, color=colour, linewidth=2, alpha=0.55)
            axes.scatter(bar.points, [row] * len(bar.points), color=colour, s=9, alpha=0.6, linewidths=0)
            axes.plot(bar.interval.estimate, row, color=colour, marker=bar.marker, markersize=6)
            if bar.hollow is not None:
                axes.plot(bar.hollow, row, color=colour, marker=bar.marker, markersize=8, fillstyle="none")
        _dress(axes, self.xlabel, colours, whole=False)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
        axes.set_yticks(range(len(self.bars)), [bar.name for bar in self.bars])
        axes.set_ylim(len(self.bars) - 0.5, -0.5)


def panel(
    name: str,
    lines: Sequence[Line],
    *,
    describe: str,
    xlabel: str,
    reference: float | None = None,
    whole: bool = True,
    size: tuple[float, float] = (4.6, 2.7),
    ticks: Sequence[str] = (),
    log: bool = False,
) -> str:
    """One small plot for a page: lines with intervals are drawn as points and a band, those without as a faint line.

    Args:
        name: unique on the page; identifiers in the SVG begin with it.
        lines: later ones lie on top.
        describe: one sentence for those who cannot see it.
        xlabel: with the unit.
        reference: height of a dashed line, the value that means "nothing happened".
        whole: whether x counts something.
        size: inches.
        ticks: names of x = 0, 1, ...
        log: whether y, which is then above 0, spans orders of magnitude.

    Returns:
        An `<svg>` element.
    """
    with _of_a_page(name):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        plot(axes, lines, STAND_INS, xlabel=xlabel, reference=reference, whole=whole, ticks=ticks, log=log)
        return _svg(figure, name, describe)


def _of_a_page(name: str) -> AbstractContextManager[None]:
    """Settings that no argument has: text as text, and identifiers that are the same every time."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name})


def _svg(figure: Figure, name: str, describe: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _page(buffer.getvalue(), name, describe)


def plot(
    axes: matplotlib.axes.Axes,
    lines: Sequence[Line],
    colours: Mapping[str, str] = PRINT,
    *,
    xlabel: str,
    reference: float | None = None,
    whole: bool = True,
    ticks: Sequence[str] = (),
    log: bool = False,
) -> None:
    """Draw what `panel` shows, in given colours."""
    if reference is not None:
        axes.axhline(reference, color=colours["ink"], linewidth=0.8, linestyle=(0, (3, 3)), alpha=0.6)
    shade = 0.32 / max(2, sum(line.low is not None for line in lines))  # many bands on top of each other stay light
    for line in lines:
        _draw(axes, line, shade, colours)
    _dress(axes, xlabel, colours, whole=whole)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(ticks) - 0.5)


def _draw(axes: matplotlib.axes.Axes, line: Line, shade: float, colours: Mapping[str, str]) -> None:
    colour = colours[line.colour]
    if line.low is None or line.high is None:
        axes.plot(line.x, line.y, color=colour, linewidth=1.1, marker="o" if len(line.x) == 1 else "", markersize=3)
        return
    if line.band:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=shade, linewidth=0)
    axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1, alpha=0.55)
    axes.plot(line.x, line.y, color=colour, linewidth=1.8, marker=line.marker, markersize=3.6)


def _dress(axes: matplotlib.axes.Axes, xlabel: str, colours: Mapping[str, str], *, whole: bool) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["grid"])
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["ink"], length=0, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=whole, min_n_ticks=1))
    if whole:
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axes.set_xlabel(xlabel, color=colours["ink"], fontsize=9)
    axes.yaxis.get_offset_text().set_color(colours["ink"])


def _page(svg: str, name: str, describe: str) -> str:
    """The `<svg>` element alone, for this page: own identifiers, the page's colours and width."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    head = f'<svg role="img" aria-label="{escape(describe)}"'
    return re.sub(r'<svg(.*?) width="[^"]*"(.*?) height="[^"]*"', rf"{head}\1\2", svg, count=1, flags=re.DOTALL)
