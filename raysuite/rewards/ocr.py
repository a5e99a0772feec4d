"""Whether a picture says what its prompt wants written in it, as optical character recognition reads it."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysuite.errors import UserError

QUOTED = re.compile('"([^"]*)"|“([^”]*)”')
KEYS = ("target", "text")
"""Of metadata that say what is to be written, the first that is there."""


class Ocr:
    """1 - edit distance / length of the wanted text, at least 0: 1 where exactly that is read, and nothing else.

    Case and spaces do not count. The wanted text is `target` or `text` of the prompt's metadata, otherwise what the prompt has
    in double quotes, all quotations together. Liu et al. (Flow-GRPO), 2025, train on such a score with another reader, and their
    code gives 1 wherever the text is among what is read; scores of different readers do not compare.

    Args:
        threads: that a call may use.

    Raises:
        UserError: the extra is not installed.
    """

    def __init__(self, *, threads: int = 1) -> None:
        self.check(None, threads=threads)
        from rapidocr import RapidOCR

        self._reader: Any = RapidOCR(
            params={
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    @classmethod
    def check(cls, model: str | None, *, threads: int = 1) -> None:
        """Refuse to go on without the packages that read, and options that make no sense."""
        if type(threads) is not int or threads < 1:
            raise UserError(f"expected threads of at least 1 for the reward ocr, got {threads!r}")
        for package in ("rapidocr", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"expected the package {package} for the reward ocr, found none: pip install 'raysuite[ocr]'"
                )

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse prompts that want nothing written."""
        for prompt, row in zip(prompts, metadata, strict=True):
            wanted(prompt, row)

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,) in [0, 1] of pictures, uint8 (N, H, W, 3), for their prompts."""
        return np.array(
            [
                closeness(self.read(image), wanted(prompt, row))
                for image, prompt, row in zip(images, prompts, metadata, strict=True)
            ]
        )

    def read(self, image: np.ndarray) -> str:
        """All text in a picture, uint8 (H, W, 3), line by line from the top; empty where there is none."""
        found = self._reader(np.ascontiguousarray(image[:, :, ::-1]))  # it takes blue first
        return " ".join(found.txts or ())


def wanted(prompt: str, metadata: Mapping[str, Any]) -> str:
    """What is to be written in a picture.

    Raises:
        UserError: neither the metadata nor the prompt say it.
    """
    said = next((metadata[key] for key in KEYS if metadata.get(key) is not None), None)
    text = " ".join(straight or curly for straight, curly in QUOTED.findall(prompt)) if said is None else said
    if not isinstance(text, str) or not _plain(text):
        raise UserError(
            f"expected every prompt to say what the reward ocr shall read, in double quotes or as {KEYS[0]!r} in its metadata, found "
            f"none for {prompt!r}: add it"
        )
    return text


def closeness(read: str, target: str) -> float:
    """1 - edit distance / length of the target, at least 0; without case and spaces.

    >>> closeness("Open  LATE", "open late"), closeness("oben", "open"), closeness("closed for good", "open")
    (1.0, 0.75, 0.0)
    """
    read, target = _plain(read), _plain(target)
    return max(0.0, 1 - edits(read, target) / len(target))


def edits(a: str, b: str) -> int:
    """Letters to insert, delete or replace so that one text becomes the other (Levenshtein's distance).

    >>> edits("kitten", "sitting"), edits("", "abc"), edits("ab", "ba")
    (3, 3, 2)
    """
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        above, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (letter != other)))
    return row[-1]


def _plain(text: str) -> str:
    """Without case and spaces; letters that look alike in another width are alike."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
