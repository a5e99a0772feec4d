"""Placeholder until the real one lands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysuite.types import Preferences


class PreferenceSet:
    @classmethod
    def open(cls, directory: Path) -> PreferenceSet:
        raise NotImplementedError

    def __len__(self) -> int:
        return 0

    def rows(self, numbers: Sequence[int]) -> Preferences:
        raise NotImplementedError
