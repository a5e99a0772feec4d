"""Preference data -> latents: one block of a preference set from the rows of a source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from raysuite.datasets.sources import Part, Source, Unusable
from raysuite.families.policy import Policy
from raysuite.stages import preference_set
from raysuite.stages.preference_set import Reject
from raysuite.types import Preferences

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or were cut short."""


def encode_block(policy: Policy, source: Source, part: Part, directory: Path) -> None:
    """Read, encode and write one block. A row that cannot be used is set aside with its reason."""
    latents, prompts, rows, rejects, ties = [], [], [], list[Reject](), 0
    for number, raw in enumerate(source.raw(part), start=part.first):
        try:
            row = source.row(raw)
            if not row.prompt.strip():
                raise Unusable("empty caption")
            pictures = [_picture(image, policy.image_size) for image in row.images]
            if np.array_equal(pictures[0], pictures[1]):
                raise Unusable("identical images")
        except Unusable as reason:
            rejects.append(Reject(row=number, reason=str(reason)))
            continue
        if row.preferred is None:
            ties += 1
            continue
        pair = [pictures[row.preferred], pictures[1 - row.preferred]]
        # always two at once: a network's output depends on the size of its batch, and a pair's latents should not
        # depend on how many rows around it were usable
        latents.append(policy.encode(np.stack(pair)).cpu())
        prompts.append(row.prompt.strip())
        rows.append(number)
    empty = torch.zeros(0, 2, *policy.latent_shape)
    preference_set.write_block(
        directory,
        part.number,
        Preferences(latents_RMK=(torch.stack(latents) if latents else empty)[:, :, None], prompts_R=tuple(prompts)),
        rows_R=rows,
        texts={prompt: states.cpu() for prompt, states in policy.text_states(dict.fromkeys(prompts)).items()},
        read=part.stop - part.start,
        ties=ties,
        rejects=rejects,
    )


def _picture(image: bytes | Path, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture in the model's shape, uint8 (H, W, 3)."""
    height, width = size
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return np.asarray(ImageOps.fit(opened.convert("RGB"), (width, height), Image.Resampling.LANCZOS))
    except UNREADABLE as error:
        raise Unusable("unreadable image") from error
