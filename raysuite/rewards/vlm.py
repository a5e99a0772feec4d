"""A vision-language model as judge: a question about each picture, and a number or a choice for an answer.

The model answers a message of the picture and the question, behind an endpoint for chats (`rewards/endpoints.py`) or as a Qwen-VL of
transformers in this process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from raysuite.errors import UserError
from raysuite.rewards.endpoints import Chat, check_server, start
from raysuite.rewards.http import check_options
from raysuite.rewards.qwen import QwenVL

QUESTION = (
    "How well does this picture show what the following text says, from 0 (not at all) to 10 (exactly)? "
    "Answer with a number and nothing else.\n\n{prompt}"
)
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)")
OF_ENDPOINTS, OF_PROCESSES = {"key", "fields", "seconds", "retries", "at_once"}, {"device", "precision", "batch"}
"""Options that only one of the two ways reads."""
FEW = 50
"""Answers before which a share says little: invalid ones are counted as a share of at least so many."""


class Vlm:
    """The number that a model answers with, or the value of its choice; what is neither scores the least that an answer can.

    Such invalid answers are counted in each process that scores, and end the run beyond a share. Model, question and version make
    the reward: the scale is the question's, and nothing was checked against a published judge.

    Args:
        model: its name at the endpoint, or the hub id or directory of a Qwen-VL.
        question: what is asked, with {prompt} where the prompt goes.
        answers: the lowest and the highest number, or choices and their values, such as {"yes": 1, "no": 0}; case does not count.
        find: regular expression whose last match in an answer holds it, as its first group, for models that say more than asked.
        invalid: share of answers that may be neither.
        tokens: that an answer may have.
        url: of an endpoint, up to and without `/chat/completions`.
        key: name of the environment variable with the endpoint's key, in every process that scores; the key itself is kept nowhere.
        fields: of a request besides, or null to leave one of ours out, such as {"max_tokens": null, "max_completion_tokens": 64}.
        seconds: that a request may take.
        retries: as of the reward `http`.
        at_once: requests under way.
        device: of a model in this process.
        precision: of it.
        batch: pictures that go through it at once.
    """

    def __init__(
        self,
        model: str,
        *,
        question: str = QUESTION,
        answers: Sequence[float] | Mapping[str, float] = (0, 10),
        find: str | None = None,
        invalid: float = 0.05,
        tokens: int = 16,
        url: str | None = None,
        key: str | None = None,
        fields: Mapping[str, Any] | None = None,
        seconds: float = 60.0,
        retries: int = 3,
        at_once: int = 8,
        device: str = "cpu",
        precision: str = "bfloat16",
        batch: int = 8,
    ) -> None:
        if "{prompt}" not in question:
            raise UserError(f"expected a question with {{prompt}} in it for the reward vlm, got {question!r}")
        check_options(
            "vlm",
            (
                ("invalid of 0 to 1", invalid, float, lambda value: 0 <= value <= 1),
                ("tokens of at least 1", tokens, int, lambda value: value >= 1),
                ("seconds above 0", seconds, float, lambda value: 0 < value < float("inf")),
                ("retries of at least 0", retries, int, lambda value: value >= 0),
                ("at_once of at least 1", at_once, int, lambda value: value >= 1),
            ),
        )
        self.values, self.lowest, self.highest = _values(answers)
        try:
            self.find = re.compile(find) if find else None
        except re.error as error:
            raise UserError(
                f"expected a regular expression to find for the reward vlm, got {find!r}: {error}"
            ) from error
        if self.find and not self.find.groups:
            raise UserError(f"expected find to have a group, as in 'Score: (.+)', for the reward vlm, got {find!r}")
        self.model, self.question, self.invalid, self.tokens = model, question, invalid, tokens
        self.at_once, self.asked, self.refused = at_once, 0, 0
        self._local: QwenVL | None = None  # its weights are read when it is first asked
        self._options: dict[str, Any] = {"device": device, "precision": precision, "batch": batch}
        self._chat: Chat | None = None
        if url is None:
            QwenVL.check(model, precision=precision, batch=batch)
        else:
            self._chat = Chat(
                url,
                model,
                "the reward vlm",
                key=key,
                needed=True,
                tokens=tokens,
                fields=fields,
                seconds=seconds,
                retries=retries,
            )

    @classmethod
    def check(cls, model: str | None, **options: Any) -> None:
        """Refuse options that are wrong, an endpoint that accepts no connection, and a key that is not there."""
        if model is None:
            raise UserError("expected a model for the reward vlm: its name at the endpoint, or a Qwen-VL")
        here = options.get("url") is None
        for name in options.keys() & (OF_ENDPOINTS if here else OF_PROCESSES):
            raise UserError(
                f"expected no {name} for the reward vlm {'without' if here else 'with'} url, got {options[name]!r}: "
                + ("it is of an endpoint; name its url" if here else "it is of a model in this process; leave it out")
            )
        made = cls(model, **options)
        if made._chat is not None:
            made._chat.headers()
            check_server(made._chat.place, "start it, or mend url")

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Scores (N,), float64, of pictures, uint8 (N, H, W, 3), for their prompts, and what was answered.

        Raises:
            UserError: the endpoint failed, or too many answers were invalid.
        """
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        said = self._here(images, questions) if self._chat is None else self._there(self._chat, images, questions)
        values = [self.value(answer) for answer in said]
        asked, refused = self.asked + len(values), self.refused + values.count(None)
        if refused > self.invalid * max(asked, FEW):
            example = next(answer for answer, value in zip(said, values, strict=True) if value is None)
            raise UserError(
                f"expected {self._wanted()} from {self.model} for the reward vlm, got {start(example.encode())}: {refused} "
                f"of {asked} answers were invalid, and a share of {self.invalid:g} may be (of {FEW} at least). Mend the "
                "question, give the answer more tokens, or say where it is (find)"
            )
        self.asked, self.refused = asked, refused  # of calls that were answered: who asks again is not counted twice
        scores = np.array([self.lowest if value is None else value for value in values], dtype=np.float64)
        return scores, {"answers": said, "invalid": values.count(None)}

    def value(self, answer: str) -> float | None:
        """Of an answer; None where it is neither a number in range nor a choice."""
        if self.find:
            found = list(self.find.finditer(answer))
            answer = (found[-1].group(1) or "") if found else ""
        plain = answer.strip().rstrip(".").strip()
        if self.values is not None:
            return self.values.get(plain.casefold())
        if not NUMBER.fullmatch(plain):
            return None
        return number if self.lowest <= (number := float(plain)) <= self.highest else None

    @torch.no_grad()
    def _here(self, images: np.ndarray, questions: Sequence[str]) -> list[str]:
        if self._local is None:
            self._local = QwenVL(self.model, **self._options)
        return self._local.answers(images, questions, self.tokens)

    def _there(self, chat: Chat, images: np.ndarray, questions: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(lambda image, question: chat.ask([image, question]), images, questions))

    def _wanted(self) -> str:
        if self.values is not None:
            return f"one of {', '.join(self.values)}"
        return f"a number of {self.lowest:g} to {self.highest:g}"


def _values(answers: Any) -> tuple[dict[str, float] | None, float, float]:
    """Choices, if that is what they are, the lowest and the highest value."""

    def number(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    if isinstance(answers, Mapping):
        if len(answers) > 1 and all(isinstance(name, str) and number(value) for name, value in answers.items()):
            values = {name.strip().casefold(): float(value) for name, value in answers.items()}
            return values, min(values.values()), max(values.values())
    elif isinstance(answers, Sequence) and len(answers) == 2 and all(map(number, answers)) and answers[0] < answers[1]:
        return None, float(answers[0]), float(answers[1])
    raise UserError(
        'expected answers of two numbers, such as [0, 10], or of choices, such as {"yes": 1, "no": 0} (in quotes), for the reward '
        f"vlm, got {answers!r}"
    )
