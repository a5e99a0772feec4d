"""The scenes world's verifier as rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.verify import verify


def scenes(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far each picture follows its prompt, in [0, 1]."""
    return np.array([verify(image, parse(prompt)).score for image, prompt in zip(images, prompts, strict=True)])


def scenes_strict(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """1 where a picture follows its prompt exactly, else 0."""
    return np.array([float(verify(image, parse(prompt)).passed) for image, prompt in zip(images, prompts, strict=True)])
