"""A run's prompts put into a writer's words, once, before it begins."""

from __future__ import annotations

import logging
from pathlib import Path

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import cut_prompts
from raysuite.stages import rewrites
from raysuite.stages.prompts import TYPED, drawn_texts, load_prompts, said_of_cut
from raysuite.writer.model import open_writer


def rewrite_once(config: RunConfig, directory: Path) -> None:
    """Leave what a run's writer makes of the prompts that it draws, at temperature 0, in its directory, but for what is there already.
    A text of which the writer makes nothing stays as it is.

    Raises:
        UserError: the writer is not there, or all that it writes is too long for the image model.
    """
    if config.prompts.writer is None:
        return
    known, before = load_prompts(config.prompts), rewrites.read(directory)
    texts = [text for text in drawn_texts(config, known) if text not in before]
    if not texts:
        return
    if any(TYPED in prompt.metadata for prompt in known.all):
        raise UserError(
            f"expected no {TYPED} in the metadata of prompts with prompts.writer, where it is what users typed: rename that column"
        )
    written = open_writer(config.prompts.writer).rewrites(texts, temperature=0)
    found = {text: one.text or text for text, one in zip(texts, written, strict=True)}
    changed = [rewrite for text, rewrite in found.items() if rewrite != text]
    cut, tokens = cut_prompts(config.model, changed)
    if changed and len(cut) == len(changed):
        raise too_long(cut, tokens)
    log = logging.getLogger("raysuite")
    log.warning(
        "NOTE: %s rewrote %d of %d prompts: %s",
        config.prompts.writer,
        len(changed),
        len(found),
        directory / rewrites.FILE,
    )
    if cut:
        log.warning("%s", said_of_cut("rewrites", cut, len(changed), tokens))
    rewrites.write(directory, before | found)


def too_long(cut: list[str], tokens: int) -> UserError:
    """What is said of rewrites that are all longer than the image model reads."""
    return UserError(
        f"expected rewrites of at most {tokens} tokens, which the image model reads, got {len(cut)} that are all longer, such "
        f"as {cut[0][:100]!r}: take a writer that is briefer, or train this one on brief rewrites first (--loss sft)"
    )
