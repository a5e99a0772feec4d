"""Any reward as a server of the protocol in http.py: `raysuite rewards serve`.

It is one process with the standard library's HTTP server, and not Ray Serve. A reward is one network on one device and takes
one batch at a time anyway; `ray[serve]` would bring packages for everybody that only this command needs, a Ray of its own on the
machine, and more ports than the one that was asked for. Several servers behind any balancer are replicas, and who has Ray
Serve may call `answered` in a deployment.

There is no password and no encryption: it listens on the loopback unless it is told otherwise, and then whoever reaches it may
use it.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from raysuite.errors import UserError
from raysuite.rewards import made, score

BODY_BYTES = 2**28
"""Of a request."""
PIXELS = 2**26
"""Of all pictures of a request: 64 of 1024 x 1024."""
WAITING = 64
"""Requests that are held at once, the one that is being scored included; the others come again. A process that draws has one."""
SILENCE_SECONDS = 60
"""How long a client may say nothing in the middle of a request."""


class Refusal(Exception):
    """A request that is not scored: a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Served:
    """What is served, and how it is made."""

    name: str
    model: str | None
    options: Mapping[str, Any]

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,), float64, checked."""
        return score(self.name, images, prompts, metadata, model=self.model, options=self.options)

    @property
    def whole_groups(self) -> bool:
        """Whether it ranks the pictures of a prompt. Makes it, which reads its weights."""
        return bool(getattr(made(self.name, model=self.model, options=self.options), "whole_groups", False))


def answered(served: Served, body: bytes) -> bytes:
    """The answer to a request's body.

    Raises:
        Refusal: the request is malformed (400) or asks too much (413), or the reward failed (500).
    """
    images, prompts, metadata, whole_groups = _read(body)
    if served.whole_groups and not whole_groups:
        raise Refusal(
            400,
            f"expected whole groups, which the reward {served.name} ranks: say whole_groups=true, and send all pictures of "
            "a prompt in one request",
        )
    try:
        scores = served(images, prompts, metadata)
    except UserError as error:
        raise Refusal(500, str(error)) from error
    return json.dumps({"scores": scores.tolist()}).encode()


def server(served: Served, host: str, port: int, waiting: int = WAITING) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers. Port 0 is any that is free. It holds so many requests that are `waiting`.

    Raises:
        UserError: it cannot listen there.
    """
    scoring, places = threading.Lock(), threading.BoundedSemaphore(waiting)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = SILENCE_SECONDS
        _rest = 0
        """Bytes of the request that have not been read."""

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            self._rest = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
            if not places.acquire(blocking=False):
                self._refuse(Refusal(503, f"{waiting} requests wait already: come again"))
                return
            try:
                body = self._body()
                with scoring:
                    answer = answered(served, body)
                self._send(200, answer)
            except Refusal as refusal:
                self._refuse(refusal)
            finally:
                places.release()

        def do_GET(self) -> None:
            self._refuse(Refusal(405, f"the reward {served.name} answers to POST"))

        def _body(self) -> bytes:
            if self.path.partition("?")[0] != "/":
                raise Refusal(404, f"expected the path /, got {self.path[:200]}")
            if self.headers.get_content_type() != "application/json":
                raise Refusal(415, f"expected Content-Type application/json, got {self.headers.get_content_type()}")
            if not self._rest:
                raise Refusal(411, "expected a Content-Length, which says how long the request is")
            if self._rest > BODY_BYTES:
                raise Refusal(413, f"expected at most {BODY_BYTES >> 20} MiB, got more: send fewer pictures at once")
            length, self._rest = self._rest, 0
            body = self.rfile.read(length)
            if len(body) < length:
                raise Refusal(400, f"expected {length} bytes, got {len(body)}")
            return body

        def _refuse(self, refusal: Refusal) -> None:
            self.close_connection = True
            self._send(refusal.status, json.dumps({"error": refusal.sentence}).encode())
            # a connection that is closed on what is still being sent is reset, and the sentence with it is lost
            while self._rest > 0 and (part := self.rfile.read1(min(self._rest, 2**16))):
                self._rest -= len(part)

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: a run asks thousands of times."""

    try:
        return _Quiet((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"expected to listen at {host}:{port}, could not ({error}): name another --port or --host"
        ) from error


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left before its answer came is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(served: Served, host: str, port: int, told: Callable[[str], None], *, waiting: int = WAITING) -> None:
    """Serve until the process is ended.

    Args:
        served: the reward; its weights are read before anything is promised.
        host: an address of this machine.
        port: 0 for any that is free.
        told: the URL, once it answers.
        waiting: requests that are held at once.

    Raises:
        UserError: the reward cannot be made, or the address not be had.
    """
    with server(served, host, port, waiting) as listening:
        made(served.name, model=served.model, options=served.options)
        told(f"http://{host}:{listening.server_address[1]}")
        listening.serve_forever()


def _read(body: bytes) -> tuple[np.ndarray, list[str], list[dict[str, Any]], bool]:
    """Pictures (N, H, W, 3), prompts, metadata, and whether groups are whole."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "expected JSON, got something else") from error
    if not isinstance(asked, dict) or not {"images", "prompts"} <= set(asked):
        raise Refusal(400, 'expected {"images": [...], "prompts": [...]}, got something else')
    if unknown := sorted(set(asked) - {"images", "prompts", "metadata", "whole_groups"}):
        raise Refusal(400, f"expected images, prompts, metadata and whole_groups, got {unknown[0][:100]!r} too")
    files, prompts = asked["images"], asked["prompts"]
    if not isinstance(files, list) or not files:
        raise Refusal(400, "expected a list of at least one picture in images")
    metadata = asked.get("metadata", [{}] * len(files))
    if not isinstance(prompts, list) or len(prompts) != len(files) or not all(isinstance(p, str) for p in prompts):
        raise Refusal(400, f"expected {len(files)} texts in prompts, as many as pictures")
    if not isinstance(metadata, list) or len(metadata) != len(files) or not all(isinstance(m, dict) for m in metadata):
        raise Refusal(400, f"expected {len(files)} objects in metadata, as many as pictures")
    whole_groups = asked.get("whole_groups", False)
    if not isinstance(whole_groups, bool):
        raise Refusal(400, "expected whole_groups of true or false")
    opened = [_opened(file, index) for index, file in enumerate(files)]
    if len(sizes := {image.size for image in opened}) > 1:
        raise Refusal(400, f"expected pictures of one size, got {len(sizes)} sizes")
    if (pixels := len(opened) * opened[0].width * opened[0].height) > PIXELS:
        raise Refusal(413, f"expected at most {PIXELS} pixels in all pictures, got {pixels}: send fewer at once")
    return np.stack([_decoded(image, index) for index, image in enumerate(opened)]), prompts, metadata, whole_groups


def _opened(file: Any, index: int) -> Image.Image:
    """A picture whose size is known, and whose pixels are not read yet."""
    what = f"expected an RGB picture as PNG in base64 at images[{index}]"
    try:
        png = base64.b64decode(file, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise Refusal(400, f"{what}, got something else") from error
    if png[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(png[16:20]) * int.from_bytes(png[20:24]) > PIXELS:
        raise Refusal(413, f"expected at most {PIXELS} pixels in all pictures, got more in images[{index}]")
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])
    except (OSError, SyntaxError, ValueError) as error:
        raise Refusal(400, f"{what}, got something else") from error
    if image.mode != "RGB":
        raise Refusal(400, f"{what}, got one of mode {image.mode}")
    return image


def _decoded(image: Image.Image, index: int) -> np.ndarray:
    try:
        return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise Refusal(400, f"expected a whole PNG file at images[{index}], got a damaged one") from error
