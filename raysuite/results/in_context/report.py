"""The page of an in-context evaluation, and the same numbers for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from raysuite.kernel.stats import Interval
from raysuite.results.figures import MARKERS, RUNS, Line, panel
from raysuite.results.in_context.numbers import Factors, Row, corrected, drawn, factors, share, together
from raysuite.results.in_context.published import PUBLISHED, SHOTS, SOURCE, Output
from raysuite.results.in_context.read import ALONE, NOBODY, ORACLE, InContext, Source, examples, read_in_context
from raysuite.results.numerals import count, decimals, number, with_interval
from raysuite.results.page import origin, table, thumbnail, write_page
from raysuite.results.run import flat

CONFUSIONS = 20
"""Of the judge that are shown, for each kind of pictures."""


def write_in_context_report(directory: Path, out: Path | None = None) -> Path:
    """Write an evaluation's page, `report.html` in its directory unless told otherwise, and return its path.

    The same directory gives the same bytes.

    Raises:
        UserError: the evaluation is not finished, or a file of it is damaged.
    """
    return write_page("in_context.html.jinja", _content(read_in_context(directory)), out or directory / "report.html")


def in_context_summary(directory: Path, width: int | None = None) -> str:
    """The verdict and the tables as plain text for a terminal of so many characters.

    Raises:
        UserError: the evaluation is not finished, or a file of it is damaged.
    """
    found = read_in_context(directory)
    lines = [*verdict(found), *(f"Note: {caution}" for caution in cautions(found)), "", JUDGE]
    lines += table([("pictures", "", "both right", "detail", "object", "invalid"), *_judge_rows(found)], width, names=1)
    lines += ["", RIGHT.format(episodes=found.settings["episodes"]), *table(_by_shots(found), width, names=2)]
    if found.drawers:
        lines += ["", FACTORS, *table(_factor_rows(found), width, names=2)]
        lines += ["", DRAWN, *table(_by_task(found), width, names=1)]
    if both := _together(found):
        lines += ["", TOGETHER, *table(both, width, names=2)]
    return "\n".join(lines).replace("−", "-")


JUDGE = "The judge on pictures whose cells are known"
RIGHT = "Right pictures by number of shots, {episodes} episodes of each task [95 %]"
FACTORS = "Where right pictures come from: right = described x drawn + (1 - described) x lucky, over all tasks and shots [95 %]"
DRAWN = "Chance that the picture is right where the description is, by task [95 %]"
TOGETHER = "Right pictures with and without who reads and who was trained to draw, over all tasks and shots [95 %]"


def verdict(found: InContext) -> list[str]:
    """What drawing does, in a sentence for each model."""
    if ORACLE not in found.rows or not found.drawers:
        return [f"Judge: {found.settings['judge']['name']}. No model drew: these are the reference policies alone."]
    sentences = []
    for method in found.methods:
        chance, difference = drawn(found, ORACLE, method)
        said = f"Given the right description, {method.name} draws the right picture in {_percent(chance)} of cases"
        if difference is not None:
            words = {1: "more than", 0: "which is not told apart from", -1: "fewer than"}[difference.direction]
            said += f", {words} {found.drawers[0]} ({with_interval(difference, signed=True)}, same episodes and noise)"
        sentences.append(f"{said}.")
    return sentences


def cautions(found: InContext) -> list[str]:
    """What limits the conclusions."""
    said = []
    for source in found.sources[:1]:
        if source.right < source.pictures:
            said.append(
                f"The judge calls {source.right} of {source.pictures} ground-truth pictures right: numbers are what it says, and "
                "corrected ones stand beside them on the page."
            )
        if source.refused:
            said.append(
                f"A server refused a question on {source.refused} of {source.pictures} ground-truth pictures, which count as invalid."
            )
    if found.refused:
        said.append(
            f"A server refused a question on {found.refused} of {len(found.judgements['right'])} rows, which count as wrong: what it "
            "said is in the column `refused` of answers.parquet, pictures/ and judged/."
        )
    if found.settings["episodes"] < FEW:
        said.append(f"With {count(found.settings['episodes'], 'episode')} of each task intervals by task are wide.")
    return said


FEW = 30


def _percent(interval: Interval) -> str:
    places = max(0, decimals(interval) - 2)
    low, high = (number(100 * limit, places) for limit in (interval.low, interval.high))
    return f"{number(100 * interval.estimate, places)} % [{low}, {high}]"


def _label(found: InContext, drawer: int) -> str:
    return "–" if drawer == NOBODY else found.drawers[drawer]


def _name(row: Row) -> str:
    return row[0] if row[1] == "default" else f"{row[0]} ({row[1]})"


def _lines(found: InContext) -> Iterator[tuple[Row, int]]:
    for row in found.rows:
        for drawer in found.drawn_by(row):
            yield row, drawer


def _cell(interval: Interval, *, signed: bool = False) -> str:
    return "–" if np.isnan(interval.estimate) else with_interval(interval, signed=signed)


def _judge_rows(found: InContext) -> list[tuple[str, ...]]:
    return [
        (s.name, str(s.pictures), *(number(n / s.pictures, 4) for n in (s.right, s.detail, s.object, s.invalid)))
        for s in found.sources
    ]


def _by_shots(found: InContext) -> list[tuple[str, ...]]:
    header = ("answers of", "drawn by", *(f"{shots} shots" for shots in found.shots))
    rows = [
        (
            _name(row),
            _label(found, drawer),
            *(_cell(share(found, "right", found.where(row, drawer=drawer, shots=s))) for s in found.shots),
        )
        for row, drawer in _lines(found)
    ]
    return [header, *rows]


def _factor_rows(found: InContext) -> list[tuple[str, ...]]:
    header = (
        "answers of",
        "drawn by",
        "described",
        "drawn",
        "lucky",
        "right",
        "difference",
        "textual",
        "visual",
        "invalid",
    )
    return [header, *(_factor_row(found, factors(found, row, drawer)) for row, drawer in _lines(found))]


def _factor_row(found: InContext, f: Factors) -> tuple[str, ...]:
    return (
        _name(f.row),
        _label(found, f.drawer),
        *(_cell(interval) for interval in (f.described, f.drawn, f.lucky, f.right)),
        _cell(f.difference, signed=True),
        *(_cell(interval) for interval in (f.textual, f.visual, f.invalid)),
    )


def _by_task(found: InContext) -> list[tuple[str, ...]]:
    first, *others = found.methods
    header = ("task", first.name, *(m.name for m in others), *(f"{m.name} − {found.drawers[0]}" for m in others))
    if ORACLE not in found.rows:
        return [header]
    lines: list[tuple[str, ...]] = [header]
    for task in found.chances:
        shares, differences = zip(*(drawn(found, ORACLE, m, task=task) for m in found.methods), strict=True)
        cells = [_cell(one) for one in shares]
        cells += [_cell(one, signed=True) if one else "–" for one in differences[1:]]
        lines.append((task, *cells))
    return lines


def _together(found: InContext) -> list[tuple[str, ...]]:
    """Neither, one and both of somebody who reads and a model that was trained; nothing where there are no two models."""
    others = [method for method in found.methods if 0 not in method.places]
    if not others or ALONE not in found.rows:
        return []
    header = (
        "read by",
        "drawn by",
        "neither",
        "reading alone",
        "drawing alone",
        "both",
        "reading adds",
        "drawing adds to it",
        "both add",
        "more than the sum",
    )
    rows: list[tuple[str, ...]] = [header]
    for row in found.readers:
        if 0 not in found.drawn_by(row):  # it draws its answers itself
            continue
        for method in others:
            of = together(found, row, method)
            shares = (_cell(one) for one in (of.neither, of.reading, of.drawing, of.both))
            added = (of.reading_adds, of.drawing_adds, of.both_add, of.more_than_sum)
            rows.append((_name(row), method.name, *shares, *(_cell(one, signed=True) for one in added)))
    return rows


def _published(found: InContext) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Published shares and ours by task, for each output and variant of which there are published ones. Of other data: none."""
    if found.settings["world"]["name"] != "CoBSAT":
        return []
    tables = []
    for output, variant in dict.fromkeys((of.output, of.variant) for of in PUBLISHED):
        rows: list[tuple[str, ...]] = [("task", "model", *(f"{shots} shots" for shots in SHOTS))]
        for task in (None, *found.chances):
            name = task or "all ten"
            for of in PUBLISHED:
                if (of.output, of.variant) == (output, variant):
                    shares = of.tasks[task] if task else of.mean
                    rows.append((name, f"{of.model}, published", *(number(one, 3) for one in shares)))
            rows += [(name, *ours) for ours in _ours(found, output, variant, task)]
        tables.append((f"{output.capitalize()}, {variant}", rows))
    return tables


