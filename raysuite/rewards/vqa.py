"""Questions about a picture: how probable a vision-language model finds the right answers."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raysuite.errors import UserError
from raysuite.rewards.qwen import QwenVL

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
"""What GenEval 2 asks."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Asked = tuple[str, str]
"""A question and its right answer."""


class Questions(ABC):
    """A score made of the probabilities of answers. Subclasses say what is asked of a picture, and what is made of it.

    The probability of an answer is that of its first token, summed over its spellings: in lower case, with a capital, as a figure,
    with and without a space before it; each token once.
    """

    def __init__(self, model: QwenVL) -> None:
        self._model = model

    @classmethod
    def check(cls, model: str | None, **options: Any) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        options = {name: value for name, value in options.items() if name in ("precision", "batch")}
        QwenVL.check(model or MODEL, **options)

    @abstractmethod
    def questions(self, prompt: str, row: Mapping[str, Any]) -> Sequence[Asked]:
        """Of a picture for a prompt with its metadata."""

    @abstractmethod
    def score(self, probabilities: Sequence[float]) -> float:
        """Of one picture, from the probabilities of the answers."""

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,), float64, of pictures, uint8 (N, H, W, 3), for their prompts."""
        asked_N = [self.questions(prompt, row) for prompt, row in zip(prompts, metadata, strict=True)]
        of = [index for index, asked in enumerate(asked_N) for _ in asked]
        flat = [pair for asked in asked_N for pair in asked]
        words = self._model.next_words(images[of], [question for question, _ in flat])
        likely = [float(words[row, self.first_tokens(answer)].double().sum()) for row, (_, answer) in enumerate(flat)]
        ends = np.cumsum([len(asked) for asked in asked_N]).tolist()
        return np.array(
            [self.score(likely[end - len(asked) : end]) for end, asked in zip(ends, asked_N, strict=True)],
            dtype=np.float64,
        )

    def first_tokens(self, answer: str) -> list[int]:
        """With which an answer may begin."""
        encode = self._model.read.tokenizer.encode
        return sorted({encode(text, add_special_tokens=False)[0] for text in spellings(answer)})


class VqaScore(Questions):
    """The probability of "yes" when a model is asked whether a picture shows its prompt: 0 to 1.

    Source: Lin et al., "Evaluating text-to-visual generation with image-to-text generation" (VQAScore), 2024, whose model was
    CLIP-FlanT5; the question is the one with which GenEval 2 asks Qwen3-VL. Scores of different models and questions do not compare.
    Checked on tiny random models against a computation that reads pictures and texts anew; not run on published weights.

    Args:
        model: hub id or directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        question: what is asked, with {prompt} where the prompt goes.
        answer: of which the probability is taken.
        device: as of `QwenVL`, like the others.
        precision: of the model.
        batch: pairs of picture and question that go through it at once.
    """

    QUESTION = 'Does this image show "{prompt}"? Answer the question with Yes or No.'

    def __init__(
        self,
        model: str = MODEL,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        device: str = "cpu",
        precision: str = "bfloat16",
        batch: int = 8,
    ) -> None:
        self.check(model, question=question, answer=answer)
        self._question, self._answer = question, answer
        super().__init__(QwenVL(model, device=device, precision=precision, batch=batch))

    @classmethod
    def check(cls, model: str | None, *, question: str = QUESTION, answer: str = "Yes", **options: Any) -> None:
        """Also refuse a question that is the same whatever the prompt, and an answer without a word."""
        if not answer.strip():
            raise UserError("expected an answer of at least a letter for the reward vqa, got none")
        if "{prompt}" not in question:
            raise UserError(f"expected a question with {{prompt}} in it for the reward vqa, got {question!r}")
        super().check(model, **options)

    def questions(self, prompt: str, row: Mapping[str, Any]) -> Sequence[Asked]:
        """One."""
        return [(self._question.replace("{prompt}", prompt), self._answer)]

    def score(self, probabilities: Sequence[float]) -> float:
        """The probability itself."""
        return probabilities[0]


class SoftTifa(Questions):
    """What GenEval 2 makes of the probabilities of the right answers to a row's `vqa_list`: 0 to 1; its tables print percent.

    Source: Kamath et al., "GenEval 2", 2025, and its evaluation script. Its geometric mean estimates whether a prompt is followed as
    a whole, its arithmetic mean how many of its parts are. Checked as `vqa`.

    Args:
        model: hub id or directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        mean: `geometric` or `arithmetic`.
        device: as of `QwenVL`, like the others.
        precision: of the model.
        batch: pairs of picture and question that go through it at once.
    """

    def __init__(
        self,
        model: str = MODEL,
        *,
        mean: str = "geometric",
        device: str = "cpu",
        precision: str = "bfloat16",
        batch: int = 8,
    ) -> None:
        self.check(model, mean=mean)
        self._geometric = mean == "geometric"
        super().__init__(QwenVL(model, device=device, precision=precision, batch=batch))

    @classmethod
    def check(cls, model: str | None, *, mean: str = "geometric", **options: Any) -> None:
        """Also refuse another mean."""
        if mean not in ("geometric", "arithmetic"):
            raise UserError(f"expected mean of geometric or arithmetic for the reward soft_tifa, got {mean!r}")
        super().check(model, **options)

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows without questions."""
        for prompt, row in zip(prompts, metadata, strict=True):
            asked(prompt, row)

    def questions(self, prompt: str, row: Mapping[str, Any]) -> Sequence[Asked]:
        """Those of the row."""
        return [(f"{question} Answer in one word.", answer) for question, answer in asked(prompt, row)]

    def score(self, probabilities: Sequence[float]) -> float:
        """Their mean."""
        if not self._geometric:
            return sum(probabilities) / len(probabilities)
        if min(probabilities) <= 0:
            return 0.0
        return math.exp(sum(math.log(p) for p in probabilities) / len(probabilities))


def spellings(answer: str) -> list[str]:
    """Of an answer, as it may begin.

    >>> spellings("Two")
    ['two', ' two', 'Two', ' Two', '2', ' 2']
    """
    plain = answer.strip().lower()
    words = [plain, plain.capitalize(), *([str(NUMBERS.index(plain))] if plain in NUMBERS else [])]
    return [space + word for word in words for space in ("", " ")]


def asked(prompt: str, row: Mapping[str, Any]) -> list[Asked]:
    """The questions of a row of GenEval 2.

    Raises:
        UserError: it has none.
    """
    pairs = row.get("vqa_list")
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs or not all(_pair(pair) for pair in pairs):
        raise UserError(
            f"expected vqa_list, pairs of question and answer, in the metadata of the prompt {prompt!r} for the reward soft_tifa, got "
            f"{json.dumps(pairs, default=str)[:200]}: its rows are those of GenEval 2's geneval2_data.jsonl"
        )
    return [(question, answer) for question, answer in pairs]


def _pair(pair: Any) -> bool:
    return (
        isinstance(pair, Sequence)
        and not isinstance(pair, str)
        and len(pair) == 2
        and all(isinstance(part, str) and part.strip() for part in pair)
    )
