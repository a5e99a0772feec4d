"""The page of a study of directions, and the same numbers for the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raysuite.kernel.stats import Interval
from raysuite.results.comparison import number, with_interval
from raysuite.results.figures import RUNS
from raysuite.results.page import duration, short, table, write_page
from raysuite.results.run import flat
from raysuite.results.side_by_side.panels import GLYPHS
from raysuite.results.study import figures
from raysuite.results.study.read import Rung, Study, read_study

QUANTITIES = {
    "expected_cosine": ("Expected directions", "what an update would do with infinitely many units"),
    "matched_cosine": ("Timesteps weighted alike", "the same after every range of timesteps was given equal size"),
    "batch_cosine": ("These very batches", "what one update of this size does; shared noise makes it too large"),
}
SPACES = {
    "parameters": "In the space of parameters",
    "adam": "As the run's Adam scales gradients",
    "prediction": "In the space of predictions",
}


def write_study_report(directory: Path, out: Path | None = None) -> Path:
    """Write a study's page (`report.html` in it unless told otherwise) and its figures, and return the page's path.

    Raises:
        UserError: the study is not finished, or a file of it is damaged.
    """
    study = read_study(directory)
    figures.write_figures(study)
    return write_page("study.html.jinja", _content(study), out or directory / "report.html")


def study_summary(directory: Path) -> str:
    """Agreement and signal-to-noise of the first rung as a table for the terminal, after what they say in a sentence."""
    study = read_study(directory)
    rows = [["", "", "expected", "timesteps alike"]]
    for a, b in study.pairs:
        cells = [_inline(study, quantity, a, b) for quantity in ("expected_cosine", "matched_cosine")]
        rows.append([a, b, *cells])
    noise = [["", "signal to noise", "units for a direction"]]
    noise += [[label, value, units] for label, value, units in _noise(study, "parameters", 0)]
    return "\n".join([lead(study), "", *table(rows), "", *table(noise)])


def lead(study: Study) -> str:
    """What the first rung says, and nothing that its intervals do not."""
    shown = [label for label in study.labels if study.shows_direction(label)]
    units = study.settings["units"]
    if not shown:
        return f"With {units} units no objective shows a direction: its gradient cannot be told from noise at 95 %."
    silent = [label for label in study.labels if label not in shown]
    sentences = []
    if silent:
        verb = "shows" if len(silent) == 1 else "show"
        sentences.append(f"With {units} units {listed(silent)} {verb} no direction that can be told from noise.")
    if len(shown) > 1:
        sentences.append(_agreements(study, shown, "expected_cosine", ""))
        sentences.append(_agreements(study, shown, "matched_cosine", "With timesteps weighted alike, "))
    return " ".join(filter(None, sentences))


def _agreements(study: Study, labels: list[str], quantity: str, opening: str) -> str:
    """Which pairs of objectives push the same way, in part, or against each other, as far as intervals tell."""
    found = {pair: study.one(quantity, *pair) for pair in study.pairs if set(pair) <= set(labels)}
    intervals = {pair: e.interval for pair, e in found.items() if e is not None and not math.isnan(e.interval.low)}
    said = []
    for words, test in (
        ("push the same way (cosine above 0.9)", lambda i: i.low > 0.9),
        ("push in part the same way", lambda i: i.low > 0 and i.high < 0.9),
        ("push against each other", lambda i: i.high < 0),
    ):
        pairs = [pair for pair, interval in intervals.items() if test(interval)]
        if len(pairs) == len(intervals) and len(labels) > 2 and pairs:
            said.append(f"all {words}" if len(labels) == len(study.labels) else f"all others {words}")
        elif pairs:
            said.append(f"{listed([f'{a} with {b}' for a, b in pairs])} {words}")
    if not said:
        return "" if opening else "Of the others no agreement or disagreement can be told."
    sentence = f"{opening}{'; '.join(said)}."
    return sentence[0].upper() + sentence[1:] if said[0].startswith("all") else sentence


def listed(names: list[str]) -> str:
    """A, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _content(study: Study) -> dict[str, Any]:
    drawn: dict[str, list[tuple[str, Markup]]] = {}
    for section, chart in figures.charts(study):
        drawn.setdefault(section, []).append((chart.title, Markup(chart.svg())))
    return {
        "title": study.directory.name,
        "model": study.settings["run"]["model"]["path"],
        "units": study.settings["units"],
        "lead": lead(study),
        "labels": [(label, RUNS[i % 8], GLYPHS[i % 8]) for i, label in enumerate(study.labels)],
        "rungs": [(rung, list(_matrices(study, rung))) for rung in study.rungs],
        "noise": [(SPACES[space], list(_noise(study, space, 0))) for space in study.spaces],
        "by_part": [
            (SPACES[space], drawn.get(f"parts-{space}", [])) for space in study.spaces if f"parts-{space}" in drawn
        ],
        "ladder": drawn.get("ladder", []),
        "gains": drawn.get("gains", []),
        "gain_rows": [g for g in study.gains if not math.isnan(g.predicted.estimate)],
        "principal": [(SPACES[space], found) for space in study.spaces if (found := _principal(study, space))],
        "error": study.facts["projection_error"],
        "bins": study.facts["bins"],
        "costs": [
            (rung.title, short(rung.facts["network_evaluations"]), duration(sum(rung.facts["seconds"].values())))
            for rung in study.rungs
        ],
        "objectives": study.settings["objectives"],
        "settings": list(flat(study.settings["run"])),
        "provenance": study.provenance,
        "command": shlex.join(study.provenance["command"]),
    }


