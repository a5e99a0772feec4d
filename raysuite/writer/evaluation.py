"""Writers compared by what one image model draws from their rewrites, on disk.

    evaluation.json     what decides all of it
    provenance.json     as of a run
    rewrites.jsonl      a row for each writer and prompt: `who`, `prompt` (its number), `cell`, `phrasing`, `user`, `rewrite`, and
                        whether it `ended` within the tokens of a rewrite
    scores/<n>.parquet  of the pictures, a file for each batch; a text with its prompt's noise is drawn once, whoever wrote it
    summary.json        costs; written last

Cells are what the metadata of prompts calls `cell`, or the split. Users' prompts, noise and pictures are the same for all writers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysuite.config import Model, RunConfig
from raysuite.errors import UserError
from raysuite.families import cut_prompts
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.files import inputs
from raysuite.stages.prompts import Prompt, PromptSet, dealt
from raysuite.stages.rewrites import digest_of
from raysuite.writer.candidates import Candidate
from raysuite.writer.model import open_writer

NONE, ORACLE = "none", "oracle"
"""Who leaves the user's text as it is, and who knows what was meant: metadata has it under `scene`."""


@dataclass(frozen=True)
class Plan:
    """Who is asked how often.

    Raises:
        UserError: a number is out of its range, or a writer is named twice.
    """

    who: tuple[str, ...]
    """`none`, `oracle`, or writers; all are compared with the first."""
    prompts: int = 48
    """Of each cell."""
    pictures: int = 2
    """Of each prompt."""
    seed: int = 0
    """Of the prompts. Noise is that of the run's evaluations."""

    def __post_init__(self) -> None:
        if not self.who or len({*self.who}) < len(self.who):
            raise UserError(f"expected writers, each once, got {', '.join(self.who) or 'none'}: correct the list")
        for name, value in (("prompts", self.prompts), ("pictures", self.pictures)):
            if value < 1:
                raise UserError(f"expected --{name} of at least 1, got {value}: correct it")


def identity(config: RunConfig, plan: Plan, model: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers."""
    canonical = config.canonical()
    noise = {"seed": config.evaluation.seed, "window": canonical["sampler"]["window"]}
    sections = {s: canonical[s] for s in ("prompts", "rewards", "rollouts")}
    return {
        **asdict(plan),
        "who": {name: digest_of(name) for name in plan.who},
        "drawn_by": dict(model),
        "noise": noise,
        "read": inputs(config),
        "watched": config.identity()["evaluation"]["rewards"],  # the last reward is what tables show
        **sections,
    }


def cell_of(prompt: Prompt, split: str) -> str:
    """Where a prompt belongs."""
    return str(prompt.metadata.get("cell", split))


def chosen_prompts(known: PromptSet, plan: Plan) -> dict[str, list[Prompt]]:
    """Prompts of each cell, alike from every stratum; all where a cell has fewer."""
    cells: dict[str, list[Prompt]] = {}
    for split, prompts in known.splits.items():
        for prompt in prompts:
            cells.setdefault(cell_of(prompt, split), []).append(prompt)
    return {
        name: dealt(
            tuple(prompts),
            min(plan.prompts, len(prompts)),
            numpy_generator(seed=plan.seed, stage=Stage.WRITER, update=2, prompt=number),
        )
        for number, (name, prompts) in enumerate(cells.items())
    }


def rewritten(
    directory: Path, cells: Mapping[str, Sequence[Prompt]], who: Sequence[str], model: Model
) -> list[Candidate]:
    """Rewrite all prompts, once, and return what is to be drawn.

    Raises:
        UserError: a writer is not there, or the oracle does not know what a prompt means.
    """
    file = directory / "rewrites.jsonl"
    if not file.exists():
        prompts = [(cell, prompt) for cell, of in cells.items() for prompt in of]
        rows = []
        for name in who:
            texts = rewrites_by(name, [prompt for _, prompt in prompts])
            cut = {*cut_prompts(model, [text for text, _ in texts])[0]}
            rows += [
                {
                    "who": name,
                    "prompt": prompt.number,
                    "cell": cell,
                    "phrasing": str(prompt.metadata.get("phrasing", "")),
                    "user": prompt.text,
                    "rewrite": text,
                    "ended": ended,
                    "cut": text in cut,
                }
                for (cell, prompt), (text, ended) in zip(prompts, texts, strict=True)
            ]
        with replacing(file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = map(json.loads, file.read_text().splitlines())
    return list(
        dict.fromkeys(Candidate(row["prompt"], row["rewrite"], own=row["rewrite"] == row["user"]) for row in kept)
    )


def rewrites_by(name: str, prompts: Sequence[Prompt]) -> list[tuple[str, bool]]:
    """What one writer makes of prompts, at temperature 0, and whether it ended that; where it writes nothing, the user's text.

    Raises:
        UserError: there is no such writer, or the oracle does not know what a prompt means.
    """
    if name == NONE:
        return [(prompt.text, True) for prompt in prompts]
    if name == ORACLE:
        if unknown := next((prompt.text for prompt in prompts if not prompt.metadata.get("scene")), None):
            raise UserError(
                f"expected prompts whose metadata say under `scene` what is meant, for the oracle, got {unknown!r} without: leave the "
                "oracle out, or use prompts.training=scenes-users"
            )
        return [(str(prompt.metadata["scene"]), True) for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    written = open_writer(name).rewrites(texts, temperature=0)
    return [(one.text or text, one.ended) for one, text in zip(written, texts, strict=True)]
