"""What every tracker offers, and what it is told of a run at first."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysuite.config import RunConfig


@dataclass(frozen=True)
class Picture:
    """A kept picture of an evaluation."""

    name: str
    """`<split>/<prompt index>`, the same at every evaluation."""
    prompt: str
    file: Path


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it."""

    directory: Path
    config: RunConfig

    @property
    def name(self) -> str:
        """What people call it."""
        return self.directory.name

    @property
    def identity(self) -> str:
        """What a tracker finds it by when it goes on: 16 hexadecimal digits."""
        began = json.loads((self.directory / "provenance.json").read_text())
        return hashlib.sha256(json.dumps([self.name, began["date"], began["command"]]).encode()).hexdigest()[:16]

    @property
    def place(self) -> Path:
        """Where trackers put what they keep beside the run."""
        return self.directory / "trackers"

    def settings(self) -> dict[str, Any]:
        """The configuration, flat: values by dotted path."""
        return dict(_flat(self.config.canonical()))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


class Tracker(ABC):
    """Somewhere that shows runs. Numbers go by the update that metrics.jsonl and images/ have them under."""

    destination: str
    """Where it goes, in words that are the same every time: what was told is remembered by it."""
    errors: tuple[type[Exception], ...] = ()
    """What its library raises, beside OSError, when it cannot be told something now; it will be told again. After anything else, only
    by `raysuite track`."""

    @abstractmethod
    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        """Take metrics, by name."""

    @abstractmethod
    def pictures(self, update: int, pictures: Sequence[Picture]) -> None:
        """Take an evaluation's pictures."""

    @abstractmethod
    def close(self, *, completed: bool) -> None:
        """Note that the run has come to its end, or was stopped."""