def _ours(found: InContext, output: Output, variant: str, task: str | None) -> Iterator[tuple[str, ...]]:
    """The same of those who read here."""
    wanted = {} if task is None else {"task": task}
    for row in found.readers:
        if row[1] != variant:
            continue
        for drawer in found.drawn_by(row):
            label, column = f"{row[0]}, {_label(found, drawer)}", "right"
            if output == "descriptions":
                if drawer != 0:
                    continue
                label, column = row[0], "described"
            of = [share(found, column, found.where(row, drawer=drawer, shots=shots, **wanted)) for shots in SHOTS]
            yield (label, *(_cell(one) for one in of))


def _content(found: InContext) -> dict[str, Any]:
    lines = list(_lines(found))
    judge = found.sources[0] if found.sources else None
    inexact = judge is not None and judge.right < judge.pictures and judge.sensitivity + judge.specificity > 1
    return {
        "name": found.directory.resolve().name,
        "world": found.settings["world"]["name"],
        "episodes": found.settings["episodes"],
        "verdict": verdict(found),
        "cautions": cautions(found),
        "by_shots": _by_shots(found),
        "factors": _factor_rows(found) if found.drawers else [],
        "by_task": _by_task(found) if found.drawers else [],
        "together": _together(found),
        "published": _published(found),
        "source": SOURCE,
        "corrected": _corrected(found, judge) if inexact and judge is not None else [],
        "panels": [(task, chance, _panel(found, lines, task, chance)) for task, chance in found.chances.items()],
        "legend": [
            (RUNS[n % len(RUNS)], f"{_name(row)}, {_label(found, d)}") for n, (row, d) in enumerate(_shown(lines))
        ],
        "judge": found.settings["judge"],
        "sources": _judge_rows(found),
        "confusions": [
            (source.name, list(source.confusions[:CONFUSIONS])) for source in found.sources if source.confusions
        ],
        "examples": [_example(example) for example in examples(found)],
        "settings": [*flat(found.settings)],
        **origin(found.provenance),
    }


