"""Features of pictures: what measures that compare sets of pictures look at.

A name is `pixels`; a function `package.module:function` from pictures, uint8 (N, H, W, 3), to numbers (N, D); or the hub id or
directory of a vision model that transformers reads with its image processor, such as facebook/dinov2-base or
openai/clip-vit-large-patch14.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from raysuite.errors import UserError
from raysuite.kernel.diversity import thumbnails
from raysuite.rewards import resolve
from raysuite.rewards.network import check_directory, network_of, processed, processor_of

Features = Callable[[np.ndarray], np.ndarray]
"""Pictures, uint8 (N, H, W, 3), as numbers (N, D)."""
BATCH = 32
"""Pictures that go through a network at once."""
NEEDS = ("config.json", "model.safetensors", "preprocessor_config.json")
OTHERWISE = (
    "name pixels, package.module:function, or the hub id or directory of a vision model with its image processor"
)


def features(name: str, *, device: torch.device) -> Features:
    """The features of a name.

    Args:
        name: as above.
        device: where a network runs.

    Raises:
        UserError: there is nothing of that name that can be read.
    """
    if name == "pixels":
        return pixels
    if ":" in name:
        return partial(_asked, name, resolve(name))
    check_directory(name, NEEDS, OTHERWISE)
    network = network_of(AutoModel, name, "a vision model", OTHERWISE)
    return partial(_seen, network.to(device).eval(), processor_of(name, OTHERWISE))


def pixels(images_N: np.ndarray) -> np.ndarray:
    """Grey levels of pictures that are averaged down to at most 64 pixels on a side: for pictures that differ in little else."""
    return thumbnails(images_N).reshape(len(images_N), -1).astype(np.float64)


@torch.no_grad()
def _seen(network: Any, processor: Any, images_N: np.ndarray) -> np.ndarray:
    """A network's pooled state, or, where it has learned to compare pictures with texts, what it compares."""
    found = []
    for first in range(0, len(images_N), BATCH):
        given = processed(processor, images_N[first : first + BATCH]).to(network.device)
        own = getattr(network, "get_image_features", None)
        answer = network(**given) if own is None else own(**given)
        found.append((answer if isinstance(answer, torch.Tensor) else answer.pooler_output).float().cpu().numpy())
    return np.concatenate(found)


def _asked(name: str, function: Callable[[np.ndarray], Any], images_N: np.ndarray) -> np.ndarray:
    answer = np.asarray(function(images_N), np.float64)
    if answer.ndim != 2 or len(answer) != len(images_N) or not np.isfinite(answer).all():
        raise UserError(
            f"expected finite numbers ({len(images_N)}, D) from {name} for {len(images_N)} pictures, got {answer.shape}: mend it"
        )
    return answer
