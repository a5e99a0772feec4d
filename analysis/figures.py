"""The figures of the results, from the tables in docs/results: `python analysis/figures.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import ceil
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from raysuite.kernel.stats import NOTHING, Interval
from raysuite.results.figures import PRINT, RUNS, Bar, Forest
from raysuite.results.study import Study, read_study
from raysuite.results.study.figures import heat_map

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
NAMES = {
    "forward-rl": "forward RL",
    "nft": "forward RL",
    "ddpo": "DDPO",
    "ddpo-previews": "DDPO, credit from previews",
    "sft": "fine-tuning on preferred pictures",
    "cal-dpo": "Cal-DPO",
    "grpo": "GRPO",
    "discounted-dpo": "discounted DPO",
    "dspo": "DSPO",
    "diffusion-dpo": "Diffusion-DPO",
    "trajectory-dpo": "trajectory DPO, no discount",
}
FROM_REWARDS = ("forward RL", "DDPO", "DDPO, credit from previews", "GRPO")
BLUE, ORANGE = RUNS[0], RUNS[1]
GAINED = "test/scenes_strict gained"
BEFORE = "before training"
LABELS = {"labels by the reward": BLUE, "labels tossed": ORANGE}
"""Of the two rungs of `labels_tossed`."""
TOSSED = (
    ("squared_norm", "scenes-dspo", "scenes-dspo", "squared norm of DSPO's expected gradient"),
    ("squared_norm", "scenes-cal-dpo", "scenes-cal-dpo", "the same of Cal-DPO's"),
    ("expected_cosine", "scenes-dspo", "scenes-forward-rl", "cosine of DSPO with forward RL"),
)


def name(method: str) -> str:
    """In words, the same on both models."""
    return NAMES[method.removeprefix("scenes-").removeprefix("flow-")]


def look(method: str) -> dict[str, str]:
    """Blue circles learn from rewards, orange squares from preferred pictures."""
    return {"colour": BLUE, "marker": "o"} if name(method) in FROM_REWARDS else {"colour": ORANGE, "marker": "s"}


def gained(contest: str, file: str = "comparison") -> dict[str, Bar]:
    """What each method gained in strict pass on test prompts, with a point a seed; the best comes first."""
    rows = pq.read_table(RESULTS / contest / f"{file}.parquet").to_pylist()
    scores = pq.read_table(RESULTS / contest / f"{file}.scores.parquet").to_pandas()
    scores = scores[(scores.reward == "scenes_strict") & (scores.split == "test")]
    means = scores.groupby(["method", "seed", "evaluation"]).value.mean().unstack()
    seeds = (means["last"] - means["first"]).unstack()
    return {
        name(row["method"]): Bar(
            name(row["method"]),
            Interval(row["estimate"], row["low"], row["high"]),
            points=seeds.loc[row["method"]].tolist(),
            **look(row["method"]),
        )
        for row in sorted(rows, key=lambda row: -row["estimate"])
        if row["quantity"] == GAINED and not row["other"]
    }


def contest_gained() -> Figure:
    """Each model at two budgets and with a LoRA: a row a model, in the order of the first panel."""
    panels = {
        "U-Net, 0.24 before": gained("contest"),
        "U-Net, four times the budget": gained("contest", "longer"),
        "U-Net, with a LoRA": gained("contest-lora"),
        "flow transformer, 0.07 before": gained("flow-contest"),
        "flow transformer, four times the budget": gained("flow-contest", "longer"),
        "flow transformer, with a LoRA": gained("flow-contest-lora"),
    }
    order, *_ = panels.values()
    figure = Figure(figsize=(11.5, 7.2), layout="constrained")
    for axes, (title, bars) in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, panels.items(), strict=True):
        shown = [bars[method] for method in order]
        Forest("gained", title, "", shown, "").draw(axes)
        axes.set_title(title, fontsize=10, color=PRINT["ink"], loc="left")
    figure.supxlabel("strict pass gained on test prompts", color=PRINT["ink"], fontsize=9)
    figure.legend(handles=_kinds(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def contest_tuning() -> Figure:
    """Every setting that was tried, the chosen one, and what it does with other seeds, by reward on validation prompts."""
    trials = [trial for trial in json.loads((RESULTS / "contest" / "trials.json").read_text()) if trial["held_out"]]
    scores = pq.read_table(RESULTS / "contest" / "comparison.scores.parquet").to_pandas()
    before = scores.query("reward == 'scenes' and split == 'held_out' and evaluation == 'first'").value.mean()
    bars = []
    for method in dict.fromkeys(trial["objective"] for trial in trials):
        of_it = [trial for trial in trials if trial["objective"] == method]
        tried = [trial["held_out"] for trial in of_it if trial["trial"] is not None]
        again = [trial["held_out"] for trial in of_it if trial["confirms"] is not None]
        reached = Interval(mean(again), min(again), max(again))
        bars.append(Bar(name(method), reached, points=tried, hollow=max(tried), **look(method)))
    bars.sort(key=lambda bar: -bar.interval.estimate)
    title = "each setting tried (small), the chosen one (hollow), and the same with five new seeds"
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    label = "reward on validation prompts (dashed: the model as it came)"
    Forest("tuning", title, "", bars, label, reference=before).draw(axes)
    axes.set_title(title, fontsize=10, color=PRINT["ink"], loc="left")
    return figure


def longer_curves(contest: str) -> Figure:
    """The reward on validation prompts with four times the budget, a panel a method: a thin line a seed, a thick one their mean."""
    curves = pq.read_table(RESULTS / contest / "longer.curves.parquet").to_pandas()
    curves["thousands"] = curves.network_evaluations / 1000
    before = curves[curves["update"] == 0].scenes.mean()
    by_name = {name(method): of_it for method, of_it in curves.groupby("method")}
    methods = gained(contest, "longer")
    rows = ceil(len(methods) / 5)
    figure = Figure(figsize=(13.0, 0.7 + 2.3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, ceil(len(methods) / rows), sharex=True, sharey=True, squeeze=False).flat)
    for (method, bar), axes in zip(methods.items(), panels, strict=False):
        _curve(axes, by_name[method], bar.colour, before)
        axes.set_title(method, fontsize=10, color=PRINT["ink"], loc="left")
    for axes in panels[len(methods) :]:
        axes.set_axis_off()
    figure.supxlabel("thousand network evaluations of training", color=PRINT["ink"], fontsize=9)
    figure.supylabel("reward on validation prompts", color=PRINT["ink"], fontsize=9)
    figure.legend(handles=_kinds(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def mean_curve(runs: DataFrame) -> DataFrame:
    """The mean over a method's seeds, of evaluations that all of them have: the first of each, the second and so on, and the last.

    Runs that leave ties out are looked at after as many updates, but not after as many evaluations, and end an update apart.
    """
    order = runs.groupby("seed").cumcount()
    order = order.where(runs["update"] < runs.groupby("seed")["update"].transform("max"), order.max())
    of_all = runs.groupby(order).seed.transform("nunique") == runs.seed.nunique()
    return runs[of_all].groupby(order[of_all]).mean(numeric_only=True)


def _curve(axes: Axes, runs: DataFrame, colour: str, before: float) -> None:
    for _, run in runs.groupby("seed"):
        axes.plot(run.thousands, run.scenes, color=PRINT[colour], linewidth=0.8, alpha=0.4)
    average = mean_curve(runs)
    axes.plot(average.thousands, average.scenes, color=PRINT[colour], linewidth=2.2)
    axes.axhline(before, color=PRINT["ink"], linewidth=0.8, linestyle=(0, (3, 3)))
    axes.axvline(36.864, color=PRINT["grid"], linewidth=1.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=PRINT["ink"], labelsize=8)


def cosine_map(contest: str) -> Figure:
    """Cosines of expected directions of every two objectives, at a contest's model as it came."""
    return heat_map(read_study(RESULTS / contest / "directions"))