def _corrected(found: InContext, judge: Source) -> list[tuple[str, ...]]:
    """What the judge's errors leave of each line."""
    rows: list[tuple[str, ...]] = [("answers of", "drawn by", "right, as judged", "right, corrected")]
    for row, drawer in _lines(found):
        measured = factors(found, row, drawer).right
        rows.append((_name(row), _label(found, drawer), _cell(measured), _cell(corrected(measured, judge))))
    return rows


def _shown(lines: Sequence[tuple[Row, int]]) -> list[tuple[Row, int]]:
    """Lines of the figures: as many as there are colours, of the first model first."""
    return sorted(lines, key=lambda line: max(0, line[1]))[: len(RUNS)]


def _panel(found: InContext, lines: Sequence[tuple[Row, int]], task: str, chance: float) -> Markup:
    drawn = []
    for place, (row, drawer) in enumerate(_shown(lines)):
        of = found.where(row, drawer=drawer, task=task)
        shots = sorted({int(s) for s in found.judgements["shots"][of]})
        points = [share(found, "right", of & (found.judgements["shots"] == s)) for s in shots]
        columns = np.array([(p.estimate, p.low, p.high) for p in points]).reshape(-1, 3).T
        drawn.append(Line(np.array(shots), columns[0], RUNS[place], columns[1], columns[2], MARKERS[place]))
    svg = panel(
        f"shots-{task}",
        drawn,
        describe=f"{task}: share of right pictures by number of demonstrations; chance is {chance:.3f}",
        xlabel="demonstrations",
        reference=chance,
    )
    return Markup(svg)


def _example(example: dict[str, Any]) -> dict[str, Any]:
    answers = [{**a, "picture": thumbnail(a["png"])} for a in example["answers"] if a["png"] is not None]
    return {
        **example,
        "demos": [{**demo, "picture": thumbnail(demo["png"])} for demo in example["demos"]],
        "answers": answers,
    }
