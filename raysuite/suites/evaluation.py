"""An evaluation on disk: the same command goes on with what is there, and repeats nothing.

    protocol.json                   what all pictures are drawn and scored with
    provenance.json                 as of a run
    prompts.jsonl                   a row a prompt, in the order of their numbers
    members/<label>/member.json     what decides a model's weights
    members/<label>/scores/<block>.parquet
                                    columns `prompt`, `sample`, `reward`, `value`; written last: it says that the block is finished
    members/<label>/images/<prompt>-<sample>.png
                                    all pictures, or the first of some prompts

Blocks are dealt from the list of everything that is to be drawn, so that they are the same after a stop. Members may be added to a
directory by later commands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raysuite.places import replacing
from raysuite.stages import files
from raysuite.stages.files import is_held, write_json
from raysuite.suites.protocol import Member, Protocol
from raysuite.types import Block, Rollouts

MEMBERS = "members"
PROMPTS = "prompts.jsonl"


def claim(protocol: Protocol, directory: Path, command: Sequence[str]) -> None:
    """Make the directory this evaluation's, or find that it is.

    Raises:
        UserError: it was begun with another protocol, or a label is another model's there.
    """
    begun, wanted = (f"{MEMBERS}/*/scores/*.parquet",), protocol.settings()
    files.claim(directory, "protocol.json", wanted, "evaluation of a suite", command, begun=begun)
    rows = [{"prompt": p.text, "category": p.stratum, "metadata": dict(p.metadata)} for p in protocol.prompts]
    with replacing(directory / PROMPTS) as temporary:
        temporary.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    for member in protocol.members:
        place, settings = of(directory, member), member.settings()
        if not is_held(place, "member.json", settings, "model", begun=("scores/*.parquet",)):
            write_json(place / "member.json", settings)


def labels(protocol: Protocol, directory: Path) -> list[str]:
    """Of the models that a directory will hold: the protocol's, and those of earlier commands."""
    earlier = (file.parent.name for file in directory.glob(f"{MEMBERS}/*/member.json"))
    return sorted({*earlier, *(member.label for member in protocol.members)})


def of(directory: Path, member: Member) -> Path:
    """Where a member's files lie."""
    return directory / MEMBERS / member.label


def missing(protocol: Protocol, directory: Path, member: Member) -> list[Block]:
    """The blocks of a member that are not finished."""
    return [block for block in protocol.blocks() if not _file(directory, member, block).exists()]


def write(protocol: Protocol, directory: Path, member: Member, done: Rollouts) -> None:
    """Put a block's pictures and scores on disk, the scores last and whole."""
    block = done.block
    for prompt, picture in zip(block.prompt_ids, () if done.pictures is None else done.pictures, strict=False):
        if protocol.kept(prompt, block.first_sample):
            with replacing(of(directory, member) / "images" / f"{prompt}-{block.first_sample}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="PNG")
    rows = [
        (prompt, block.first_sample, reward, float(value))
        for reward, values in done.scores.items()
        for prompt, value in zip(block.prompt_ids, values, strict=True)
    ]
    names = ("prompt", "sample", "reward", "value")
    with replacing(_file(directory, member, block)) as temporary:
        pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), temporary)


def _file(directory: Path, member: Member, block: Block) -> Path:
    return of(directory, member) / "scores" / f"{block.index:05d}.parquet"
