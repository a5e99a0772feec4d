"""The report of a run: one HTML file that needs nothing else, and the same numbers for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from raysuite.kernel.stats import RESAMPLES
from raysuite.results import comparison, sentences
from raysuite.results.comparison import Comparison
from raysuite.results.figures import Line, panel
from raysuite.results.numerals import decimals, number, with_interval
from raysuite.results.page import (
    SPENT,
    choosing,
    costs,
    duration,
    limits,
    origin,
    picture_with_marks,
    redone,
    short,
    table,
    write_page,
)
from raysuite.results.run import SPLITS, WEIGHTED_SUM, Run, flat, read_run

DIAGNOSTICS = {
    "ratio": ("Importance ratio", "first minibatch; 1 when on-policy", 1.0),
    "clip_fraction": ("Clip fraction", "share of steps that clipping kept from moving further", None),
    "grad_norm": ("Gradient norm", "before clipping", None),
    "clipped_at_first": ("Clipped at first", "share of steps in the first minibatch; 0 when on-policy", 0.0),
    "kl_behaviour": (
        "Distance from the behaviour policy",
        "estimate of the KL of a step, nats: mean of ratio - 1 - log ratio, of whole densities",
        None,
    ),
    "reward_margin": (
        "Implicit reward margin",
        "how much more the policy prefers the preferred one than the reference does",
        0.0,
    ),
    "reward_accuracy": ("Implicit reward accuracy", "share of pairs that it orders rightly", 0.5),
    "preferred_error": ("Error of the preferred", "denoising error minus the reference's; above 0: less likely", 0.0),
    "rejected_error": ("Error of the rejected", "the same; if both rise, likelihood is displaced", 0.0),
    "preferred_log_ratio": (
        "Log-ratio of the preferred",
        "policy over reference; of a mean per dimension unless per_dimension is false",
        0.0,
    ),
    "rejected_log_ratio": (
        "Log-ratio of the rejected",
        "policy over reference; of a mean per dimension unless per_dimension is false",
        0.0,
    ),
    "goodness": ("Goodness", "mean chance that a rollout is good, from its advantage", 0.5),
    "loss": ("Loss", "of the objective; its level means little", None),
    "diversity": ("Diversity", "how far pictures of one prompt lie apart: mean RMS distance, grey levels", None),
    "rankings": ("Rankings", "learned from in the update", None),
    "ties": ("Ties", "dropped because their rewards were equal", None),
}
"""How learner metrics are called and explained, and the value that means "nothing happened"."""
DATA = ("train/rankings", "train/ties", "train/diversity")
"""Metrics of what the learner was given."""


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Write a run's page, `report.html` in its directory unless told otherwise, and return its path.

    The same directory gives the same bytes.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    return write_page("report.html.jinja", _content(read_run(directory)), out or directory / "report.html")


def summary(directory: Path, width: int | None = None) -> str:
    """The verdict, what is wrong, and a table of before, after and difference, as plain text for a terminal of so many characters.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    run = read_run(directory)
    compared = comparison.compare(run)
    lines = [sentences.verdict(run, compared)]
    lines += [f"WARNING: {alarm}" for alarm in sentences.alarms(run, compared)]
    lines += [f"Note: {caution}" for caution in sentences.cautions(run, compared)]
    if compared:
        header = ("reward", "split", "prompts", "before", "after", "difference [95 %]")
        rows = [header, *(_cells(c) for c in compared)]
        lines += ["", *table(rows, width, names=2)]
    return "\n".join(lines).replace("−", "-")


def _cells(c: Comparison) -> tuple[str, ...]:
    places = decimals(c.difference)
    before, after = (with_interval(i, places=places) for i in (c.before, c.after))
    return c.reward, SPLITS[c.split], str(c.prompts), before, after, with_interval(c.difference, signed=True)


def _content(run: Run) -> dict[str, Any]:
    compared = comparison.compare(run)
    seeds = {"of the run": run.config.get("seed"), "of every evaluation": run.config.get("evaluation", {}).get("seed")}
    return {
        "run": run,
        "name": run.directory.resolve().name,
        "verdict": sentences.verdict(run, compared),
        "alarms": sentences.alarms(run, compared),
        "cautions": sentences.cautions(run, compared),
        "tiles": list(_tiles(run, compared)),
        "comparisons": [(c, decimals(c.difference)) for c in compared],
        "splits": SPLITS,
        "curves": [(name, _role(run, name), _learning_curve(run, i, name)) for i, name in enumerate(run.rewards)],
        "pairs": list(_pairs(run)),
        "kl": _kl_curve(run),
        "diagnostics": list(_diagnostics(run)),
        "costs": costs(run.ledger),
        "seconds": run.ledger.get("seconds", {}),
        "redone": redone(run.ledger),
        "choosing": choosing(run),
        "settings": list(flat(run.config)),
        **origin(run.provenance),
        "seeds": seeds,
        "resamples": RESAMPLES,
    }


