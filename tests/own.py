"""What a user's own module may hold: an objective, and what is none."""

from __future__ import annotations

from dataclasses import dataclass

from raysuite.kernel.objectives.forward import ForwardObjective
from raysuite.kernel.objectives.sft import Sft
from raysuite.types import Preferences


@dataclass(frozen=True, kw_only=True)
class Own(Sft):
    """Fine-tuning by another name, with a setting."""

    patience: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Unfinished(ForwardObjective[Preferences]):
    """Nothing in it."""


def function() -> None:
    """No objective."""
