"""Episodes -> answers -> pictures -> judgements, on disk: the same command goes on with what is there, and repeats nothing.

    in_context.json         what decides all of it
    provenance.json         as of a run
    calibration/<n>.parquet the judge on pictures whose cells are known: ground truth (0), and what the VAE of drawer n - 1 makes of it
    answers.parquet         a row an answer: its coordinates, what it should show, and what its description says
    answers/<row>/<block>.parquet
                            answers that take long, as they came
    judged/<row>/<block>.parquet
                            what the judge says of answers that are pictures: nobody holds more of them than a block has
    examples.parquet        the first episodes of each task: texts and pictures of their demonstrations
    pictures/<drawer>/<block>.parquet
                            drawn and judged together; a description with the noise of its episode is drawn once, whoever gave it
    judgements.parquet      a row for each answer and drawer: what the picture shows, and what of it is right

A block's pictures are one batch. Blocks are dealt from the sorted list of everything that is to be drawn, so that they are the same
after a stop. Nothing in these files but the provenance depends on when or in how many parts they were made.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raysuite.in_context.draw import EPISODES, Drawer
from raysuite.in_context.judges import Judge, Reading
from raysuite.in_context.policies import Row
from raysuite.in_context.tasks import Answer, Cell, Judgement, Task, Theme, World, judged
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator
from raysuite.stages import files
from raysuite.tables import read_table

BLOCK = 50
"""Answers that are kept together, and pictures that are judged together."""
PICTURES = 2
"""Of every cell that has several, for the calibration of the judge."""
SHOWN = 3
"""Episodes of each task whose demonstrations are kept for the page."""
SHOWN_PIXELS = 192
"""Of their sides, at most."""
NOBODY = -1
"""The drawer of answers that are pictures already."""
Progress = Callable[[str, str], Any]
"""What is counted, and its unit -> a context of `begin` and `advance`, as `progress.Counting`."""


@dataclass(frozen=True)
class Plan:
    """What is asked of whom."""

    world: World
    judge: Judge
    rows: tuple[Row, ...]
    episodes: int
    """Of each task and number of shots."""
    shots: tuple[int, ...]
    """Where a task has texts enough."""
    seed: int = 0
    """Of the noise of pictures."""
    batch: int = BLOCK
    """Pictures that a model draws at once."""

    def settings(self, drawers: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        """What decides every number."""
        return {
            "world": dict(self.world.settings()),
            "judge": self.judge.settings(),
            "rows": [{"name": row.name, "variant": row.variant, **row.generator.settings()} for row in self.rows],
            "tasks": [{"name": task.name, "chance": task.chance} for task in self.world.tasks],
            "episodes": self.episodes,
            "seed": self.seed,
            "shots": list(self.shots),
            "drawers": [dict(one) for one in drawers],
            "block": self.batch,
        }

    @property
    def coordinates(self) -> list[tuple[int, Task, int, int]]:
        """Row, task, shots and index of everything that is asked."""
        return [
            (row, task, shots, index)
            for row in range(len(self.rows))
            for task in self.world.tasks
            for shots in task.shots
            if shots in self.shots
            for index in range(self.episodes)
        ]


@dataclass(frozen=True)
class Answered:
    """An answer with its coordinates."""

    row: int
    task: Task
    shots: int
    index: int
    cell: Cell
    said: Judgement
    """What the description says; nothing of an answer that is a picture."""
    answer: Answer
    """Without its picture."""
    own: Reading | None
    """Of that picture."""

    @property
    def key(self) -> tuple[int, int, str]:
        """By which a description is drawn once, with the noise of its episode."""
        return self.task.number, self.index, self.answer.description or ""


def claim(plan: Plan, drawers: Sequence[Mapping[str, object]], directory: Path, command: Sequence[str]) -> None:
    """Make the directory this evaluation's, or find that it is.

    Raises:
        UserError: it holds something else.
    """
    wanted, begun = plan.settings(drawers), ("*/*.parquet", "*/*/*.parquet")
    files.claim(directory, "in_context.json", wanted, "in-context evaluation", command, begun=begun)


def evaluate(
    plan: Plan, directory: Path, drawers: Sequence[tuple[str, Callable[[Sequence[str]], Drawer]]], progress: Progress
) -> None:
    """Do what is missing in a directory that was claimed.

    Args:
        plan: what is asked.
        directory: where to.
        drawers: label of each model, and what opens it, told all that it will draw: one is open at a time, and only where there is
            something.
        progress: is told of every answer and every block.

    Raises:
        UserError: a model cannot be opened, or a judge is not reached.
    """
    _calibrate(plan, directory / "calibration" / "0.parquet", lambda pictures: pictures)
    answers = _answers(plan, directory, progress)
    _write(directory / "examples.parquet", _examples(plan))
    _write(directory / "answers.parquet", [_row(plan, answered) for answered in answers])
    keys = sorted({answered.key for answered in answers if answered.answer.description is not None})
    blocks = [keys[first : first + plan.batch] for first in range(0, len(keys), plan.batch)]
    for place, (label, opened) in enumerate(drawers):
        files = [directory / "pictures" / str(place) / f"{number:05d}.parquet" for number in range(len(blocks))]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        with progress(f"drawing with {label}", "blocks") as counting:
            counting.begin(len(blocks), done=len(blocks) - len(missing))
            if missing:
                drawer = opened([text for number in missing for _, _, text in blocks[number]])
                if plan.world.size is not None:
                    _calibrate(plan, directory / "calibration" / f"{place + 1}.parquet", drawer.round_trip)
                for number in missing:
                    _write(files[number], _drawn(plan, drawer, blocks[number]))
                    counting.advance()
                del drawer  # before the next model is opened
    _write(directory / "judgements.parquet", _judgements(plan, directory, answers, len(drawers)))


def _calibrate(plan: Plan, file: Path, through: Callable[[np.ndarray], np.ndarray]) -> None:
    """Ask the judge about pictures of every cell, once."""
    if file.exists():
        return
    themes = {task.theme.name: task.theme for task in plan.world.tasks}
    known = [
        (theme, cell, plan.world.picture(theme, cell, _generator(number, place, again)))
        for number, theme in enumerate(themes.values())
        for place, cell in enumerate(theme.cells)
        for again in range(1 if plan.world.one_picture else PICTURES)
    ]
    rows = []
    for first in range(0, len(known), BLOCK):
        part_themes, cells, pictures = zip(*known[first : first + BLOCK], strict=True)
        shown = list(through(np.stack(pictures)) if plan.world.size else pictures)
        readings = plan.judge(part_themes, shown, range(first, first + len(shown)))
        rows += [
            {"theme": theme.name, "detail": cell.detail, "object": cell.object, **_said(reading)}
            for theme, cell, reading in zip(part_themes, cells, readings, strict=True)
        ]
    _write(file, rows)


def _generator(theme: int, cell: int, again: int) -> np.random.Generator:
    return numpy_generator(seed=0, stage=Stage.IN_CONTEXT_JUDGE, update=again, prompt=theme, sample=cell)


def _said(reading: Reading) -> dict[str, Any]:
    detail, thing = reading.judgement
    return {"said_detail": detail, "said_object": thing, "reply": reading.reply, "refused": reading.refused}


def _reading(row: Mapping[str, Any]) -> Reading:
    """The inverse."""
    return Reading(Judgement(row["said_detail"], row["said_object"]), row["reply"], row["refused"])


def _answers(plan: Plan, directory: Path, progress: Progress) -> list[Answered]:
    """Every answer, in the order of `Plan.coordinates`; those that take long are read where they were kept."""
    found: list[Answered] = []
    known: dict[tuple[str, str], Reading] = {}
    coordinates = plan.coordinates
    with progress("answering", "answers") as counting:
        counting.begin(len(coordinates), done=0)
        for number, row in enumerate(plan.rows):
            mine = [at for at in coordinates if at[0] == number]
            for first in range(0, len(mine), BLOCK):
                place = f"{number:02d}/{first // BLOCK:05d}.parquet"
                kept, shown = directory / "answers" / place, directory / "judged" / place
                part = mine[first : first + BLOCK]
                episodes = [plan.world.episode(task, shots, index, row.variant) for _, task, shots, index in part]
                if row.generator.kept and kept.exists():
                    answers = _kept(kept, pictures=not shown.exists())
                else:
                    answers = row.generator.answers(plan.world, episodes)
                    if row.generator.kept:
                        _write(kept, [_keeping(answer) for answer in answers])
                themes = [episode.task.theme for episode in episodes]
                own = _own(plan, shown, themes, answers, known)
                for at, (episode, answer) in enumerate(zip(episodes, answers, strict=True)):
                    said = Judgement(None, None)
                    if answer.description is not None:
                        said = plan.world.meaning(episode.task.theme, answer.description)
                    asked = episode.task, episode.shots, episode.index, episode.cell
                    found.append(Answered(number, *asked, said, replace(answer, picture=None), own.get(at)))
                    counting.advance()
    return found


def _keeping(answer: Answer) -> dict[str, Any]:
    return {
        "description": answer.description,
        "png": _png(answer.picture) if answer.picture is not None else None,
        "transcript": answer.transcript,
        "tokens": answer.tokens,
        "refused": answer.refused,
    }


def _kept(file: Path, *, pictures: bool) -> list[Answer]:
    """Answers of a block, with or without what was drawn."""
    return [
        Answer(
            stored["description"],
            _picture(stored.get("png")),
            stored["transcript"],
            stored["tokens"],
            stored["refused"],
        )
        for stored in read_table(file, leave_out=() if pictures else ("png",)).to_pylist()
    ]


def _picture(png: bytes | None) -> np.ndarray | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def _own(
    plan: Plan, file: Path, themes: Sequence[Theme], answers: Sequence[Answer], known: dict[tuple[str, str], Reading]
) -> dict[int, Reading]:
    """What a block's own pictures show, by their places in it.

    Args:
        plan: whose judge.
        file: where that is kept.
        themes: of the answers.
        answers: with their pictures, where there is no such file.
        known: readings by theme and digest, which are added to: a picture is judged once, however often it is the answer.
    """
    pictures = {place: answer.picture for place, answer in enumerate(answers) if answer.picture is not None}
    if pictures and not file.exists():
        rows = []
        for place, picture in pictures.items():
            key = themes[place].name, hashlib.sha256(picture.tobytes()).hexdigest()
            if key not in known:
                (known[key],) = plan.judge([themes[place]], [picture], [len(known)])
            rows.append({"place": place, "picture": key[1], **_said(known[key])})
        _write(file, rows)
    own = {}
    for row in read_table(file).to_pylist() if file.exists() else ():
        own[row["place"]] = known[themes[row["place"]].name, row["picture"]] = _reading(row)
    return own


def _row(plan: Plan, answered: Answered) -> dict[str, Any]:
    """An answer for the disk."""
    return {
        **_coordinates(plan, answered),
        "detail": answered.cell.detail,
        "object": answered.cell.object,
        "description": answered.answer.description,
        "said_detail": answered.said.detail,
        "said_object": answered.said.object,
        "transcript": answered.answer.transcript,
        "tokens": answered.answer.tokens,
        "refused": answered.answer.refused,
    }


def _coordinates(plan: Plan, answered: Answered) -> dict[str, Any]:
    row = plan.rows[answered.row]
    return {
        "row": row.name,
        "variant": row.variant,
        "task": answered.task.name,
        "shots": answered.shots,
        "index": answered.index,
    }


def _examples(plan: Plan) -> list[dict[str, Any]]:
    """Demonstrations of the first episodes of every task, at the fewest shots."""
    rows = []
    for task in plan.world.tasks:
        for index in range(min(SHOWN, plan.episodes)):
            episode = plan.world.episode(task, min(task.shots), index)
            for place, demo in enumerate(episode.demos):
                shown = {"text": demo.text, "caption": demo.caption, "png": _png(demo.picture, SHOWN_PIXELS)}
                rows.append({"task": task.name, "index": index, "query": episode.query, "place": place, **shown})
    return rows


def _drawn(plan: Plan, drawer: Drawer, keys: Sequence[tuple[int, int, str]]) -> list[dict[str, Any]]:
    """A block of descriptions, drawn and judged."""
    by = {task.number: task for task in plan.world.tasks}
    tasks, indices, texts = [by[number] for number, _, _ in keys], [i for _, i, _ in keys], [t for _, _, t in keys]
    pictures = drawer.draw(texts, tasks, indices)
    numbers = [task.number * EPISODES + index for task, index in zip(tasks, indices, strict=True)]
    readings = plan.judge([task.theme for task in tasks], list(pictures), numbers)
    return [
        {"number": task.number, "index": index, "description": text, **_said(reading), "png": _png(picture)}
        for task, index, text, reading, picture in zip(tasks, indices, texts, readings, pictures, strict=True)
    ]


def _judgements(plan: Plan, directory: Path, answers: Sequence[Answered], drawers: int) -> list[dict[str, Any]]:
    """What of each answer is right, as each model draws it."""
    read: list[dict[tuple[int, int, str], Reading]] = []
    for place in range(drawers):
        files = sorted((directory / "pictures" / str(place)).glob("[0-9]*.parquet"))
        rows = [row for file in files for row in read_table(file, leave_out=("png",)).to_pylist()]
        read.append({(row["number"], row["index"], row["description"]): _reading(row) for row in rows})
    found = []
    for answered in answers:
        if answered.own is not None:
            found.append(_verdict(plan, answered, NOBODY, answered.own))
        else:
            found += [_verdict(plan, answered, place, of[answered.key]) for place, of in enumerate(read)]
    return found


def _verdict(plan: Plan, answered: Answered, drawer: int, reading: Reading) -> dict[str, Any]:
    shown = reading.judgement
    textual, visual = judged(answered.task, answered.cell, shown)
    return {
        **_coordinates(plan, answered),
        "drawer": drawer,
        "described": all(judged(answered.task, answered.cell, answered.said)),
        "textual": textual,
        "visual": visual,
        "right": textual and visual,
        "invalid": None in shown,
        "refused": bool(answered.answer.refused or reading.refused),
        "shown_detail": shown.detail,
        "shown_object": shown.object,
    }


def _png(picture: np.ndarray, pixels: int | None = None) -> bytes:
    """A PNG file, of so many pixels a side at most."""
    file, image = io.BytesIO(), Image.fromarray(picture)
    if pixels is not None:
        image.thumbnail((pixels, pixels))
    image.save(file, "PNG")
    return file.getvalue()


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A Parquet file, whole or not at all."""
    names = list(rows[0]) if rows else []
    columns = {name: pa.array([row[name] for row in rows], _TYPES.get(name)) for name in names}
    with replacing(file) as temporary:
        pq.write_table(pa.table(columns), temporary)


_TYPES = {"png": pa.binary()} | dict.fromkeys(
    ("description", "said_detail", "said_object", "shown_detail", "shown_object"), pa.string()
)
"""Of columns that may have no value at all."""
