"""Pictures of candidates, scored against what the user meant, on disk: what was drawn is not drawn again.

All candidates of a prompt are drawn with the same noise: its coordinates are the number of the user's prompt and of the picture. Equal
texts of one prompt are drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.config import RunConfig
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.collect import Collector
from raysuite.stages.prompts import Prompt, evaluation_block
from raysuite.tables import read_table
from raysuite.types import Block, Cost, Rollouts
from raysuite.writer.candidates import Candidate

Key = tuple[int, str]
"""Number of the user's prompt, and the text that was drawn."""
TAUGHT, CHOSEN = 1, 4
"""Coordinates of noise: a writer is not judged by the noise that it learned from."""
THUMBNAIL = "thumbnail"
"""The column with small pictures as bytes, by which diversity is measured."""


@dataclass(frozen=True)
class Scores:
    """Of the pictures of one text."""

    total: np.ndarray
    """(M,) the trained reward: the weighted sum."""


def with_noise_of(config: RunConfig, seed: int, *, update: int = TAUGHT) -> RunConfig:
    """A run's settings with noise that no evaluation of it has: that of what writers are taught by, or of what is chosen by."""
    number = int(numpy_generator(seed=seed, stage=Stage.WRITER, update=update).integers(2**31))
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": number, "kl": False})})


def blocks(config: RunConfig, prompts: Mapping[int, Prompt], wanted: Sequence[Candidate], pictures: int) -> list[Block]:
    """One picture of each text in a block, as an evaluation has them; texts in the order of `wanted`."""
    width = config.rollouts.prompts_per_block * config.rollouts.samples
    asked = [replace(prompts[one.prompt], rewrite=one.text) for one in wanted]
    return [
        evaluation_block(
            config,
            asked[start : start + width],
            index=1 + start // width,  # 0 is the block whose pictures evaluations keep
            first_sample=picture,
        )
        for start in range(0, len(asked), width)
        for picture in range(pictures)
    ]


def costs(config: RunConfig, images: int) -> dict[str, int]:
    """Of so many pictures."""
    sampler = config.sampler
    spent = Cost(forward=images * sampler.steps * sampler.evaluations_per_prediction)
    return {"images": images, "network_evaluations": spent.network_evaluations}


def missing(directory: Path, planned: Sequence[Block]) -> list[Block]:
    """Blocks that were not drawn yet."""
    return [block for block in planned if not _file(directory, block).exists()]


def draw(directory: Path, wanted: Sequence[Block], collector: Collector, weights: np.ndarray) -> Iterator[Rollouts]:
    """Draw and score these blocks, and leave their scores and thumbnails."""
    for done in collector.start(wanted, weights, 0):
        block = done.block
        assert done.thumbnails_N is not None
        columns = {
            "prompt": pa.array(block.prompt_ids),
            "text": pa.array(block.prompts),
            "picture": pa.array([block.first_sample] * block.size),
            "total": pa.array(done.reward_N),
            **{f"reward/{name}": pa.array(values) for name, values in done.scores.items()},
            THUMBNAIL: pa.array([small.tobytes() for small in done.thumbnails_N]),
        }
        with replacing(_file(directory, block)) as temporary:
            pq.write_table(pa.table(columns), temporary)
        yield done


def read(directory: Path) -> dict[Key, Scores]:
    """Scores of everything that was drawn, pictures in the order of their numbers."""
    files = sorted(directory.glob("*.parquet"))
    rows = [row for file in files for row in read_table(file, leave_out=(THUMBNAIL,)).to_pylist()]
    found: dict[Key, list[dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: (row["prompt"], row["text"], row["picture"])):
        found.setdefault((row["prompt"], row["text"]), []).append(row)
    return {key: Scores(np.array([row["total"] for row in of])) for key, of in found.items()}


def _file(directory: Path, block: Block) -> Path:
    return directory / f"{block.index:05d}-{block.first_sample:03d}.parquet"
