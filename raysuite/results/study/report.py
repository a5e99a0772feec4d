"""The page of a study of directions, and the same numbers for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raysuite.kernel.stats import Interval
from raysuite.results.figures import RUNS
from raysuite.results.numerals import number, with_interval
from raysuite.results.page import duration, limits, origin, short, table, write_page
from raysuite.results.run import SPLITS, flat
from raysuite.results.side_by_side.panels import GLYPHS
from raysuite.results.study import figures, sentences
from raysuite.results.study.read import Gain, Rung, Study, read_study

QUANTITIES = {
    "expected_cosine": ("Expected directions", "what an update would do with infinitely many units"),
    "matched_cosine": (
        "Timesteps weighted alike",
        "the same over the ranges of timesteps in which both show a direction, each given equal size",
    ),
    "batch_cosine": ("These very batches", "what one update of this size does; shared noise moves it away from zero"),
}
GAINS = ("step along", "reward", "predicted [95 %]", "realised [95 %]", "KL [95 %]")
SPACES = {
    "parameters": "In the space of parameters",
    "adam": "As the run's Adam scales gradients",
    "prediction": "In the space of predictions",
}


def write_study_report(directory: Path, out: Path | None = None) -> Path:
    """Write a study's page (`report.html` in it unless told otherwise) and its figures, and return the page's path.

    The same directory gives the same bytes.

    Raises:
        UserError: the study is not finished, or a file of it is damaged.
    """
    page = write_page("study.html.jinja", _content(read_study(directory)), out or directory / "report.html")
    figures.write_figures(directory)
    return page


def study_summary(directory: Path, width: int | None = None) -> str:
    """Agreement, signal-to-noise and gains of every rung as tables for a terminal of so many characters, after what they say in
    sentences.

    Raises:
        UserError: the study is not finished, or a file of it is damaged.
    """
    study = read_study(directory)
    lines = sentences.lead(study)
    lines += [
        said
        for path in study.ladders
        for quantity in figures.COSINES
        if (said := sentences.along(study, path, quantity))
    ]
    for rung in study.rungs:
        if len(study.rungs) > 1:
            lines += ["", f"{rung.title}:"]
        if study.pairs:
            rows: list[tuple[str, ...]] = [("", "", "expected [95 %]", "timesteps alike [95 %]")]
            rows += [
                (a, b, *(_inline(study, quantity, a, b, rung) for quantity in figures.COSINES)) for a, b in study.pairs
            ]
            lines += ["", *table(rows, width, names=2)]
        noise = [("", "signal to noise [95 %]", "units for a direction", "power [95 %]")]
        noise += list(_noise(study, "parameters", rung.number))
        lines += ["", *table(noise, width)]
        outcome, trained, watched = _gains(study, rung)
        if trained or watched:
            lines += ["", *outcome, "", *table([GAINS, *map(_gain, (*trained, *watched))], width, names=2)]
    return "\n".join(lines).replace("−", "-")


def _gain(gain: Gain) -> tuple[str, ...]:
    predicted = "" if math.isnan(gain.predicted.estimate) else with_interval(gain.predicted, signed=True)
    where = f"{gain.reward}, {SPLITS[gain.split]}"
    return gain.objective, where, predicted, with_interval(gain.realised, signed=True), with_interval(gain.kl)


def _content(study: Study) -> dict[str, Any]:
    drawn: dict[str, list[tuple[str, Markup]]] = {}
    for section, chart in figures.charts(study):
        drawn.setdefault(section, []).append((chart.title, Markup(chart.svg())))
    lead, *more = sentences.lead(study)
    several = len(study.rungs) > 1
    first = {space: study.first_rung(space) for space in study.spaces}
    names = {space: SPACES[space] + (f", {first[space].title}" if several else "") for space in study.spaces}
    return {
        "title": study.directory.resolve().name,
        "model": study.settings["run"]["model"]["path"],
        "units": " or ".join(str(units) for units in sorted({rung.facts["units"] for rung in study.rungs})),
        "lead": lead,
        "more": more,
        "labels": [(label, RUNS[i % 8], GLYPHS[i % 8]) for i, label in enumerate(study.labels)],
        "rungs": [(rung, matrices) for rung in study.rungs if (matrices := dict(_matrices(study, rung)))],
        "several": several,
        "noise": [
            (names[space], list(_noise(study, space, rung.number)), drawn.get(f"snr-{space}", []))
            for space, rung in first.items()
        ],
        "by_part": [(names[space], found) for space in first if (found := drawn.get(f"parts-{space}"))],
        "ladders": [
            ([sentences.along(study, path, quantity) for quantity in figures.COSINES], found)
            for path in study.ladders
            if (found := drawn.get(f"ladder-{path}"))
        ],
        "gains": [(rung, *_gains(study, rung), drawn.get(f"gains-{rung.number}", [])) for rung in study.rungs]
        if study.gains
        else [],
        "splits": SPLITS,
        "principal": [
            (names[space], *said) for space in first if (said := _principal(study, space, first[space].number))
        ],
        "error": study.facts["projection_error"],
        "probed": "prediction" in study.spaces,
        "costs": [
            (rung.title, short(rung.network_evaluations), duration(sum(rung.facts["seconds"].values())))
            for rung in study.rungs
        ],
        "objectives": study.settings["objectives"],
        "settings": list(flat(study.settings["run"])),
        **origin(study.provenance),
    }


def _matrices(study: Study, rung: Rung) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Tables of cells by space."""
    for space in study.spaces:
        found = []
        for quantity, (title, explanation) in QUANTITIES.items():
            rows = [[_cell(study, quantity, a, b, space, rung.number) for b in study.labels] for a in study.labels]
            if any(cell and cell["value"] != "–" for row in rows for cell in row):
                found.append({"title": title, "explanation": explanation, "rows": rows})
        if found:
            yield SPACES[space], found


