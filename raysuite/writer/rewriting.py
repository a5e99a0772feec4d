"""A run's prompts put into a writer's words, once, before it begins."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysuite import rewritten
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import cut_prompts
from raysuite.stages import rewrites
from raysuite.stages.prompts import Prompt, PromptSet, drawn_texts, load_prompts, said_of_cut
from raysuite.writer.candidates import ROUNDING, Candidate
from raysuite.writer.draw import Key, Scores, costs
from raysuite.writer.model import TOKENS, open_writer

LOG = logging.getLogger("raysuite")
Scored = Callable[[Mapping[int, Prompt], Sequence[Candidate]], Mapping[Key, Scores]]
"""Draws texts for prompts, by their numbers, and scores the pictures."""


def rewrite_once(config: RunConfig, directory: Path, scored: Scored) -> None:
    """Leave what a run's writer makes of the prompts that it draws, at temperature 0, in its directory, but for what is there already.
    A text of which the writer makes nothing stays as it is. With `prompts.best_of` so does one that is drawn better than its rewrite.

    Args:
        config: of the run.
        directory: of the run.
        scored: asked where pictures decide.

    Raises:
        UserError: the writer is not there, or all that it writes is too long for the image model.
    """
    if config.prompts.writer is None:
        return
    known, before = load_prompts(config.prompts), rewritten.rows(directory)
    there = {row["user"] for row in before}
    texts = [text for text in drawn_texts(config, known) if text not in there]
    if not texts:
        return
    written = open_writer(config.prompts.writer).rewrites(texts, temperature=0)
    found = {text: one.text or text for text, one in zip(texts, written, strict=True)}
    changed = {text: rewrite for text, rewrite in found.items() if rewrite != text}
    cut, tokens = cut_prompts(config.model, list(changed.values()))
    if changed and len(cut) == len(changed):
        raise too_long(cut, tokens)
    seen = _seen(config, known, changed, scored) if config.prompts.best_of and changed else {}
    rows = [{"user": text, "rewrite": rewrite, **seen.get(text, {})} for text, rewrite in found.items()]
    LOG.warning("NOTE: %s: %s", _told(config, rows, len(changed)), directory / rewritten.FILE)
    if cut:
        LOG.warning("%s", said_of_cut("rewrites", cut, len(changed), tokens))
    if unfinished := [one.text for one in written if not one.ended]:
        LOG.warning(
            "WARNING: %d of %d rewrites did not end within %d tokens and stop there, for example %r.",
            len(unfinished),
            len(written),
            TOKENS,
            unfinished[0][:300],
        )
    rewrites.write(directory, [*before, *rows])


def _seen(config: RunConfig, known: PromptSet, changed: Mapping[str, str], scored: Scored) -> dict[str, dict[str, Any]]:
    """What pictures say of rewrites, and which text is kept for it: the user's where it is drawn better.

    Equals keep the rewrite: a strict reward of few pictures is mostly 0 for both, and writers are right more often than not.
    """
    prompts = {prompt.number: prompt for prompt in known.all if prompt.text in changed}
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, prompt in prompts.items():
        numbers[prompt.text].append(number)
    texts = [
        Candidate(number, text, own=text == prompt.text)
        for number, prompt in prompts.items()
        for text in (prompt.text, changed[prompt.text])
    ]
    spent = costs(config, len(texts) * config.prompts.best_of)
    LOG.warning(
        "NOTE: choosing between %d prompts and their rewrites by %d pictures: %d network evaluations, which count in no budget.",
        len(prompts),
        spent["images"],
        spent["network_evaluations"],
    )
    scores = scored(prompts, texts)
    found = {}
    for text, rewrite in changed.items():
        typed, written = (np.concatenate([scores[n, one].total for n in numbers[text]]) for one in (text, rewrite))
        worse = typed.mean() > written.mean() + ROUNDING
        found[text] = {
            "rewrite": text if worse else rewrite,
            "written": rewrite,
            "rewards": {"typed": float(typed.mean()), "written": float(written.mean())},
            "pictures": len(typed),
            "network_evaluations": costs(config, len(typed) + len(written))["network_evaluations"],
        }
    return found


def _told(config: RunConfig, rows: Sequence[Mapping[str, Any]], changed: int) -> str:
    said = f"{config.prompts.writer} rewrote {changed} of {len(rows)} prompts"
    if not config.prompts.best_of:
        return said
    typed = sum("written" in row and row["rewrite"] == row["user"] for row in rows)
    return f"{said}; what was typed is drawn better, and stays, for {typed} of these"


def too_long(cut: list[str], tokens: int) -> UserError:
    """What is said of rewrites that are all longer than the image model reads."""
    return UserError(
        f"expected rewrites of at most {tokens} tokens, which the image model reads, got {len(cut)} that are all longer, such "
        f"as {cut[0][:100]!r}: take a writer that is briefer, or train this one on brief rewrites first (--loss sft)"
    )


def endless(unfinished: list[str]) -> UserError:
    """What is said of rewrites that all do not end within the tokens that a rewrite has."""
    return UserError(
        f"expected rewrites that end within {TOKENS} tokens, got {len(unfinished)} of which none does, such as "
        f"{unfinished[0][:100]!r}: take a writer that is briefer, or train this one on brief rewrites first (--loss sft)"
    )
