"""A run directory in, one frozen value out. See docs/architecture.md for what the files hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite import rewritten
from raysuite.errors import UserError

SPLITS = {"test": "test", "held_out": "held-out", "training": "training"}
"""Every split and how it is called in sentences, the one that matters most first."""
WEIGHTED_SUM = "weighted sum"
"""How the trained reward is called where it is not one reward as it is."""
SCORES = pa.schema(
    {
        "update": pa.int64(),
        "split": pa.string(),
        "prompt": pa.string(),
        "sample": pa.int64(),
        "reward": pa.string(),
        "value": pa.float64(),
    }
)


@dataclass(frozen=True, eq=False)
class Series:
    """One metric: the updates that have it, ascending, and its values."""

    updates: np.ndarray
    values: np.ndarray


EMPTY = Series(np.array([], dtype=int), np.array([]))


@dataclass(frozen=True, eq=False)
class Scores:
    """Evaluation scores as columns, one row for each picture and reward, sorted by update, split, prompt and sample."""

    update: np.ndarray
    split: np.ndarray
    prompt: np.ndarray
    sample: np.ndarray
    reward: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def where(self, **wanted: object) -> Scores:
        """The rows whose columns have these values."""
        keep = np.ones(len(self), dtype=bool)
        for column, value in wanted.items():
            keep &= getattr(self, column) == value
        return self.keep(keep)

    def keep(self, rows: np.ndarray) -> Scores:
        """The rows where a boolean array of the same length says so."""
        return Scores(**{name: getattr(self, name)[rows] for name in SCORES.names})


@dataclass(frozen=True)
class Picture:
    """One picture that an evaluation kept."""

    update: int
    split: str
    index: int
    sample: int
    prompt: str
    rewrite: str | None
    """What a writer made of the prompt; None where it left it."""
    png: bytes


@dataclass(frozen=True, eq=False)
class Run:
    """All that a run left behind, or has left so far."""

    directory: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Series]
    scores: Scores
    pictures: tuple[Picture, ...]
    ledger: Mapping[str, Any]
    """Empty where nothing has been spent yet."""
    rewrites: Sequence[Mapping[str, Any]] = ()
    """Rows of what a writer made of prompts before the run began."""
    failure: str | None = None
    """The sentence with which the last attempt ended, if it did not end well."""

    @property
    def evaluations(self) -> list[int]:
        """Numbers of updates after which the policy was evaluated, ascending."""
        return [int(update) for update in np.unique(self.scores.update)]

    @property
    def updates(self) -> int:
        """Updates that are done."""
        budget = self.metrics.get("budget/network_evaluations")
        return int(budget.updates[-1]) + 1 if budget else 0

    @property
    def budget(self) -> int | None:
        """Network evaluations of training after which the run ends, even before its last update."""
        return self.config.get("budget")

    @property
    def progress(self) -> str:
        """How much of the run is done: "12 of 40 updates"."""
        if self.budget is None:
            return f"{self.updates} of {self.config['updates']} updates"
        spent = int(self.spent([self.updates])[0])
        return f"{self.updates} of at most {self.config['updates']} updates and {spent:,} of {self.budget:,} network evaluations"

    @property
    def finished(self) -> bool:
        """Whether the last policy has been evaluated."""
        if self.config["updates"] in self.evaluations:
            return True
        return bool(self.budget and self.evaluations) and self.spent(self.evaluations[-1:])[0] >= self.budget

    @property
    def trained(self) -> str:
        """The name of the trained reward."""
        return _trained(self.config)

    def sign(self, reward: str) -> int:
        """-1 for a term that the trained reward subtracts, so that less of it is better; else 1."""
        return next((-1 for term in self.config["rewards"] if term["name"] == reward and term["weight"] < 0), 1)

    @property
    def rewards(self) -> list[str]:
        """Names of all rewards, the trained one first, then its terms, then what is only watched."""
        terms = [reward["name"] for reward in self.config["rewards"]]
        return list(dict.fromkeys([self.trained, *terms, *sorted(set(self.scores.reward.tolist()))]))

    @property
    def watched(self) -> list[str]:
        """Names of the rewards that are evaluated and never trained."""
        terms = {reward["name"] for reward in self.config["rewards"]}
        return [name for name in self.rewards if name not in terms | {WEIGHTED_SUM}]

    @property
    def splits(self) -> list[str]:
        """Splits of the last evaluation, the one that matters most first: on test prompts only the first and the last policy are."""
        last = self.scores.where(update=self.evaluations[-1]) if self.evaluations else self.scores
        return [split for split in SPLITS if split in last.split]

    @cached_property
    def _spent(self) -> dict[int, float]:
        budget = self.metrics.get("budget/network_evaluations")
        return {0: 0.0} | (
            {int(u) + 1: float(v) for u, v in zip(budget.updates, budget.values, strict=True)} if budget else {}
        )

    def spent(self, policies: Sequence[int] | np.ndarray) -> np.ndarray:
        """Network evaluations of training that each policy cost, named by its number of updates. Policy 0 cost none."""
        missing = [int(policy) for policy in policies if int(policy) not in self._spent]
        if missing:
            raise UserError(
                f"expected budget/network_evaluations of update {missing[0] - 1} in "
                f"{self.directory / 'metrics.jsonl'}, found none: copy the whole run directory, or "
                "repeat the command that began the run"
            )
        return np.array([self._spent[int(policy)] for policy in policies])


def read_run(directory: Path) -> Run:
    """Everything in a run directory but its checkpoints.

    Until the first update only config.json and provenance.json have to be there.

    Raises:
        UserError: a file is missing or damaged.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"expected a run in {directory}, found no config.json: name the --out of a `raysuite train`")
    config = _json(directory / "config.json")
    scores = _scores(directory)
    if _trained(config) == WEIGHTED_SUM and len(scores):
        scores = _with_weighted_sum(scores, {term["name"]: term["weight"] for term in config["rewards"]}, directory)
    begun = bool((scores.update > 0).any())
    metrics = _metrics(directory / "metrics.jsonl", required=begun)
    rewrites = rewritten.rows(directory)
    for update in sorted({int(u) for name, m in metrics.items() if name.startswith("evaluation/") for u in m.updates}):
        if update not in scores.update:
            raise _missing(directory / "scores" / f"{update:06d}.parquet")
    return Run(
        directory=directory,
        config=config,
        provenance=_json(directory / "provenance.json"),
        metrics=metrics,
        scores=scores,
        pictures=_pictures(directory / "images", rewrites),
        rewrites=rewrites,
        ledger=_json(directory / "ledger.json", required=begun),
        failure=_json(directory / "failure.json", required=False).get("message"),
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by the dotted path that `--set` takes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _trained(config: Mapping[str, Any]) -> str:
    term, *others = config["rewards"]
    return str(term["name"]) if not others and term["weight"] > 0 else WEIGHTED_SUM


def _missing(file: Path) -> UserError:
    return UserError(
        f"expected {file}, found nothing there: copy the whole run directory, or repeat the command that began the run"
    )


def _damaged(file: Path, what: object) -> UserError:
    return UserError(
        f"expected {file} as the run wrote it, it is damaged ({what}): copy it again from where the run was"
    )


def _json(file: Path, *, required: bool = True) -> dict[str, Any]:
    if not file.is_file():
        if required:
            raise _missing(file)
        return {}
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, error) from error
    return value


