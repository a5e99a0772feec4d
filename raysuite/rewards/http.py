"""A reward that a server computes, asked over a small protocol of JSON and PNG. `raysuite rewards serve` is such a server.

The request is a POST of `application/json`, at the server's URL:

    {"images": ["iVBORw0KGgo...", ...], "prompts": ["a red circle", ...], "metadata": [{}, ...], "whole_groups": false}

`images` are PNG files in base64, in RGB, 8 bits a channel and all of one size; `prompts` and `metadata` are as many as they.
`whole_groups` promises that the request has all pictures of each of its prompts. The answer has status 200 and as many
numbers, in order, higher is better:

    {"scores": [0.25, ...]}

Any other status is a failure, and its body may say why: `{"error": "a sentence"}`. Nothing is pickled in either direction:
who unpickles what came over a network executes it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.rewards.endpoints import asked, check_server, parsed, png, start


class Http:
    """Scores that a server gives, in its own range.

    Args:
        url: of the server, `http://` or `https://`. Proxies that the environment names are not used.
        seconds: that one request may take.
        retries: times that a request is repeated when the server is not reached in time, or answers with a status that
            may pass (408, 429, 5xx), after 1, 2, 4, ... seconds, at most 30. A malformed answer is not asked for again here; the
            reward's own `retries` ask for the whole block.
        batch: pictures a request.
        whole_groups: whether the server's reward ranks the pictures of a prompt; a request then has all of one prompt, however many.

    Raises:
        UserError: an option is not as described.
    """

    def __init__(
        self, url: str, *, seconds: float = 60.0, retries: int = 3, batch: int = 16, whole_groups: bool = False
    ) -> None:
        self._place = parsed(url, "the reward http")
        given: Sequence[Given] = (
            ("seconds above 0", seconds, float, lambda value: 0 < value < float("inf")),
            ("retries of at least 0", retries, int, lambda value: value >= 0),
            ("batch of at least 1", batch, int, lambda value: value >= 1),
            ("whole_groups of true or false", whole_groups, bool, lambda value: True),
        )
        check_options("http", given)
        self.url, self.seconds, self.retries, self.batch, self.whole_groups = url, seconds, retries, batch, whole_groups

    @classmethod
    def check(cls, model: str | None, **options: Any) -> None:
        """Refuse options that are wrong, and a server that accepts no connection."""
        check_server(cls(**options)._place, "start it, for instance with `raysuite rewards serve`, or mend url")

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,), float64, of pictures, uint8 (N, H, W, 3), for their prompts.

        Raises:
            UserError: the server was not reached, refused or failed, or its answer is malformed.
        """
        size = len(images) if self.whole_groups else self.batch
        parts = [slice(first, first + size) for first in range(0, len(images), size)]
        return np.array([s for p in parts for s in self._asked(images[p], prompts[p], metadata[p])], dtype=np.float64)

    def _asked(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        body = request(images, prompts, metadata, whole_groups=self.whole_groups)
        return scores_of(asked(self._place, body, self.seconds, self.retries), len(images), self.url)


Given = tuple[str, Any, type, Callable[[Any], bool]]
"""What an option should be, in words; what it is; its type; and whether a value of that type will do."""


def check_options(reward: str, given: Sequence[Given]) -> None:
    """Refuse options that are not what they should be.

    Raises:
        UserError: one is not.
    """
    for wanted, value, kind, fits in given:
        known = type(value) is kind or (kind is float and type(value) is int)
        if not (known and fits(value)):
            raise UserError(f"expected {wanted} for the reward {reward}, got {value!r}")


def request(
    images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], *, whole_groups: bool
) -> bytes:
    """The body of a request.

    Raises:
        UserError: the metadata hold what JSON cannot.
    """
    asked = {
        "images": [base64.b64encode(png(image)).decode() for image in images],
        "prompts": list(prompts),
        "metadata": [dict(row) for row in metadata],
        "whole_groups": whole_groups,
    }
    try:
        return json.dumps(asked, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"expected metadata that JSON can hold for the reward http, got others: {error}") from error


def scores_of(answer: bytes, count: int, url: str) -> list[float]:
    """The numbers in a server's answer.

    Raises:
        UserError: it has none, another number of them, or what is no finite number.
    """
    form = f'expected {{"scores": [{count} numbers]}} from {url}'
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{form}, got what is not JSON: {start(answer)}") from error
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, list):
        raise UserError(f"{form}, got {start(answer)}")
    if len(scores) != count:
        raise UserError(f"{form}, got {len(scores)}: one for each picture is needed, in order")
    numbers = []
    for index, score in enumerate(scores):
        number = _number(score)
        if number is None:
            raise UserError(
                f"{form}, got {start(json.dumps(score).encode())} as number {index + 1}: all must be finite"
            )
        numbers.append(number)
    return numbers


def _number(score: Any) -> float | None:
    """A finite float; JSON's true and false, NaN and numbers beyond floats are none."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    try:
        number = float(score)
    except OverflowError:
        return None
    return number if np.isfinite(number) else None
