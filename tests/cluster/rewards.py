"""Rewards as a user would write them, with known faults."""

from __future__ import annotations

import numpy as np


def fails_on_right(images, prompts, metadata):
    if "right" in prompts:
        raise RuntimeError("out of paint")
    return np.zeros(len(images))
