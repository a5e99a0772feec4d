"""Models that read texts and pictures and answer with a text: over HTTP as OpenAI's chat completions, or of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image

from raysuite.errors import UserError
from raysuite.rewards import endpoints
from raysuite.rewards.endpoints import Part, Refused
from raysuite.rewards.network import load, network_of

KEY = "OPENAI_API_KEY"
"""The environment variable with a server's key, which is sent where it is set, and never written down."""
UNANSWERED = frozenset({400, 413, 415, 422, 451})
"""Statuses that may be about one question: another may be answered."""
IN_A_ROW = 8
"""Questions that may not be refused one after the other: they have in common what the server refuses."""
SHARE, FEW = 0.1, 50
"""Of questions that may be refused, counted as a share of at least so many."""
REPLY_TOKENS = 256
OTHERWISE = "name the hub id or directory of a model that reads pictures, with its processor"


class Unanswered(UserError):
    """A question was refused, as others may not be."""


class Chat(Protocol):
    """One question, one answer; nothing is remembered."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers, for the record."""

    def __call__(self, parts: Sequence[Part]) -> str:
        """The answer to texts and pictures in this order.

        Raises:
            Unanswered: this question was refused.
        """


class HttpChat:
    """A server that speaks OpenAI's chat completions: that of OpenAI, of Gemini, vLLM, SGLang, Ollama and others.

    Args:
        url: up to and without `/chat/completions`, such as http://127.0.0.1:8000/v1.
        model: as the server calls it.
        fields: of a request besides, or None to leave one of ours out, such as {"max_tokens": None, "max_completion_tokens": 256}.
        seconds: that one question may take.
        retries: times that a question is repeated, as of `rewards.endpoints.asked`.

    Raises:
        UserError: it is no URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        fields: Mapping[str, Any] | None = None,
        seconds: float = 120.0,
        retries: int = 5,
    ) -> None:
        self.url, self.model, self.fields = url.rstrip("/"), model, dict(fields or {})
        self._asked, self._refused, self._in_a_row = 0, 0, 0
        self._chat = endpoints.Chat(
            url,
            model,
            "the model that reads pictures",
            key=KEY,
            needed=False,
            tokens=REPLY_TOKENS,
            fields=self.fields,
            seconds=seconds,
            retries=retries,
        )

    def settings(self) -> dict[str, Any]:
        """Where it is, which, and what requests have besides."""
        return {
            "kind": "http",
            "url": self.url,
            "model": self.model,
            **({"fields": self.fields} if self.fields else {}),
        }

    def __call__(self, parts: Sequence[Part]) -> str:
        """The answer, at temperature 0.

        Raises:
            Unanswered: the server refused the question.
            UserError: it refuses too many, was not reached, refused the key, or answers in another form.
        """
        self._asked += 1
        try:
            answer = self._chat.ask(parts)
        except Refused as refused:
            if refused.status not in UNANSWERED:
                raise
            self._refused, self._in_a_row = self._refused + 1, self._in_a_row + 1
            if self._in_a_row >= IN_A_ROW or self._refused > SHARE * max(self._asked, FEW):
                raise UserError(
                    f"{refused}. It refused {self._refused} of {self._asked} questions; what a request needs besides goes in "
                    "--reader-fields or --judge-fields"
                ) from refused
            raise Unanswered(str(refused)) from refused
        self._in_a_row = 0
        return answer


class TransformersChat:
    """A model of transformers that reads pictures (`AutoModelForImageTextToText`), greedy. It was run on tiny random models only.

    Its weights are read when it is first asked.

    Args:
        model: hub id or directory, with its processor and chat template.
        precision: of its weights.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, model: str, *, precision: str = "bfloat16") -> None:
        from transformers import AutoConfig, AutoProcessor
        from transformers.utils import is_torchvision_available

        self.model, self.precision = model, precision
        kind = load(lambda: AutoConfig.from_pretrained(model), "a configuration", model, OTHERWISE).model_type
        if kind.startswith("qwen") and not is_torchvision_available():
            raise UserError(
                f"expected torchvision for {model}, whose processor uses it, found none: pip install torchvision, or ask a server "
                "(--reader-url, --judge-url)"
            )
        self._processor: Any = load(lambda: AutoProcessor.from_pretrained(model), "a processor", model, OTHERWISE)

    @cached_property
    def _network(self) -> Any:
        from transformers import AutoModelForImageTextToText

        network = network_of(
            AutoModelForImageTextToText,
            self.model,
            "a model that reads pictures",
            OTHERWISE,
            dtype=getattr(torch, self.precision),
        )
        return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def settings(self) -> dict[str, Any]:
        """Which it is."""
        return {"kind": "transformers", "model": self.model, "precision": self.precision}

    @torch.no_grad()
    def __call__(self, parts: Sequence[Part]) -> str:
        """The greedy answer."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": Image.fromarray(part)}
            for part in parts
        ]
        asked = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._network.device, dtype=self._network.dtype)
        said = self._network.generate(**asked, do_sample=False, max_new_tokens=REPLY_TOKENS)
        return str(self._processor.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