def _cell(study: Study, quantity: str, a: str, b: str, space: str, rung: int) -> dict[str, Any] | None:
    """What the table shows: estimate, limits, how strongly it is coloured (percent) and in which colour."""
    if a == b:
        return None
    found = study.one(quantity, a, b, space=space, rung=rung)
    if found is None or math.isnan(found.interval.estimate):
        title = found.note if found else ""
        return {"value": "–", "limits": "", "note": "", "title": title, "share": 0, "colour": "held_out"}
    i = found.interval
    exact = f"{number(i.estimate, 3)}{'' if math.isnan(i.low) else ' ' + limits(i, 3)}"
    return {
        "value": number(i.estimate, 2),
        "limits": "" if math.isnan(i.low) else limits(i, 2),
        "note": study.cautions(found),
        "title": "\n".join(filter(None, [f"{a} and {b}: {exact}", found.note])),
        "share": round(55 * abs(figures.supported(i))),
        "colour": "held_out" if i.estimate > 0 else "bad",
    }


def _inline(study: Study, quantity: str, a: str, b: str, rung: Rung) -> str:
    found = study.one(quantity, a, b, rung=rung.number)
    if found is None or math.isnan(found.interval.estimate):
        return found.note if found else ""
    cautions = study.cautions(found)
    return with_interval(found.interval, places=2) + (f" ({cautions})" if cautions else "")


def _noise(study: Study, space: str, rung: int) -> Iterator[tuple[str, str, str, str]]:
    """Objective, signal-to-noise of one unit, how many units make noise and signal equal, and the power of the study's number."""
    for label in study.labels:
        found = study.one("snr", label, space=space, rung=rung)
        if found is None or math.isnan(found.interval.estimate):
            yield label, "no gradient", "", ""
            continue
        i = found.interval
        shown = study.shows_direction(label, space=space, rung=rung)
        needed = f"{math.ceil(1 / i.estimate):,}" if shown and i.estimate > 0 else "no direction"
        power = study.one("power", label, space=space, rung=rung)
        chance = "" if power is None else sentences.chance(power.interval)
        yield label, _figures(i) + (f" ({found.note})" if found.note else ""), needed, chance


def _figures(i: Interval) -> str:
    """Three significant digits: signal-to-noise spans orders of magnitude."""
    return f"{i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]".replace("-", "−")


def _gains(study: Study, rung: Rung) -> tuple[list[str], list[Gain], list[Gain]]:
    """What steps did, in sentences; rows of the trained reward; rows without a prediction."""
    trained = [figures.trained_gains(study, rung.number, split) for split in SPLITS]
    rows = [gain for gains in trained for gain in gains]
    watched = [g for g in study.gains if g.rung == rung.number and math.isnan(g.predicted.estimate)]
    notes = dict.fromkeys(f"The gain is {gain.note}." for gain in watched if gain.note)
    return [*(sentences.gained(gains) for gains in trained if gains), *notes], rows, watched


def _principal(study: Study, space: str, rung: int) -> tuple[str, list[tuple[str, list[tuple[str, str]]]]] | None:
    """A sentence; share of every direction that counts, and what it is made of, its largest part positive."""
    shares = study.select(quantity="principal_share", space=space, rung=rung)
    made_of = [study.select(quantity="principal_loading", space=space, rung=rung, where=s.where) for s in shares]
    if not shares:
        return None
    rows = []
    for share, loadings in zip(shares, made_of, strict=True):
        sign = math.copysign(1.0, max((e.interval.estimate for e in loadings), key=abs))
        if share.interval.estimate >= 0.01:
            parts = [(e.a, number(sign * e.interval.estimate, 2)) for e in loadings]
            rows.append((f"{100 * share.interval.estimate:.0f} %", parts))
    return sentences.principal([share.interval.estimate for share in shares], len(made_of[0])), rows
