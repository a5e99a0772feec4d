"""Models that read texts and pictures and answer with a text: over HTTP as OpenAI's chat completions, or of transformers."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from raysuite.errors import UserError
from raysuite.rewards.http import data_url
from raysuite.rewards.network import load

KEY = "OPENAI_API_KEY"
"""The environment variable with a server's key, which is sent and never written down."""
REFUSED = frozenset({400, 413, 415, 422, 451})
"""Statuses that are about one question: another may be answered."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a question is repeated; each later wait is twice as long."""
REPLY_TOKENS = 256

Part = str | np.ndarray
"""A text, or a picture, uint8 (H, W, 3)."""


class Chat(Protocol):
    """One question, one answer; nothing is remembered."""

    def settings(self) -> dict[str, Any]:
        """What decides its answers, for the record."""

    def __call__(self, parts: Sequence[Part]) -> str:
        """The answer to texts and pictures in this order; an empty one where the model refuses."""


class HttpChat:
    """A server that speaks OpenAI's chat completions: that of OpenAI, of Gemini, vLLM, SGLang, Ollama and others.

    Args:
        url: up to and without `/chat/completions`, such as http://127.0.0.1:8000/v1.
        model: as the server calls it.
        seconds: that one question may take.
        retries: times that a question is repeated when the server is not reached, or answers with 408, 429 or 5xx.

    Raises:
        UserError: it is no URL.
    """

    def __init__(self, url: str, model: str, *, seconds: float = 120.0, retries: int = 5) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(f"expected a url such as http://127.0.0.1:8000/v1, got {url!r}")
        self.url, self.model, self.seconds, self.retries = url.rstrip("/"), model, seconds, retries

    def settings(self) -> dict[str, Any]:
        """Where it is, and which."""
        return {"kind": "http", "url": self.url, "model": self.model}

    def __call__(self, parts: Sequence[Part]) -> str:
        """The answer, sampled at temperature 0.

        Raises:
            UserError: the server was not reached, refused the key, or answers in another form.
        """
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_content(part) for part in parts]}],
            "temperature": 0,
            "max_tokens": REPLY_TOKENS,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(asked).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.seconds) as response:
                    return self._said(response.read())
            except urllib.error.HTTPError as error:
                if error.code in REFUSED:
                    return ""
                failure = f"it answered with status {error.code}"
                if error.code not in (408, 429) and error.code < 500:
                    raise UserError(
                        f"expected an answer from {self.url}, {failure}: look at the key ({KEY}) and the model"
                    ) from None
            except OSError as error:
                failure = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
        raise UserError(
            f"expected an answer from {self.url}, asked {self.retries + 1} times ({failure}): look at the server, and give the same "
            "command again"
        )

    def _said(self, answer: bytes) -> str:
        try:
            return str(json.loads(answer)["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"expected an answer in the form of chat completions from {self.url}, got {answer[:80]!r}: is this the right url?"
            ) from error


class TransformersChat:
    """A model of transformers that reads pictures (`AutoModelForImageTextToText`), greedy. It was run on tiny random models only.

    Args:
        model: hub id or directory, with its processor and chat template.
        precision: of its weights.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, model: str, *, precision: str = "bfloat16") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model, self.precision = model, precision
        otherwise = "name the hub id or directory of a model that reads pictures, with its processor"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor: Any = load(lambda: AutoProcessor.from_pretrained(model), "a processor", model, otherwise)
        self._network: Any = load(
            lambda: AutoModelForImageTextToText.from_pretrained(
                model, dtype=getattr(torch, precision), use_safetensors=True
            ),
            "a model that reads pictures",
            model,
            otherwise,
        )
        self._network.to(device).eval()

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


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": data_url(part)}}
