"""Rewards as a user would write them, whose effect is known."""

from __future__ import annotations

import numpy as np


def red_on_training_prompts(images, prompts, metadata):
    """More red is better for "left" and "right", worse for "both"."""
    red = images[..., 0].astype(float).mean((1, 2))
    return np.where(np.array(prompts) == "both", -red, red)
