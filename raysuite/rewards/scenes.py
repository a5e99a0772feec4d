"""The scenes world's verifier as rewards.

They judge against what was meant: the sentence in a prompt's metadata under `scene` where there is one (users speak as they please),
what the user typed where that was rewritten (a rewrite must not be its own judge), and the prompt itself elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.verify import Verdict, verify


def scenes(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far each picture shows what was meant, in [0, 1]."""
    return np.array([verdict.score for verdict in _verdicts(images, prompts, metadata)])


def scenes_strict(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """1 where a picture shows exactly what was meant, else 0."""
    return np.array([float(verdict.passed) for verdict in _verdicts(images, prompts, metadata)])


def _verdicts(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    meant = [known.get("scene") or prompt for prompt, known in zip(prompts, metadata, strict=True)]
    return [verify(image, parse(sentence)) for image, sentence in zip(images, meant, strict=True)]
