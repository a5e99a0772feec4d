"""A directory of an in-context evaluation in, one frozen value out. `raysuite/in_context/evaluation.py` says what its files hold."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysuite.errors import UserError
from raysuite.tables import damaged, read_table

COLUMNS = (
    "row",
    "variant",
    "task",
    "shots",
    "index",
    "drawer",
    "described",
    "textual",
    "visual",
    "right",
    "invalid",
    "refused",
)
NOBODY = -1
"""The drawer of answers that are pictures already."""
ORACLE, ALONE = ("oracle", "default"), ("last text alone", "default")
"""Lines whose descriptions are always right, and that nobody read the demonstrations for."""
REFERENCES = ("oracle", "text as written", "last text alone", "copy", "random")
"""Names of lines that know or guess what demonstrations have in common, and do not read them."""


@dataclass(frozen=True)
class Method:
    """Models that draw and differ in nothing but the seed of their training, or one alone."""

    name: str
    places: tuple[int, ...]
    """Of its models among all."""


@dataclass(frozen=True)
class Source:
    """The judge on pictures whose cells are known."""

    name: str
    pictures: int
    right: int
    """Both sides."""
    detail: int
    object: int
    invalid: int
    refused: int
    """Of them, those on which a question was refused."""
    wrong_cell: int
    """Both sides are options, and one of them is wrong."""
    cells: float
    """Cells of a theme, the mean over pictures."""
    confusions: tuple[tuple[str, str, str, int, int], ...]
    """Theme, what was shown, what was said, how often, and how often it was shown; the most frequent first."""

    @property
    def sensitivity(self) -> float:
        """The chance that a right picture is called right."""
        return self.right / self.pictures

    @property
    def specificity(self) -> float:
        """The chance that a picture of another cell is not taken for the right one: whichever cell it is taken for, that is the right
        one in one of (cells - 1) questions.
        """
        return 1 - self.wrong_cell / self.pictures / (self.cells - 1)


@dataclass(frozen=True, eq=False)
class InContext:
    """All that an evaluation left behind."""

    directory: Path
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    judgements: Mapping[str, np.ndarray]
    """Columns, a row for each answer and drawer."""
    sources: tuple[Source, ...]

    @property
    def drawers(self) -> list[str]:
        """Labels of the models that draw, the first the one that others are compared with."""
        return [one["label"] for one in self.settings["drawers"]]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Name and variant of every line, in order."""
        return [(row["name"], row["variant"]) for row in self.settings["rows"]]

    @property
    def readers(self) -> list[tuple[str, str]]:
        """Lines that read demonstrations."""
        return [row for row in self.rows if row[0] not in REFERENCES]

    @property
    def methods(self) -> list[Method]:
        """Models that draw, runs of the same settings but the seed together, in the order of the first of each."""
        places: dict[object, list[int]] = {}
        for place, one in enumerate(self.settings["drawers"]):
            places.setdefault(one["method"] or place, []).append(place)
        return [Method(self._named(of), tuple(of)) for of in places.values()]

    def _named(self, places: list[int]) -> str:
        first, *others = (self.drawers[place] for place in places)
        return f"{self.settings['drawers'][places[0]]['objective']}, {1 + len(others)} runs" if others else first

    @property
    def chances(self) -> dict[str, float]:
        """By task, in order."""
        return {task["name"]: task["chance"] for task in self.settings["tasks"]}

    @property
    def shots(self) -> list[int]:
        """That were asked, ascending."""
        return sorted({int(shots) for shots in self.judgements["shots"]})

    @property
    def refused(self) -> int:
        """Rows of `judgements` whose answer or picture was refused a question."""
        return int(np.sum(self.judgements["refused"]))

    def where(self, row: tuple[str, str] | None = None, **wanted: object) -> np.ndarray:
        """Which rows of `judgements` have these values, as booleans."""
        keep = np.ones(len(self.judgements["right"]), dtype=bool)
        if row is not None:
            wanted |= {"row": row[0], "variant": row[1]}
        for column, value in wanted.items():
            keep &= self.judgements[column] == value
        return keep

    def drawn_by(self, row: tuple[str, str]) -> list[int]:
        """Drawers of a line's answers: all models, or nobody."""
        return sorted({int(drawer) for drawer in self.judgements["drawer"][self.where(row)]})

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """What is resampled: episodes, which are the same question and noise in all shots."""
        tasks, indices = self.judgements["task"][rows], self.judgements["index"][rows]
        return np.array([f"{task} {index}" for task, index in zip(tasks, indices, strict=True)])


def read_in_context(directory: Path) -> InContext:
    """All of it but the pictures.

    Raises:
        UserError: the evaluation is not finished, or a file of it is damaged.
    """
    settings, provenance = (_json(directory / f"{name}.json") for name in ("in_context", "provenance"))
    table = _table(directory / "judgements.parquet", COLUMNS)
    names = ["ground truth", *(f"through the VAE of {one['label']}" for one in settings["drawers"])]
    files = [(name, directory / "calibration" / f"{place}.parquet") for place, name in enumerate(names)]
    return InContext(
        directory,
        settings,
        provenance,
        {name: table[name].to_numpy() for name in table.column_names},
        tuple(_source(name, _table(file).to_pylist()) for name, file in files if file.exists()),
    )


