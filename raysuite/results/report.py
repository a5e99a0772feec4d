"""The report of a run: one HTML file that needs nothing else, and the same numbers for the terminal."""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from raysuite.errors import UserError
from raysuite.kernel.stats import RESAMPLES, Interval
from raysuite.results import comparison
from raysuite.results.comparison import Comparison, decimals, number, with_interval
from raysuite.results.figures import Line, panel
from raysuite.results.run import EMPTY, SPLITS, WEIGHTED_SUM, Picture, Run, read_run

SPENT = "network evaluations spent on training"
DIAGNOSTICS = {
    "ratio": ("Importance ratio", "first minibatch; 1 when on-policy", 1.0),
    "clip_fraction": ("Clip fraction", "share of steps whose ratio left the band", None),
    "grad_norm": ("Gradient norm", "before clipping", None),
    "kl_behaviour": ("KL from the behaviour policy", "as the objective estimates it", None),
    "loss": ("Loss", "of the objective; its level means little", None),
}
"""How learner metrics are called and explained, and the value that means "nothing happened"."""
PIXELATED_BELOW = 129
"""Pixels: smaller pictures are enlarged without smoothing."""


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run directory and return its path. The same directory gives the same bytes.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": with_interval, "short": _short, "duration": _duration}
    html = environment.get_template("report.html.jinja").render(_content(read_run(directory)))
    path = directory / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def summary(directory: Path) -> str:
    """The verdict, what is wrong, and a table of before, after and difference, as plain text.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    run = read_run(directory)
    compared = comparison.compare(run)
    lines = [comparison.verdict(run, compared)]
    lines += [f"WARNING: {alarm}" for alarm in comparison.alarms(run, compared)]
    lines += [f"Note: {caution}" for caution in comparison.cautions(run, compared)]
    if compared:
        header = ("reward", "split", "prompts", "before", "after", "difference [95 %]")
        rows = [header, *(_cells(c) for c in compared)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
    return "\n".join(lines).replace("−", "-")


def _cells(c: Comparison) -> tuple[str, ...]:
    places = decimals(c.difference)
    before, after = (with_interval(i, places=places) for i in (c.before, c.after))
    return c.reward, SPLITS[c.split], str(c.prompts), before, after, with_interval(c.difference, signed=True)


def _content(run: Run) -> dict[str, Any]:
    compared = comparison.compare(run)
    provenance = dict(run.provenance)
    command = provenance.pop("command", [])
    seeds = {"of the run": run.config.get("seed"), "of every evaluation": run.config.get("evaluation", {}).get("seed")}
    return {
        "run": run,
        "name": run.directory.resolve().name,
        "verdict": comparison.verdict(run, compared),
        "alarms": comparison.alarms(run, compared),
        "cautions": comparison.cautions(run, compared),
        "tiles": list(_tiles(run, compared)),
        "comparisons": [(c, decimals(c.difference)) for c in compared],
        "splits": SPLITS,
        "curves": [(name, _role(run, name), _learning_curve(run, i, name)) for i, name in enumerate(run.rewards)],
        "pairs": list(_pairs(run)),
        "kl": _kl_curve(run),
        "diagnostics": list(_diagnostics(run)),
        "costs": _costs(run.ledger),
        "seconds": run.ledger.get("seconds", {}),
        "settings": list(_flat(run.config)),
        "command": shlex.join([Path(command[0]).name, *command[1:]]) if command else None,
        "origin": [(key, value) for key, value in _flat(provenance) if value is not None],
        "dirty": run.provenance.get("dirty"),
        "seeds": seeds,
        "resamples": RESAMPLES,
    }


def _tiles(run: Run, compared: Sequence[Comparison]) -> Iterator[tuple[str, str, str, int]]:
    """Label, number, what stands below it, and whether it is good (1), bad (-1) or neither."""
    by = {(c.reward, c.split): c for c in compared}
    keys = [(comparison.headline(run), split) for split in run.splits[:1]] + [(run.trained, s) for s in run.splits]
    for c in [by[key] for key in dict.fromkeys(keys) if key in by]:
        places = decimals(c.difference)
        label = f"{comparison.label(c.reward)}\n{SPLITS[c.split]} prompts"
        change = number(c.difference.estimate, places, signed=True)
        was = f"{number(c.before.estimate, places)} → {number(c.after.estimate, places)}"
        yield label, change, f"{_limits(c.difference)}\n{was}", c.direction * run.sign(c.reward)
    for kl in list(_kl_intervals(run).values())[1:][-1:]:  # that of the model as it came is 0
        yield "KL from the reference\nnats a trajectory", number(kl.estimate, decimals(kl)), _limits(kl), 0
    if run.updates:
        seconds = sum(run.ledger.get("seconds", {}).values())
        spent = _short(float(run.spent([run.updates])[0]))
        yield "cost of training\nnetwork evaluations", spent, f"{_duration(seconds)} with evaluation", 0


def _limits(interval: Interval) -> str:
    if np.isnan(interval.low):
        return "no interval"
    return f"[{number(interval.low, decimals(interval))}, {number(interval.high, decimals(interval))}]"


def _role(run: Run, reward: str) -> str:
    if reward in run.watched:
        return "watched, never trained"
    return "trained" if reward == run.trained else "a term of the trained reward"


def _learning_curve(run: Run, index: int, reward: str) -> Markup:
    lines = []
    rollouts = run.metrics.get("train/reward" if reward == WEIGHTED_SUM else f"train/reward/{reward}")
    if rollouts is not None:
        lines.append(Line(run.spent(rollouts.updates), rollouts.values, "rollouts"))
    for split in reversed(run.splits):  # held-out prompts last, on top
        c = comparison.curve(run, reward, split)
        lines.append(Line(c.network_evaluations, c.mean, split, c.low, c.high))
    describe = f"{reward} on held-out and training prompts against {SPENT}"
    return Markup(panel(f"reward{index}", lines, describe=describe, xlabel=SPENT))


def _kl_intervals(run: Run) -> dict[int, Interval]:
    """The KL by policy. Its limits were computed when the trajectories were there; NaN where they could not be."""
    series = [run.metrics.get(f"evaluation/kl{suffix}", EMPTY) for suffix in ("", "_low", "_high")]
    points = [dict(zip(s.updates.tolist(), s.values.tolist(), strict=True)) for s in series]
    return {update: Interval(*(p.get(update, float("nan")) for p in points)) for update in points[0]}


def _kl_curve(run: Run) -> Markup | None:
    found = _kl_intervals(run)
    if len(found) < 2:
        return None
    columns = np.array([(i.estimate, i.low, i.high) for i in found.values()]).T
    line = Line(run.spent(list(found)), columns[0], "training", *columns[1:])
    describe = f"KL from the reference per trajectory, nats, against {SPENT}"
    return Markup(panel("kl", [line], describe=describe, xlabel=SPENT, reference=0.0))


def _diagnostics(run: Run) -> Iterator[tuple[str, str, Markup]]:
    """Title, explanation and plot of everything that the learner reported, the known first."""
    names = [name.removeprefix("learn/") for name in run.metrics if name.startswith("learn/")]
    for name in sorted(
        names, key=lambda name: (list(DIAGNOSTICS).index(name) if name in DIAGNOSTICS else len(DIAGNOSTICS), name)
    ):
        title, explanation, reference = DIAGNOSTICS.get(name, (name.replace("_", " "), "", None))
        series = run.metrics[f"learn/{name}"]
        line = Line(series.updates, series.values, "held_out")
        svg = panel(
            f"learn-{name}",
            [line],
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
            pictures = [by.get((update, split, index, sample)) for update in shown]
            if all(pictures):
                yield {"split": split, "prompt": pictures[0].prompt, "pictures": [_picture(run, p) for p in pictures]}  # type: ignore[union-attr, arg-type]


def _picture(run: Run, picture: Picture) -> dict[str, Any]:
    if picture.png[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(
            f"expected PNG pictures in {run.directory / 'images'}, {picture.split}-{picture.index} of update "
            f"{picture.update} is none: copy it again from where the run was"
        )
    scores = run.scores.where(update=picture.update, split=picture.split, prompt=picture.prompt, sample=picture.sample)
    marks = [
        (reward, float(value), _passes(run, reward)) for reward, value in zip(scores.reward, scores.value, strict=True)
    ]
    return {
        "policy": picture.update,
        "data": base64.b64encode(picture.png).decode(),
        "pixelated": int.from_bytes(picture.png[16:20]) < PIXELATED_BELOW,
        "marks": sorted(marks, key=lambda mark: run.rewards.index(mark[0])),
    }


def _passes(run: Run, reward: str) -> bool:
    """Whether a reward only ever says yes (1) or no (0)."""
    return bool(np.isin(run.scores.where(reward=reward).value, (0.0, 1.0)).all())


def _costs(ledger: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What, training, evaluation."""
    if not ledger:
        return []
    rows = [
        ("forward passes", "forward"),
        ("backward passes", "backward"),
        ("pictures decoded", "images_decoded"),
        ("pictures scored", "images_scored"),
    ]
    training, evaluation = ledger["training"], ledger["evaluation"]
    total = ("network evaluations", *(side["forward"] + 2 * side["backward"] for side in (training, evaluation)))
    found = [(label, training[key], evaluation[key]) for label, key in rows]
    return [*found[:2], total, *found[2:]]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by the dotted path that `--set` takes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: float) -> str:
    """1234567 as 1.23 M."""
    return str(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}")(float(f"{value:.3g}")))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {int(seconds % 60)} s" if not hours else f"{hours} h {minutes % 60} min"
