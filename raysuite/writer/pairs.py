"""A set of preferences between rewrites, on disk.

pairs.json          what decides all that is drawn: who is preferred can be asked again with another margin
provenance.json     as of a run
candidates.jsonl    a row a candidate: number of the prompt, the text, whether it is the user's own, whether it ended within the tokens
                    of a rewrite, whether the image model would cut it
scores/<n>.parquet  of the pictures, a file for each batch that was drawn
pairs.jsonl         a row a pair, TRL's columns first: prompt, chosen, rejected; their mean scores, what the user typed, and metadata
summary.json        counts, costs, and by which margin; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import cut_prompts
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.files import inputs, write_json
from raysuite.stages.prompts import Prompt, dealt
from raysuite.stages.rewrites import digest_of
from raysuite.writer.candidates import Candidate, Which, candidates, preferred
from raysuite.writer.draw import Key, Scores, costs
from raysuite.writer.model import Writer
from raysuite.writer.rewriting import endless, too_long

FILE = "pairs.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is drawn, and what counts as a preference.

    Raises:
        UserError: a number is out of its range.
    """

    prompts: int = 128
    draws: int = 6
    """Rewrites of each prompt; the user's own text is one candidate more."""
    pictures: int = 4
    """Of each candidate."""
    margin: float = 1.0
    """In standard errors of the mean difference."""
    which: Which = "all"
    temperature: float = 1.0
    seed: int = 0
    budget: int | None = None
    """Network evaluations of the pictures: prompts whose candidates would exceed it are left out, and those after them."""

    def __post_init__(self) -> None:
        for name, value in (("prompts", self.prompts), ("draws", self.draws), ("pictures", self.pictures)):
            if value < 1:
                raise UserError(f"expected --{name} of at least 1, got {value}: correct it")
        if self.which not in ("all", "best"):
            raise UserError(f"expected --which of all or best, got {self.which!r}: name one of them")
        if not self.temperature > 0:
            raise UserError(
                f"expected --temperature above 0, got {self.temperature:g}: at 0 all rewrites of a prompt are one"
            )
        if self.pictures == 1 and self.margin > 0:
            raise UserError(
                f"expected --margin 0 with one picture, which has no standard error, got {self.margin:g}: set it, or draw more "
                "--pictures"
            )