def _tiles(run: Run, compared: Sequence[Comparison]) -> Iterator[tuple[str, str, str, int]]:
    """Label, number, what stands below it, and whether it is good (1), bad (-1) or neither."""
    by = {(c.reward, c.split): c for c in compared}
    keys = [(comparison.headline(run), split) for split in run.splits[:1]] + [(run.trained, s) for s in run.splits]
    for c in [by[key] for key in dict.fromkeys(keys) if key in by]:
        places = decimals(c.difference)
        label = f"{sentences.label(c.reward)}\n{SPLITS[c.split]} prompts"
        change = number(c.difference.estimate, places, signed=True)
        was = f"{number(c.before.estimate, places)} → {number(c.after.estimate, places)}"
        yield label, change, f"{limits(c.difference)}\n{was}", c.direction * run.sign(c.reward)
    for kl in list(comparison.kl(run).values())[1:][-1:]:  # that of the model as it came is 0
        yield "KL from the reference\nnats a trajectory", number(kl.estimate, decimals(kl)), limits(kl), 0
    if run.updates:
        seconds = sum(run.ledger.get("seconds", {}).values())
        spent = short(float(run.spent([run.updates])[0]))
        yield "cost of training\nnetwork evaluations", spent, f"{duration(seconds)} with evaluation", 0


def _role(run: Run, reward: str) -> str:
    if reward in run.watched:
        return "watched, never trained"
    return "trained" if reward == run.trained else "a term of the trained reward"


def _learning_curve(run: Run, index: int, reward: str) -> Markup:
    lines = []
    rollouts = run.metrics.get("train/reward" if reward == WEIGHTED_SUM else f"train/reward/{reward}")
    if rollouts is not None:
        lines.append(Line(run.spent(rollouts.updates), rollouts.values, "rollouts"))
    for split in reversed(run.splits):  # what matters most last, on top
        c = comparison.curve(run, reward, split)
        lines.append(Line(c.network_evaluations, c.mean, split, c.low, c.high))
    describe = f"{reward} on held-out and training prompts against {SPENT}"
    return Markup(panel(f"reward{index}", lines, describe=describe, xlabel=SPENT))


def _kl_curve(run: Run) -> Markup | None:
    found = comparison.kl(run)
    if len(found) < 2:
        return None
    columns = np.array([(i.estimate, i.low, i.high) for i in found.values()]).T
    line = Line(run.spent(list(found)), columns[0], "training", *columns[1:])
    describe = f"KL from the reference per trajectory, nats, against {SPENT}"
    return Markup(panel("kl", [line], describe=describe, xlabel=SPENT, reference=0.0))


def _diagnostics(run: Run) -> Iterator[tuple[str, str, Markup]]:
    """Title, explanation and plot of everything that the learner reported, the known first."""
    found = {name.split("/")[1]: series for name, series in run.metrics.items() if name[:6] == "learn/" or name in DATA}
    for name in [*(name for name in DIAGNOSTICS if name in found), *sorted(found.keys() - DIAGNOSTICS.keys())]:
        title, explanation, reference = DIAGNOSTICS.get(name, (name.replace("_", " "), "", None))
        lines = [Line(found[name].updates, found[name].values, "held_out")]
        if apart := run.metrics.get(f"evaluation/preferences/{name}"):
            lines.append(Line(apart.updates, apart.values, "test"))
            explanation += "; on preferences that are held out in green"
        svg = panel(
            f"learn-{name}",
            lines,
            describe=f"{title} by update",
            xlabel="update",
            reference=reference,
            size=(3.0, 1.8),
        )
        yield title, explanation, Markup(svg)


def _pairs(run: Run) -> Iterator[dict[str, Any]]:
    """The same prompts and noise under the first and the last evaluated policy, held-out prompts first."""
    kept = sorted({picture.update for picture in run.pictures})
    if not kept:
        return
    by = {(p.update, p.split, p.index, p.sample): p for p in run.pictures}
    shown = dict.fromkeys((kept[0], kept[-1]))
    for split in SPLITS:
        for _, index, sample in sorted({key[1:] for key in by if key[1] == split}):
            pictures = [by[key] for update in shown if (key := (update, split, index, sample)) in by]
            if len(pictures) == len(shown):
                marked = [picture_with_marks(run, picture) for picture in pictures]
                shown_of = pictures[0]
                yield {"split": split, "prompt": shown_of.prompt, "rewrite": shown_of.rewrite, "pictures": marked}
