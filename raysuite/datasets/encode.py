"""Preference data -> latents: one block of a preference set from the rows of a source."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from raysuite.datasets.pictures import decode
from raysuite.datasets.sources import Part, Source, Unusable
from raysuite.families.policy import Policy
from raysuite.stages import preference_set
from raysuite.stages.preference_set import Reject
from raysuite.types import Preferences

Pairs = Literal["all", "adjacent"]
"""Which pictures of a ranking are compared: all with all, or only those between whose ranks no other picture has one."""


def encode_block(policy: Policy, source: Source, part: Part, directory: Path, *, pairs: Pairs = "all") -> None:
    """Read, encode and write one block. A row or a picture that cannot be used is set aside with its reason."""
    latents, prompts, rows, rejects, ties = [], [], [], list[Reject](), 0
    for number, raw in enumerate(source.raw(part), start=part.first):
        try:
            row = source.row(raw, part.file)
        except Unusable as reason:
            rejects.append(Reject(row=number, reason=str(reason)))
            continue
        pictures: dict[int, np.ndarray] = {}
        for place, image in enumerate(row.images):
            try:
                pictures[place] = decode(image, policy.image_size)
            except Unusable as reason:
                rejects.append(Reject(row=number, image=place, reason=str(reason)))
        for better, worse in compared({place: row.ranks[place] for place in pictures}, pairs):
            if np.array_equal(pictures[better], pictures[worse]):
                rejects.append(Reject(row=number, reason="identical images"))
            elif row.ranks[better] == row.ranks[worse]:
                ties += 1
            else:
                # always two at once: a network's output depends on the size of its batch, and a pair's latents should not
                # depend on how many rows around it were usable
                latents.append(policy.encode(np.stack([pictures[better], pictures[worse]])).cpu())
                prompts.append(row.prompt)
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


def compared(ranks: Mapping[int, float], pairs: Pairs) -> list[tuple[int, int]]:
    """Which pictures of a row are compared, the better of each two first; of equal ranks in their own order.

    Args:
        ranks: by the picture's place in the row, the lower the better.
        pairs: all, or only of ranks that follow one another.
    """
    level = {rank: number for number, rank in enumerate(sorted(set(ranks.values())))}
    ordered = sorted(ranks, key=lambda place: ranks[place])
    return [
        (better, worse)
        for better, worse in combinations(ordered, 2)
        if pairs == "all" or level[ranks[worse]] - level[ranks[better]] <= 1
    ]