def _matrices(study: Study, rung: Rung) -> Iterator[dict[str, Any]]:
    for space in study.spaces:
        if not study.select(space=space, rung=rung.number):
            continue
        for quantity, (title, explanation) in QUANTITIES.items():
            rows = [[_cell(study, quantity, a, b, space, rung.number) for b in study.labels] for a in study.labels]
            if any(cell and cell["value"] != "–" for row in rows for cell in row):
                yield {"space": SPACES[space], "title": title, "explanation": explanation, "rows": rows}


def _cell(study: Study, quantity: str, a: str, b: str, space: str, rung: int) -> dict[str, Any] | None:
    """What the table shows: estimate, limits, how strongly it is coloured (percent) and in which colour."""
    if a == b:
        return None
    found = study.one(quantity, a, b, space=space, rung=rung)
    if found is None or math.isnan(found.interval.estimate):
        return {"value": "–", "limits": "", "title": found.note if found else "", "share": 0, "colour": "good"}
    i = found.interval
    limits = "" if math.isnan(i.low) else f"[{i.low:.2f}, {i.high:.2f}]"
    return {
        "value": number(i.estimate, 2),
        "limits": limits,
        "title": f"{a} and {b}: {i.estimate:.3f} {limits} {found.note}".strip(),
        "share": round(55 * abs(i.estimate)),
        "colour": "held_out" if i.estimate > 0 else "bad",
    }


def _inline(study: Study, quantity: str, a: str, b: str) -> str:
    found = study.one(quantity, a, b)
    if found is None or math.isnan(found.interval.estimate):
        return found.note if found else ""
    return with_interval(found.interval)


def _noise(study: Study, space: str, rung: int) -> Iterator[tuple[str, str, str]]:
    """Objective, signal-to-noise of one unit, and how many units make noise and signal equal."""
    for label in study.labels:
        found = study.one("snr", label, space=space, rung=rung)
        if found is None or math.isnan(found.interval.estimate):
            yield label, "no gradient", ""
            continue
        i = found.interval
        shown = study.shows_direction(label, space=space, rung=rung)
        yield label, _figures(i), f"{math.ceil(1 / i.estimate):,}" if shown and i.estimate > 0 else "no direction"


def _figures(i: Interval) -> str:
    """Three significant digits: signal-to-noise spans orders of magnitude."""
    return f"{i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]"


def _principal(study: Study, space: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Share of every direction that counts, and what it is made of."""
    found = []
    for share in study.select(quantity="principal_share", space=space, rung=0):
        if share.interval.estimate >= 0.01:
            loadings = study.select(quantity="principal_loading", space=space, rung=0, where=share.where)
            found.append(
                (f"{100 * share.interval.estimate:.0f} %", [(e.a, number(e.interval.estimate, 2)) for e in loadings])
            )
    return found
