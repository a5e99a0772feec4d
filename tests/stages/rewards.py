"""Rewards as a user would write them, whose effect is known."""

from __future__ import annotations

import numpy as np


def red_on_training_prompts(images, prompts, metadata):
    """More red is better for "left" and "right", worse for "both"."""
    red = images[..., 0].astype(float).mean((1, 2))
    return np.where(np.array(prompts) == "both", -red, red)


def equal_but_for_rounding(images, prompts, metadata):
    """20, or the next number of float32."""
    return np.nextafter(
        np.full(len(images), 20, np.float32), np.where(np.arange(len(images)) % 2, 21, 20).astype(np.float32)
    )


def all_but_equal_on_the_left(images, prompts, metadata):
    """21.5, or the next number of float32, for "left"; up to 22.5, the redder the more, for other prompts."""
    last_digit = np.where(np.arange(len(images)) % 2, np.spacing(np.float32(21.5)), 0)
    return (21.5 + np.where(np.array(prompts) == "left", last_digit, images[..., 0].mean((1, 2)) / 255)).astype(
        np.float32
    )


def brightness(images, prompts, metadata):
    """How bright pictures are, from 0 to 1."""
    return images.astype(float).mean((1, 2, 3)) / 255


def brightness_per_thousand(images, prompts, metadata):
    """The same in thousandths."""
    return 1000 * brightness(images, prompts, metadata)


def paleness(images, prompts, metadata):
    """Green and blue, from 0 to 1: what falls as pictures become red."""
    return images[..., 1:].astype(float).mean((1, 2, 3)) / 255


def hundred(images, prompts, metadata):
    """100, whatever it is shown."""
    return [100.0] * len(images)