def identity(config: RunConfig, plan: Mapping[str, Any], writer: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what is drawn for a set, or for an on-line training, whose settings `plan` has."""
    canonical = config.canonical()
    return {
        "writer": writer,
        "sha256": digest_of(writer),
        "drawn_by": dict(model),
        **{name: value for name, value in plan.items() if name not in ("margin", "which")},  # these only read scores
        "read": inputs(config),
        **{s: canonical[s] for s in ("prompts", "rewards", "rollouts")},
    }


def chosen_prompts(known: Sequence[Prompt], plan: Plan) -> list[Prompt]:
    """Training prompts, alike from every stratum.

    Raises:
        UserError: there are fewer.
    """
    check_enough(known, plan.prompts)
    return dealt(tuple(known), plan.prompts, numpy_generator(seed=plan.seed, stage=Stage.WRITER))


def check_enough(known: Sequence[Prompt], wanted: int) -> None:
    """Refuse to draw more prompts than there are.

    Raises:
        UserError: there are fewer.
    """
    if wanted > len(known):
        raise UserError(f"expected at most the {len(known)} training prompts, got --prompts {wanted}: lower it")


def drawn_candidates(
    directory: Path, writer: Writer, config: RunConfig, prompts: Sequence[Prompt], plan: Plan
) -> tuple[list[Candidate], dict[str, int]]:
    """The candidates of a set, made once and then read, and how many rewrites are left out: `unfinished` ones, which training would
    teach to stop where the tokens of a rewrite ran out, and those that the image model would `cut`.

    Raises:
        UserError: no rewrite ends, or is short enough for the image model, or the budget is too small for one prompt.
    """
    file = directory / "candidates.jsonl"
    begun = file.exists()
    lines = file.read_text().splitlines() if begun else ()
    rows = [json.loads(line) for line in lines] or _written(writer, config, prompts, plan)
    ended = [row for row in rows if row["ended"]]
    kept = [Candidate(row["prompt"], row["text"], row["own"]) for row in ended if not row["cut"]]
    drawn = within_budget(config, kept, plan)
    if not begun:  # nothing is left behind where the budget is refused
        with replacing(file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return drawn, {"unfinished": len(rows) - len(ended), "cut": len(ended) - len(kept)}


def _written(writer: Writer, config: RunConfig, prompts: Sequence[Prompt], plan: Plan) -> list[dict[str, Any]]:
    """Rows of candidates.jsonl."""
    texts, numbers = [prompt.text for prompt in prompts], [prompt.number for prompt in prompts]
    made = candidates(writer, texts, numbers, draws=plan.draws, seed=plan.seed, temperature=plan.temperature)
    rewritten = [one for one in made if not one.own]
    finished = [one.text for one in rewritten if one.ended]
    if rewritten and not finished:
        raise endless([one.text for one in rewritten])
    cut, tokens = cut_prompts(config.model, finished)
    if finished and len(cut) == len(finished):
        raise too_long(cut, tokens)
    long = {*cut}
    return [{**asdict(one), "cut": one.ended and not one.own and one.text in long} for one in made]


def within_budget(config: RunConfig, kept: Sequence[Candidate], plan: Plan) -> list[Candidate]:
    """The candidates of the first prompts, as many as the budget has pictures for.

    Raises:
        UserError: it has them for no prompt.
    """
    found: list[Candidate] = []
    for _, of_prompt in groupby(kept, lambda one: one.prompt):
        more = [*found, *of_prompt]
        spent = costs(config, len(more) * plan.pictures)["network_evaluations"]
        if plan.budget is not None and spent > plan.budget:
            break
        found = more
    if not found:
        raise UserError(
            f"expected --budget of at least {spent}, which the candidates of the first prompt take, got {plan.budget}: raise it"
        )
    return found


def write(
    directory: Path,
    writer: Writer,
    prompts: Sequence[Prompt],
    kept: Sequence[Candidate],
    scores: Mapping[Key, Scores],
    plan: Plan,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """Find the pairs, and leave them with a summary, which is returned.

    Raises:
        UserError: there is none.
    """
    rows, left_out, better_than_own = [], 0, 0
    within = {one.prompt for one in kept}
    drawn = [prompt for prompt in prompts if prompt.number in within]
    for prompt in drawn:
        mine = [one.text for one in kept if one.prompt == prompt.number]
        found, ties = preferred(
            np.stack([scores[prompt.number, text].total for text in mine]), margin=plan.margin, which=plan.which
        )
        means = [float(scores[prompt.number, text].total.mean()) for text in mine]
        left_out += ties
        better_than_own += any(mine[worse] == prompt.text for _, worse in found)
        rows += [
            {
                "prompt": writer.asked(prompt.text),
                "chosen": writer.completion(mine[better]),
                "rejected": writer.completion(mine[worse]),
                "chosen_score": means[better],
                "rejected_score": means[worse],
                "pictures": plan.pictures,
                "user": prompt.text,
                "metadata": dict(prompt.metadata),
            }
            for better, worse in found
        ]
    if not rows:
        raise UserError(
            f"expected pairs of rewrites that differ by {plan.margin:g} standard errors or more, found none among {len(kept)} "
            f"candidates of {len(drawn)} prompts: draw more --pictures, --draws or --prompts, or lower --margin"
        )
    with replacing(directory / FILE) as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found_summary = {
        "prompts": len(drawn),
        "candidates": len(kept),
        "pairs": len(rows),
        "left_out": left_out,
        "margin": plan.margin,
        "which": plan.which,
        "prompts_with_a_rewrite_above_the_own_text": better_than_own,
        **told,
    }
    write_json(directory / "summary.json", found_summary)
    return found_summary