def before_and_after(before: str = "directions", after: str = "directions-after") -> dict[str, Study]:
    """Studies of directions before training, and of what three methods had trained for four times the budget."""
    studies = {BEFORE: read_study(RESULTS / "contest" / before)}
    for method, seed in product(("forward-rl", "ddpo", "cal-dpo"), (100, 101, 102)):
        when = f"after {name(f'scenes-{method}')}, {seed}"
        studies[when] = read_study(RESULTS / "contest" / after / f"{method}-{seed}")
    return studies


def labels_tossed() -> dict[str, Study]:
    """The same of studies whose first rung has labels by the reward, and whose second has labels that are tossed."""
    return before_and_after("labels-tossed/before", "labels-tossed")


def contest_directions_after() -> Figure:
    """Whether objectives of contrast push with imitation, before training and after; an empty row shows no direction."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    methods, studies = ("scenes-forward-rl", "scenes-diffusion-dpo", "scenes-cal-dpo"), before_and_after()
    for axes, method in zip(figure.subplots(1, 3, sharey=True), methods, strict=True):
        bars = [
            Bar(when, study.one("expected_cosine", method, "scenes-dspo").interval, ORANGE if when == BEFORE else BLUE)
            for when, study in studies.items()
        ]
        Forest("after", method, "", bars, f"cosine of {name(method)} with DSPO").draw(axes)
        axes.set_xlim(-1.05, 1.05)
    return figure


def contest_labels_tossed() -> Figure:
    """What two objectives of preferences want with labels by the reward and with none; an empty row shows no direction."""
    figure = Figure(figsize=(10.5, 6.0), layout="constrained")
    panels, studies = figure.subplots(1, 3, sharey=True), labels_tossed()
    for axes, (quantity, a, b, label) in zip(panels, TOSSED, strict=True):
        bars = [
            Bar(
                f"{when}, {labels}",
                study.one(quantity, a, b, rung=rung).interval if study.shows_direction(a, rung=rung) else NOTHING,
                colour,
            )
            for when, study in studies.items()
            for rung, (labels, colour) in enumerate(LABELS.items())
        ]
        is_norm = quantity == "squared_norm"
        Forest("tossed", label, "", bars, label, reference=None if is_norm else 0.0).draw(axes)
        axes.set(**({"xscale": "log"} if is_norm else {"xlim": (-1.05, 1.05)}))
    return figure


def _kinds() -> Sequence[Line2D]:
    return [
        Line2D([], [], color=PRINT[colour], marker=marker, linestyle="", label=f"learns from {what}")
        for colour, marker, what in ((BLUE, "o", "rewards"), (ORANGE, "s", "preferred pictures"))
    ]


FIGURES: dict[str, Callable[[], Figure]] = {
    "contest-gained": contest_gained,
    "contest-tuning": contest_tuning,
    "contest-longer": partial(longer_curves, "contest"),
    "flow-longer": partial(longer_curves, "flow-contest"),
    "contest-directions": partial(cosine_map, "contest"),
    "flow-directions": partial(cosine_map, "flow-contest"),
    "contest-directions-after": contest_directions_after,
    "contest-labels-tossed": contest_labels_tossed,
}

if __name__ == "__main__":
    for called, drawn in FIGURES.items():
        drawn().savefig(DOCS / f"{called}.png", dpi=100, metadata={"Software": None})
        print(DOCS / f"{called}.png")
