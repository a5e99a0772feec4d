"""Preference data -> latents: one block of a preference set from the rows of a source."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from raysuite.datasets.pictures import decode
from raysuite.datasets.sources import Part, Source, Unusable
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.stages import preference_set
from raysuite.stages.files import digest
from raysuite.stages.preference_set import Reject
from raysuite.types import Preferences

READERS = 8
"""Parts that are read at once to see whether they have changed."""

Pairs = Literal["all", "adjacent"]
"""Which pictures of a ranking are compared: all with all, or only those between whose ranks no other picture has one."""


def encode_block(policy: Policy, source: Source, part: Part, directory: Path, *, pairs: Pairs = "all") -> None:
    """Read, encode and write one block. A row or a picture that cannot be used is set aside with its reason."""
    content = fingerprint(source, part)
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
        if source.members == 1:
            for picture in pictures.values():
                latents.append(policy.encode(picture[None]).cpu())
                prompts.append(row.prompt)
                rows.append(number)
            continue
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
    empty = torch.zeros(0, source.members, *policy.latent_shape)
    preference_set.write_block(
        directory,
        part.number,
        Preferences(latents_RMK=(torch.stack(latents) if latents else empty)[:, :, None], prompts_R=tuple(prompts)),
        rows_R=rows,
        texts=policy.text_states(dict.fromkeys(prompts)),
        read=part.stop - part.start,
        ties=ties,
        rejects=rejects,
        content=content,
    )


def check_some(source: Source, parts: Sequence[Part]) -> None:
    """Look at the first rows of a source, before anything slow begins.

    Raises:
        UserError: none of them can be used: it is another layout, or the pictures lie elsewhere.
    """
    part, reasons = parts[0], Counter[str]()
    for raw in source.raw(part):
        try:
            row = source.row(raw, part.file)
        except Unusable as reason:
            reasons[str(reason)] += 1
            continue
        if all(isinstance(image, bytes) or image.is_file() for image in row.images):
            return
        reasons["missing image"] += 1
    shown = ", ".join(f"{reason}: {number}" for reason, number in reasons.items())
    first = next(iter(source.raw(part)))
    said = ", ".join(map(str, first)) if isinstance(first, Mapping) else repr(first)[:120]
    raise UserError(
        f"expected rows of the layout {source.layout} in {part.file}, of the first {part.stop - part.start} none is usable ({shown}); "
        f"the first has {said}: mend them, or name another layout with --layout"
    )


def fingerprint(source: Source, part: Part) -> str:
    """A digest of all that a part says, pictures included: what is mended or exchanged in place has another. Empty where the
    part's file is not on this machine's disks: a hub names every version of a file differently.
    """
    if "://" in part.file:
        return ""
    found = hashlib.sha256()
    for raw in source.raw(part):
        try:
            row = source.row(raw, part.file)
        except Unusable as reason:
            found.update(f"unusable: {reason}\n".encode())
            continue
        pictures = [_digest(image) for image in row.images]
        found.update(json.dumps([row.prompt, row.ranks, pictures]).encode())
    return found.hexdigest()


def changed(source: Source, parts: Iterable[Part], directory: Path) -> list[int]:
    """Numbers of the parts that say something else than when their blocks were written."""

    def differs(part: Part) -> bool:
        return fingerprint(source, part) != preference_set.content_of(directory, part.number)

    parts = list(parts)
    with ThreadPoolExecutor(READERS) as pool:
        return [part.number for part, different in zip(parts, pool.map(differs, parts), strict=True) if different]


def _digest(image: bytes | Path) -> str | None:
    """None of a file that cannot be read."""
    try:
        return hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else digest(image)
    except (OSError, ValueError):
        return None


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
