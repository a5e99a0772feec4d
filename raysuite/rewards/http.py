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
import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image

from raysuite.errors import UserError

ANSWER_BYTES = 2**24
"""An answer that is longer is no answer of this protocol."""
FIRST_WAIT = 1.0
"""Seconds before the first repetition; each later one waits twice as long, up to `LONGEST_WAIT`."""
LONGEST_WAIT = 30.0
LOOK_SECONDS = 5.0
"""How long a server may take to accept a connection when a run is about to begin."""


class _Again(Exception):
    """A failure that may pass by itself."""


class Http:
    """Scores that a server gives, in its own range.

    Args:
        url: of the server, `http://` or `https://`. Proxies that the environment names are not used.
        seconds: that one request may take.
        retries: times that a request is repeated when the server is not reached in time, or answers with a status that
            may pass (408, 429, 5xx), after 1, 2, 4, ... seconds, at most 30. A malformed answer is not asked for again.
        batch: pictures a request.
        whole_groups: whether the server's reward ranks the pictures of a prompt; a request then has all of one prompt, however many.

    Raises:
        UserError: an option is not as described.
    """

    def __init__(
        self, url: str, *, seconds: float = 60.0, retries: int = 3, batch: int = 16, whole_groups: bool = False
    ) -> None:
        self._place = parsed(url)
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


def check_server(place: SplitResult, otherwise: str) -> None:
    """Refuse a server that accepts no connection.

    Raises:
        UserError: it does not.
    """
    try:
        socket.create_connection((str(place.hostname), _port(place)), LOOK_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"expected a server at {place.geturl()}, could not connect ({_reason(error)}): {otherwise}"
        ) from error


def asked(
    place: SplitResult, body: bytes, seconds: float, retries: int, headers: Mapping[str, str] | None = None
) -> bytes:
    """The body of a server's answer; the request is repeated as long as that may help.

    Raises:
        UserError: the server was not reached, refused or failed.
    """
    for attempt in range(retries + 1):
        try:
            return post(place, body, seconds, headers)
        except _Again as failure:
            if attempt == retries:
                times = f", {attempt + 1} times in a row" if attempt else ""
                raise UserError(
                    f"expected scores from {place.geturl()}, {failure}{times}: look at the server"
                ) from failure
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
    raise AssertionError("unreachable")


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


def post(place: SplitResult, body: bytes, seconds: float, headers: Mapping[str, str] | None = None) -> bytes:
    """The body of a server's answer of status 200.

    Raises:
        _Again: it was not reached, did not answer in time, or with a status that may pass.
        UserError: it answered with another status, or with too much.
    """
    ends = time.monotonic() + seconds
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(str(place.hostname), _port(place), timeout=seconds)
    path = (place.path or "/") + (f"?{place.query}" if place.query else "")
    try:
        told = {"Content-Type": "application/json", "Connection": "close", **(headers or {})}
        connection.request("POST", path, body, told)
        with connection.getresponse() as response:
            answer = b""
            while part := response.read1(2**16):  # in parts: a time limit of sockets is one of silence
                answer += part
                if len(answer) > ANSWER_BYTES:
                    raise UserError(
                        f"expected scores from {place.geturl()}, got an answer of more than {ANSWER_BYTES >> 20} MiB: is this the "
                        "URL of a reward?"
                    )
                if time.monotonic() > ends:
                    raise TimeoutError
            if response.length:  # what Content-Length promised and never came
                raise http.client.IncompleteRead(answer, response.length)
    except TimeoutError as error:
        raise _Again(f"got no answer within {seconds:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"could not ask for them ({_reason(error)})") from error
    finally:
        connection.close()
    if response.status != 200:
        said = f"got status {response.status}{_said(answer)}"
        if response.status in (408, 429) or response.status >= 500:
            raise _Again(said)
        raise UserError(f"expected scores from {place.geturl()}, {said}: mend what is asked, or the server")
    return answer


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


def parsed(url: Any, reward: str = "http") -> SplitResult:
    try:
        place = urlsplit(str(url))
        known = place.scheme in ("http", "https") and place.hostname and place.port != 0
        (place.hostname or "").encode("idna")
        known = known and all("!" <= letter <= "~" for letter in place.path + place.query)
    except ValueError:  # of a port that is no number, of brackets, of a name that no host has
        known = False
    if not known:
        raise UserError(f"expected a url such as http://127.0.0.1:8100 for the reward {reward}, got {url!r}")
    if place.username is not None:
        raise UserError(
            f"expected a url without a password for the reward {reward}: it would be kept in the run directory"
        )
    return place


def _port(place: SplitResult) -> int:
    return place.port or (443 if place.scheme == "https" else 80)


def png(image: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a PNG file; quickly rather than as small as can be."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def data_url(image: np.ndarray) -> str:
    """The same in the form in which chats take pictures."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def _said(answer: bytes) -> str:
    """What the body of a failure says, if it says anything."""
    try:
        error = json.loads(answer)["error"]
        error = error["message"] if isinstance(error, dict) else error  # as endpoints for chats say it
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        error = None
    if isinstance(error, str) and error:
        return f" ({error[:500]})"
    return f" ({start(answer)})" if answer.strip() else ""


def start(answer: bytes, length: int = 80) -> str:
    text = answer.decode("utf-8", "replace")
    return repr(text[:length]) + ("..." if len(text) > length else "")


def _reason(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return str(reason) or type(error).__name__
