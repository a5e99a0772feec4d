"""How well pictures compress: rewards that need no model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

QUALITY = 95


def jpeg_incompressibility(
    images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Size of each picture as a JPEG of quality 95, in kilobytes of 1000 bytes.

    Source: Black et al., "Training Diffusion Models with Reinforcement Learning", 2024, section 5.1.
    """
    return np.array([_kilobytes(image) for image in images])


def jpeg_compressibility(
    images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """The negative of `jpeg_incompressibility`."""
    return -jpeg_incompressibility(images, prompts, metadata)


def _kilobytes(image: np.ndarray) -> float:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000
