"""A reward whose answer anyone can predict, for trying things out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def redness(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Mean of the red channel minus the mean of the other two, in [-1, 1]."""
    means_NC = images.reshape(len(images), -1, 3).mean(axis=1) / 255
    return means_NC[:, 0] - means_NC[:, 1:].mean(axis=1)
