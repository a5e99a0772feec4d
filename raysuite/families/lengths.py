"""How much of a prompt a model's text encoders read."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from raysuite.config import Model
from raysuite.families.loading import UNREADABLE, named_class

UNLIMITED = 10**9
"""Tokenizers without a limit of their own state one far above this."""


def cut_prompts(model: Model, prompts: Sequence[str]) -> tuple[list[str], int]:
    """Prompts that no text encoder of the pipeline reads to their end, and the tokens that the one with the longest breath reads.

    What a template adds around a prompt is not counted. Nor do Qwen-Image, Krea 2 and Sana count it; Z-Image, FLUX.2 and Lumina 2 do,
    so that theirs is cut without a word where a prompt fits by less than its template. Models whose tokenizers cannot be had from a
    hub, or are of a kind that transformers cannot open by itself, are not looked at: that a model is missing is for others to say.

    Args:
        model: a directory, or a hub id, of which tokenizers are read from the hub or its cache.
        prompts: texts.
    """
    folder = _with_tokenizers(model.path)
    if folder is None:
        return [], 0
    local = model.model_copy(update={"path": str(folder)})
    call = inspect.signature(getattr(diffusers, named_class(local)).__call__).parameters
    longest = model.arguments.get("max_sequence_length")
    if longest is None and "max_sequence_length" in call:
        longest = call["max_sequence_length"].default
    tokenizers, left = [], list(prompts)
    for part in sorted(folder.glob("tokenizer*")):
        try:
            tokenizers.append(AutoTokenizer.from_pretrained(part))
        except (OSError, ValueError):
            return [], 0
    most = 0
    for tokenizer in tokenizers:
        limit = tokenizer.model_max_length
        if limit > UNLIMITED or "CLIP" not in type(tokenizer).__name__:
            limit = longest or limit
        most = max(most, limit)
        left = [text for text, ids in zip(left, _tokens(tokenizer, left), strict=True) if len(ids) > limit]
        if not left:
            break
    return left, most


def _with_tokenizers(path: str) -> Path | None:
    """A directory with what says how prompts are read; None where it cannot be had."""
    if Path(path).is_dir():
        return Path(path)
    try:
        folder = Path(snapshot_download(path, allow_patterns=["model_index.json", "tokenizer*/*"]))
    except UNREADABLE:
        return None
    return folder if any(folder.glob("tokenizer*/*")) else None  # a cache may have a part of a model


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    warner = logging.getLogger("transformers.tokenization_utils_base")
    level = warner.level
    warner.setLevel(logging.ERROR)  # it warns of long texts, which is our news
    try:
        return tokenizer(list(texts), truncation=False)["input_ids"] if texts else []
    finally:
        warner.setLevel(level)