def _metrics(file: Path, *, required: bool) -> dict[str, Series]:
    """Every metric by name. Where a number was written twice (a run stopped and went on) the last one counts."""
    if not file.is_file():
        if required:
            raise _missing(file)
        return {}
    found: dict[str, dict[int, float]] = {}
    *lines, _ = file.read_text(encoding="utf-8").split("\n")  # what follows the last line break is still being written
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found.setdefault(row["name"], {})[int(row["update"])] = float(row["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(file, f"line {number}: {error}") from error
    return {name: Series(*map(np.array, zip(*sorted(points.items()), strict=True))) for name, points in found.items()}


def _scores(directory: Path) -> Scores:
    tables = [SCORES.empty_table()]
    for file in sorted((directory / "scores").glob("[0-9]*.parquet")):
        try:
            tables.append(pq.read_table(file, columns=SCORES.names).cast(SCORES))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error) from error
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in SCORES.names[:4]])
    return Scores(**{name: table[name].to_numpy() for name in SCORES.names})


def _with_weighted_sum(scores: Scores, weights: Mapping[str, float], directory: Path) -> Scores:
    """The scores, and the trained reward as one more: every term's rows are sorted alike, so they add up row by row."""
    terms = [scores.where(reward=name) for name in weights]
    if len({len(term) for term in terms}) > 1:
        raise _damaged(directory / "scores", f"not every picture has all of {', '.join(weights)}")
    total = sum(weight * term.value for weight, term in zip(weights.values(), terms, strict=True))
    rows = {name: getattr(terms[0], name) for name in SCORES.names}
    rows |= {"reward": np.full(len(terms[0]), WEIGHTED_SUM, dtype=object), "value": total}
    return Scores(**{name: np.concatenate([getattr(scores, name), rows[name]]) for name in SCORES.names})


def _pictures(directory: Path, rewrites: Sequence[Mapping[str, Any]]) -> tuple[Picture, ...]:
    changed = {row["user"]: row["rewrite"] for row in rewrites if row["rewrite"] != row["user"]}
    files = sorted(directory.glob("[0-9]*/*.png"))
    prompts = _json(directory / "prompts.json", required=bool(files))
    pictures = []
    for file in files:
        name = re.fullmatch(r"((\w+)-(\d+))-(\d+)", file.stem)
        if name and name[1] in prompts:
            update, sample = int(file.parent.name), int(name[4])
            prompt = prompts[name[1]]
            found = (prompt, changed.get(prompt), file.read_bytes())
            pictures.append(Picture(update, name[2], int(name[3]), sample, *found))
    return tuple(pictures)
