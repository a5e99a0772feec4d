"""What an evaluation of writers says, with intervals over prompts. `raysuite/writer/evaluation.py` says what its files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.kernel.diversity import pairwise_distance
from raysuite.kernel.stats import bootstrap_share, paired_difference
from raysuite.results.comparison import generator
from raysuite.results.numerals import with_interval
from raysuite.results.page import table
from raysuite.tables import read_table

ALL = "all"


@dataclass(frozen=True, eq=False)
class Writers:
    """Scores of one reward: rows of all writers are the same prompts and noise, in the same order."""

    reward: str
    cell_N: np.ndarray
    phrasing_N: np.ndarray
    prompt_N: np.ndarray
    score: dict[str, np.ndarray]
    """(N,) by writer, the one that others are compared with first."""
    distinct: dict[str, float]
    """Different rewrites as a share of the different texts that users typed."""
    kept: dict[str, float]
    """Share of prompts that a writer left as they were."""
    unfinished: dict[str, float]
    """Share of rewrites that did not end within the tokens of a rewrite."""
    cut: dict[str, float]
    """Share of rewrites that the image model does not read to their end."""
    diversity: dict[str, float]
    """How unlike the pictures of one prompt are, grey levels, mean over prompts; empty where there is one of each."""


def read_writers(directory: Path) -> Writers:
    """An evaluation in, its numbers out.

    Raises:
        UserError: it is not finished.
    """
    if not (directory / "summary.json").is_file():
        raise UserError(
            f"expected a finished evaluation of writers, got {directory} without summary.json: give the command that began it again"
        )
    files = sorted((directory / "scores").glob("*.parquet"))
    tables = [read_table(file) for file in files]
    reward = [name for name in tables[0].column_names if name.startswith("reward/")][-1]
    drawn = {(row["prompt"], row["text"], row["picture"]): row for table in tables for row in table.to_pylist()}
    pictures = range(max(picture for _, _, picture in drawn) + 1)
    rows = [json.loads(line) for line in (directory / "rewrites.jsonl").read_text().splitlines()]
    of = {who: [row for row in rows if row["who"] == who] for who in dict.fromkeys(row["who"] for row in rows)}
    first = [row for row in next(iter(of.values())) for _ in pictures]
    return Writers(
        reward.removeprefix("reward/"),
        np.array([row["cell"] for row in first]),
        np.array([row["phrasing"] for row in first]),
        np.array([row["prompt"] for row in first]),
        {
            who: np.array([drawn[row["prompt"], row["rewrite"], m][reward] for row in mine for m in pictures])
            for who, mine in of.items()
        },
        {who: len({row["rewrite"] for row in mine}) / len({row["user"] for row in mine}) for who, mine in of.items()},
        {who: float(np.mean([row["rewrite"] == row["user"] for row in mine])) for who, mine in of.items()},
        {who: float(np.mean([not row["ended"] for row in mine])) for who, mine in of.items()},
        {who: float(np.mean([row["cut"] for row in mine])) for who, mine in of.items()},
        {who: _diversity(drawn, mine, pictures) for who, mine in of.items()} if len(pictures) > 1 else {},
    )


def _diversity(
    drawn: Mapping[tuple[int, str, int], Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], pictures: Sequence[int]
) -> float:
    of_each = [[drawn[row["prompt"], row["rewrite"], m]["thumbnail"] for m in pictures] for row in rows]
    return float(np.mean([pairwise_distance(np.stack([np.frombuffer(t, np.uint8) for t in one])) for one in of_each]))


def writers_summary(directory: Path, width: int | None = None) -> str:
    """The tables as plain text for a terminal of so many characters.

    Raises:
        UserError: the evaluation is not finished.
    """
    found = read_writers(directory)
    cells = [*dict.fromkeys(found.cell_N), ALL]
    of = {cell: np.full(len(found.cell_N), True) if cell == ALL else found.cell_N == cell for cell in cells}
    names = list(found.score)
    said = {cell: f"{np.unique(found.prompt_N[rows]).size} prompts" for cell, rows in of.items()}
    lines = [f"{found.reward} in each cell, mean [95 % over prompts]"]
    heads = ("left as typed", "different rewrites", "unfinished", "cut by the model", "diversity")
    head = ("writer", *(f"{cell}, {said[cell]}" for cell in cells), *heads)
    body = [
        (
            name,
            *(_mean(found, name, of[cell]) for cell in cells),
            f"{found.kept[name]:.0%}",
            f"{found.distinct[name]:.0%}",
            f"{found.unfinished[name]:.0%}",
            f"{found.cut[name]:.0%}",
            f"{found.diversity[name]:.1f}" if name in found.diversity else "",
        )
        for name in names
    ]
    lines += table([head, *body], width, names=1)
    if names[1:]:
        lines += ["", f"Difference from {names[0]}, on the same prompts and noise [95 % over prompts]"]
        body = [(name, *(_difference(found, name, of[cell]) for cell in cells)) for name in names[1:]]
        lines += table([("writer", *cells), *body], width, names=1)
    phrasings = [name for name in dict.fromkeys(found.phrasing_N) if name]
    if phrasings:
        lines += ["", f"{found.reward} by phrasing"]
        body = [
            (phrasing, *(_mean(found, name, found.phrasing_N == phrasing) for name in names)) for phrasing in phrasings
        ]
        lines += table([("phrasing", *names), *body], width, names=1)
    return "\n".join(lines).replace("−", "-")


def _mean(found: Writers, name: str, rows: np.ndarray) -> str:
    return with_interval(bootstrap_share(found.score[name][rows], found.prompt_N[rows], generator()))


def _difference(found: Writers, name: str, rows: np.ndarray) -> str:
    before, after = (next(iter(found.score.values()))[rows], found.score[name][rows])
    return with_interval(paired_difference(before, after, found.prompt_N[rows], generator()), signed=True)