def _source(name: str, rows: Sequence[Mapping[str, Any]]) -> Source:
    themes: dict[str, set[tuple[str, str]]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    shown: dict[tuple[str, str], int] = {}
    for row in rows:
        themes.setdefault(row["theme"], set()).add((row["detail"], row["object"]))
        for side in ("detail", "object"):
            said = row[f"said_{side}"]
            shown[row["theme"], row[side]] = shown.get((row["theme"], row[side]), 0) + 1
            if said != row[side]:
                key = row["theme"], row[side], said or "nothing"
                counts[key] = counts.get(key, 0) + 1
    right = [(row["said_detail"] == row["detail"], row["said_object"] == row["object"]) for row in rows]
    invalid = [row["said_detail"] is None or row["said_object"] is None for row in rows]
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return Source(
        name,
        pictures=len(rows),
        right=sum(detail and thing for detail, thing in right),
        detail=sum(detail for detail, _ in right),
        object=sum(thing for _, thing in right),
        invalid=sum(invalid),
        refused=sum(bool(row["refused"]) for row in rows),
        wrong_cell=sum(not all(sides) and not nothing for sides, nothing in zip(right, invalid, strict=True)),
        cells=float(np.mean([len(themes[row["theme"]]) for row in rows])),
        confusions=tuple((theme, true, said, n, shown[theme, true]) for (theme, true, said), n in ordered),
    )


def examples(found: InContext) -> Iterator[dict[str, Any]]:
    """The first episodes of every task with their demonstrations, and what lines made of them: the first, and some that read."""
    shown = [at for at in found.readers if at[1] in ("default", "caption", "cot")]
    lines = list(dict.fromkeys([found.rows[0], *shown[:EXAMPLE_READERS]]))
    judged = {(*_at(a), a["drawer"]): a for a in _table(found.directory / "judgements.parquet").to_pylist()}
    answers = _table(found.directory / "answers.parquet").to_pylist()
    given = {_at(a): a for a in answers}
    numbers = {task["name"]: number for number, task in enumerate(found.settings["tasks"], start=1)}
    episodes: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in _table(found.directory / "examples.parquet").to_pylist():
        episodes.setdefault((row["task"], row["index"]), []).append(row)
    indices = {index for _, index in episodes}
    drawn = [_pictures(found.directory / "pictures" / str(place), indices) for place in range(len(found.drawers))]
    asked = {(*line, *at, len(demos)) for line in lines for at, demos in episodes.items()}
    own = _own_pictures(found, answers, asked)
    for (task, index), demos in episodes.items():
        answered = []
        for line in lines:
            at = (*line, task, index, len(demos))
            if at not in given:
                continue
            said = given[at]["description"]
            key = numbers[task], index, said
            makers = (
                {NOBODY: own.get(at)} if said is None else {n: d.get(key) for n, d in enumerate(drawn[:EXAMPLE_MODELS])}
            )
            for place, png in makers.items():
                if png is not None:
                    by = "itself" if place == NOBODY else found.drawers[place]
                    answered.append({**judged[*at, place], "description": said or "", "drawer": by, "png": png})
        yield {"task": task, "index": index, "query": demos[0]["query"], "demos": demos, "answers": answered}


EXAMPLE_READERS, EXAMPLE_MODELS = 3, 3
"""Lines that read, and models that draw, whose answers are shown."""


def _at(row: Mapping[str, Any]) -> tuple[str, str, str, int, int]:
    return row["row"], row["variant"], row["task"], row["index"], row["shots"]


def _own_pictures(
    found: InContext, answers: Sequence[Mapping[str, Any]], wanted: Collection[tuple[str, str, str, int, int]]
) -> dict[tuple[str, str, str, int, int], bytes]:
    """Those pictures of lines that draw themselves, where they were kept: in the order of their answers, a block at a time."""
    own: dict[tuple[str, str, str, int, int], bytes] = {}
    for number, line in enumerate(found.rows):
        files = sorted((found.directory / "answers" / f"{number:02d}").glob("*.parquet"))
        kept = (row["png"] for file in files for row in _table(file).to_pylist())
        mine = [_at(a) for a in answers if (a["row"], a["variant"]) == line]
        own |= {at: png for at, png in zip(mine, kept, strict=False) if at in wanted and png is not None}
    return own


def _pictures(folder: Path, indices: Collection[int]) -> dict[tuple[int, int, str], bytes]:
    """Pictures for episodes of these numbers."""
    found = {}
    for file in sorted(folder.glob("[0-9]*.parquet")):
        for row in _table(file).to_pylist():
            if row["index"] in indices:
                found[row["number"], row["index"], row["description"]] = row["png"]
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error


def _table(file: Path, columns: Sequence[str] = ()) -> pa.Table:
    try:
        return read_table(file, columns=columns)
    except FileNotFoundError as error:
        raise _missing(file) from error


def _missing(file: Path) -> UserError:
    return UserError(
        f"expected a finished in-context evaluation in {file.parent}, found no {file.name}: give the command that began it again"
    )
