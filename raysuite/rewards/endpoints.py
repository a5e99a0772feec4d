"""Servers that answer a POST of JSON: asked with patience where that may help, refused with what they say where it may not.

Chats have the form that OpenAI gave them (vLLM, SGLang, llama.cpp and most vendors have it): a POST to `URL/chat/completions` with the
model's name and one message of texts and pictures, PNG files in base64.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image

from raysuite.errors import UserError

ANSWER_BYTES = 2**24
"""An answer that is longer is none that was asked for."""
FIRST_WAIT = 1.0
"""Seconds before the first repetition; each later one waits twice as long, up to `LONGEST_WAIT`."""
LONGEST_WAIT = 30.0
LOOK_SECONDS = 5.0
"""How long a server may take to accept a connection when a run is about to begin."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Part = str | np.ndarray
"""Of a message: a text, or a picture, uint8 (H, W, 3)."""


class Refused(UserError):
    """A server answered with a status that will not pass by itself."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class _Again(Exception):
    """A failure that may pass by itself."""


def parsed(url: Any, asker: str) -> SplitResult:
    """A server's URL.

    Args:
        url: as it was given.
        asker: who asks it, for the sentence.

    Raises:
        UserError: it is none, or has a password.
    """
    try:
        place = urlsplit(str(url))
        known = place.scheme in ("http", "https") and place.hostname and place.port != 0
        (place.hostname or "").encode("idna")
        known = known and all("!" <= letter <= "~" for letter in place.path + place.query)
    except ValueError:  # of a port that is no number, of brackets, of a name that no host has
        known = False
    if not known:
        raise UserError(f"expected a url such as http://127.0.0.1:8100 for {asker}, got {url!r}")
    if place.username is not None:
        raise UserError(f"expected a url without a password for {asker}: it would be written down beside the results")
    return place


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

    Args:
        place: the server's URL. Proxies that the environment names are not used.
        body: JSON.
        seconds: that one request may take.
        retries: times that it is repeated when the server is not reached in time, or answers with a status that may pass (408, 429,
            5xx), after 1, 2, 4, ... seconds, at most 30.
        headers: that go with it.

    Raises:
        Refused: the server answered with a status that will not pass.
        UserError: it was not reached, failed, or answered with too much.
    """
    for attempt in range(retries + 1):
        try:
            return _posted(place, body, seconds, headers)
        except _Again as failure:
            if attempt == retries:
                times = f", {attempt + 1} times in a row" if attempt else ""
                raise UserError(
                    f"expected an answer from {place.geturl()}, {failure}{times}: look at the server"
                ) from failure
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
    raise AssertionError("unreachable")


def _posted(place: SplitResult, body: bytes, seconds: float, headers: Mapping[str, str] | None) -> bytes:
    """The body of an answer of status 200, of one request."""
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
                        f"expected an answer from {place.geturl()}, got one of more than {ANSWER_BYTES >> 20} MiB: is this the "
                        "right URL?"
                    )
                if time.monotonic() > ends:
                    raise TimeoutError
            if response.length:  # what Content-Length promised and never came
                raise http.client.IncompleteRead(answer, response.length)
    except TimeoutError as error:
        raise _Again(f"got none within {seconds:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"could not ask for it ({_reason(error)})") from error
    finally:
        connection.close()
    if response.status != 200:
        said = f"got status {response.status}{_said(answer)}"
        if response.status in (408, 429) or response.status >= 500:
            raise _Again(said)
        raise Refused(
            f"expected an answer from {place.geturl()}, {said}: mend what is asked, its key, or the server",
            response.status,
        )
    return answer


class Chat:
    """A model behind an endpoint for chats. It remembers nothing.

    Args:
        url: of the endpoint, up to and without `/chat/completions`.
        model: as the endpoint calls it.
        asker: who asks, for sentences.
        key: name of the environment variable with the endpoint's key, or None. The key itself is kept nowhere.
        needed: whether the variable has to be set.
        tokens: that an answer may have.
        fields: of a request besides, or None to leave one of ours out.
        seconds: that one request may take.
        retries: as of `asked`.

    Raises:
        UserError: the url is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        asker: str,
        *,
        key: str | None,
        needed: bool,
        tokens: int,
        fields: Mapping[str, Any] | None = None,
        seconds: float,
        retries: int,
    ) -> None:
        self.place = parsed(f"{str(url).rstrip('/')}/chat/completions", asker)
        self.model, self.asker, self.key, self.needed = model, asker, key, needed
        self.tokens, self.fields, self.seconds, self.retries = tokens, dict(fields or {}), seconds, retries

    def ask(self, parts: Sequence[Part]) -> str:
        """What the model says to texts and pictures in this order, at temperature 0; empty where it says nothing.

        Raises:
            Refused: the endpoint answered with a status that will not pass.
            UserError: it was not reached, failed, answered in another form, or there is no key.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_content(part) for part in parts]}],
            "max_tokens": self.tokens,
            "temperature": 0,
            **self.fields,
        }
        told = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        answer = asked(self.place, told, self.seconds, self.retries, self.headers())
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError) as error:
            form = '{"choices": [{"message": {"content": ...}}]}'
            raise UserError(
                f"expected {form} from {self.place.geturl()}, got {start(answer)}: is it an endpoint for chats?"
            ) from error
        return content if isinstance(content, str) else ""

    def headers(self) -> dict[str, str]:
        """With the endpoint's key.

        Raises:
            UserError: its variable is not set and has to be, or it would be readable on the way.
        """
        secret = os.environ.get(self.key) if self.key else None
        if (
            (secret or (self.key and self.needed))
            and self.place.scheme == "http"
            and self.place.hostname not in LOOPBACK
        ):
            raise UserError(
                f"expected https:// in the url of {self.asker} where a key ({self.key}) is sent, got {self.place.geturl()}: it would "
                "be readable on the way"
            )
        if self.key and self.needed and not secret:
            raise UserError(
                f"expected a key in the environment variable {self.key} for {self.asker}, found none: set it"
            )
        return {"Authorization": f"Bearer {secret}"} if secret else {}


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(part)).decode()}"}}


def png(image: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a PNG file; quickly rather than as small as can be."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def start(answer: bytes, length: int = 80) -> str:
    """The first characters of an answer, for a sentence."""
    text = answer.decode("utf-8", "replace")
    return repr(text[:length]) + ("..." if len(text) > length else "")


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


def _port(place: SplitResult) -> int:
    return place.port or (443 if place.scheme == "https" else 80)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return str(reason) or type(error).__name__
