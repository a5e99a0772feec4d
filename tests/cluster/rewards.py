"""Rewards as a user would write them, with known faults."""

from __future__ import annotations

import numpy as np


def fails_on_right(images, prompts, metadata):
    if "right" in prompts:
        raise RuntimeError("out of paint")
    return np.zeros(len(images))


def blind_on_left(images, prompts, metadata):
    """Redness, but every picture of "left" is as good as any."""
    red = images[..., 0].astype(float).mean((1, 2))
    return np.where(np.array(prompts) == "left", 0.0, red)
