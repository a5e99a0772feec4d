"""A directory of a suite's evaluation in, one frozen value out. `raysuite/suites/evaluation.py` says what its files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.tables import damaged, read_table

COLUMNS = ("prompt", "sample", "reward", "value")


@dataclass(frozen=True, eq=False)
class SuiteResults:
    """All scores of the members that are finished."""

    directory: Path
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    prompts_P: tuple[str, ...]
    """Texts by number."""
    categories_P: np.ndarray
    """The category of each, empty where the suite has none."""
    bases: Mapping[str, str]
    """The base of each finished member, the bases themselves included: bases first, then by name."""
    unfinished: tuple[str, ...]
    """Labels of members of which pictures are missing."""
    scores: Mapping[str, Mapping[str, np.ndarray]]
    """Of each member and reward the scores (P, S) by prompt and sample."""

    @property
    def name(self) -> str:
        """Of the suite."""
        return str(self.protocol["suite"]["name"])

    @property
    def rewards(self) -> tuple[str, ...]:
        """In the order in which they were named."""
        return tuple(self.protocol["order"])

    @property
    def categories(self) -> tuple[str, ...]:
        """In the suite's order."""
        return tuple(self.protocol["suite"]["categories"])

    @property
    def members(self) -> tuple[str, ...]:
        """Labels of all that are finished."""
        return tuple(self.bases)

    @cached_property
    def groups_P(self) -> np.ndarray:
        """What is resampled: prompts, of which equal texts are one."""
        return np.unique(self.prompts_P, return_inverse=True)[1]

    @property
    def by_category(self) -> bool:
        """Whether the one number is the mean of the categories' means."""
        return bool(self.categories) and self.protocol["suite"]["overall"] == "categories"


def read_suite(directory: Path) -> SuiteResults:
    """All of it but the pictures.

    Raises:
        UserError: nothing is finished, or a file of it is damaged.
    """
    found = read_begun(directory)
    if not found.members:
        raise UserError(
            f"expected an evaluation of a suite in {directory} of which a model is finished, found none: give the command that began "
            "it again"
        )
    return found


def read_begun(directory: Path) -> SuiteResults:
    """The same of an evaluation of which no member may be finished yet.

    Raises:
        UserError: a file of it is damaged.
    """
    protocol, provenance = (_json(directory / f"{name}.json") for name in ("protocol", "provenance"))
    lines = _text(directory / "prompts.jsonl").split("\n")
    rows = [json.loads(line) for line in lines if line]
    shape = (len(rows), protocol["samples"])
    bases: dict[str, str] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    unfinished = []
    for file in sorted(directory.glob("members/*/member.json")):
        label = file.parent.name
        found = _scores(file.parent, tuple(protocol["order"]), shape)
        if any(np.isnan(values).any() for values in found.values()):
            unfinished.append(label)
            continue
        bases[label], scores[label] = _json(file)["base"], found
    ordered = sorted(bases, key=lambda label: (bases[label], label != bases[label], label))
    return SuiteResults(
        directory,
        protocol,
        provenance,
        tuple(row["prompt"] for row in rows),
        np.array([row["category"] for row in rows]),
        {label: bases[label] for label in ordered},
        tuple(unfinished),
        scores,
    )


def _scores(member: Path, rewards: tuple[str, ...], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Scores (P, S) by reward, NaN where there is none yet."""
    found = {reward: np.full(shape, np.nan) for reward in rewards}
    for file in sorted((member / "scores").glob("[0-9]*.parquet")):
        table = read_table(file, columns=COLUMNS)
        prompts, samples, names, values = (table[name].to_numpy() for name in COLUMNS)
        for reward in rewards:
            mine = names == reward
            found[reward][prompts[mine], samples[mine]] = values[mine]
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"expected an evaluation of a suite in {file.parent}, found no {file.name}: name the --out of `raysuite evaluate --suite`"
        ) from error
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_text(file)))
    except (ValueError, TypeError) as error:
        raise damaged(file, error) from error
