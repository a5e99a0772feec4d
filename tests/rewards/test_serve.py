"""A reward as a server: a real process scores as a direct call does, and what is said of requests that are malformed."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from raysuite.errors import UserError
from raysuite.rewards import score, serve as serving
from raysuite.rewards.http import Http, request
from raysuite.rewards.serve import Refusal, Served, answered, server

REDNESS = Served("redness", None, {})


def pictures(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)


def png(image: Image.Image | None = None) -> str:
    file = io.BytesIO()
    (image or Image.new("RGB", (4, 4))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def of_size(width: int, height: int) -> str:
    """A PNG that claims to be this large, and has no pixels."""
    file = base64.b64decode(png())
    header = file[12:16] + width.to_bytes(4) + height.to_bytes(4) + file[24:29]
    return base64.b64encode(file[:12] + header + zlib.crc32(header).to_bytes(4) + file[33:]).decode()


# rewards that are served


def rank(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Within a group, the place of each picture by its brightness."""
    return images.mean(axis=(1, 2, 3)).argsort().argsort()


rank.whole_groups = True  # type: ignore[attr-defined]


def broken(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    raise RuntimeError("no weights")


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        return [self.by * len(prompt) + row.get("n", 0) for prompt, row in zip(prompts, metadata, strict=True)]


@contextmanager
def listening(served: Served, waiting: int = serving.WAITING) -> Iterator[str]:
    """The URL of a server in a thread."""
    with server(served, "127.0.0.1", 0, waiting) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}"
        finally:
            found.shutdown()
            thread.join()


def test_a_served_reward_scores_as_a_direct_call_does() -> None:
    """A process of the command itself, found by the URL that it prints."""
    images, prompts, rows = pictures(), list("abcde"), [{}] * 5
    command = [sys.executable, "-m", "raysuite.cli", "rewards", "serve", "redness", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            url = re.fullmatch(r"serving redness at (http://127\.0\.0\.1:\d+)\n", line)
            assert url, line + process.stderr.read()
            scores = score("http", images, prompts, rows, options={"url": url[1], "batch": 2})
        finally:
            process.terminate()
        assert process.wait(60) == 143
    assert scores.tolist() == score("redness", images, prompts, rows).tolist()
    assert len(set(scores.tolist())) == 5


def test_options_prompts_and_metadata_reach_the_reward() -> None:
    with listening(Served("tests.rewards.test_serve:Scaled", None, {"by": 0.1})) as url:
        found = score("http", pictures(2), ["one", "three"], [{"n": 3}, {}], options={"url": url})
    assert found.tolist() == [0.1 * 3 + 3, 0.1 * 5]


def test_a_reward_that_ranks_is_served_to_those_who_send_whole_groups_only() -> None:
    images, prompts = pictures(), ["a", "a", "a", "b", "b"]
    with listening(Served("tests.rewards.test_serve:rank", None, {})) as url:
        options = {"url": url, "batch": 1, "whole_groups": True}
        found = score("http", images, prompts, [{}] * 5, options=options)
        assert sorted(found[:3]) == [0, 1, 2] and sorted(found[3:]) == [0, 1]
        assert found.tolist() == score("tests.rewards.test_serve:rank", images, prompts, [{}] * 5).tolist()
        with pytest.raises(UserError, match=r"got status 400 .expected whole groups.*say whole_groups=true"):
            Http(url)(images, prompts, [{}] * 5)


def test_a_reward_that_fails_is_a_failure_that_says_why_and_the_server_goes_on() -> None:
    with listening(Served("tests.rewards.test_serve:broken", None, {})) as url:
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"got status 500 .the reward .*:broken raised RuntimeError: no weights"
            ):
                Http(url, retries=0)(pictures(1), ["a"], [{}])


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"images": None}, "list of at least one picture"),
        ({"images": []}, "list of at least one picture"),
        ({"images": [png()]}, "expected 1 texts in prompts"),
        ({"images": [5, 5]}, r"RGB picture as PNG in base64 at images\[0\], got something else"),
        ({"images": [png(), "not base64!"]}, r"at images\[1\], got something else"),
        ({"images": [png(), "é"]}, r"at images\[1\], got something else"),
        ({"images": [png(), ""]}, r"at images\[1\], got something else"),
        ({"images": [png(), base64.b64encode(b"GIF89a" + bytes(50)).decode()]}, r"at images\[1\], got something else"),
        ({"images": [png(), png()[:64]]}, r"whole PNG file at images\[1\], got a damaged one"),
        ({"images": [png(), png(Image.new("L", (4, 4)))]}, r"images\[1\], got one of mode L"),
        ({"images": [png(), png(Image.new("RGBA", (4, 4)))]}, r"images\[1\], got one of mode RGBA"),
        ({"images": [png(), png(Image.new("RGB", (5, 4)))]}, "pictures of one size, got 2 sizes"),
        ({"prompts": ["a"]}, "expected 2 texts in prompts"),
        ({"prompts": ["a", 1]}, "expected 2 texts in prompts"),
        ({"prompts": "ab"}, "expected 2 texts in prompts"),
        ({"metadata": [{}]}, "expected 2 objects in metadata"),
        ({"metadata": [{}, []]}, "expected 2 objects in metadata"),
        ({"whole_groups": 1}, "whole_groups of true or false"),
        ({"image": []}, "'image' too"),
    ],
)
def test_a_malformed_request_is_refused_with_a_sentence(change: dict[str, Any], mentions: str) -> None:
    body = {"images": [png(), png()], "prompts": ["a", "b"], **change}
    with pytest.raises(Refusal, match=mentions) as refused:
        answered(REDNESS, json.dumps(body).encode())
    assert refused.value.status == 400 and len(refused.value.sentence) < 300


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b"5", b"{}", b'{"images": []}'])
def test_what_is_no_request_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="expected") as refused:
        answered(REDNESS, body)
    assert refused.value.status == 400


@pytest.mark.parametrize("images", [[of_size(2**14, 2**14)], [of_size(2**31, 2**31)], [of_size(2**13, 2**13 - 1)] * 2])
def test_pictures_that_are_too_large_are_refused_before_they_are_read(images: list[str]) -> None:
    with pytest.raises(Refusal, match="expected at most 67108864 pixels") as refused:
        answered(REDNESS, json.dumps({"images": images, "prompts": ["a"] * len(images)}).encode())
    assert refused.value.status == 413


def raw(url: str, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as response:
            return response.status, json.loads(response.read())["error"]
    finally:
        connection.close()


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "mentions"),
    [
        ("GET", "/", None, {}, 405, "answers to POST"),
        ("POST", "/other", b"{}", {**JSON, "Content-Length": "2"}, 404, "expected the path /, got /other"),
        ("POST", "/", b"{}", {"Content-Type": "text/plain", "Content-Length": "2"}, 415, "application/json"),
        ("POST", "/", None, JSON, 411, "Content-Length"),
        ("POST", "/", None, {**JSON, "Content-Length": "-1"}, 411, "Content-Length"),
        ("POST", "/", None, {**JSON, "Content-Length": "²"}, 411, "Content-Length"),
        ("POST", "/", b"no", {**JSON, "Content-Length": "2"}, 400, "expected JSON"),
    ],
)
def test_a_request_of_another_protocol_is_refused(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, mentions: str
) -> None:
    with listening(REDNESS) as url:
        found, said = raw(url, method, path, body, headers)
        assert found == status and mentions in said
        assert len(Http(url)(pictures(1), ["a"], [{}])) == 1  # it goes on


def test_a_request_that_is_too_long_is_refused_unread_and_the_sentence_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "BODY_BYTES", 2**20)
    images = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), dtype=np.uint8)
    assert len(request(images, ["a"], [{}], whole_groups=False)) > 2**21
    with listening(REDNESS) as url, pytest.raises(UserError, match=r"got status 413 .expected at most 1 MiB, got more"):
        Http(url, retries=0)(images, ["a"], [{}])


def test_more_requests_than_may_wait_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def held(*_: Any) -> np.ndarray:
        asked.set()
        assert go_on.wait(60)
        return np.ones(1)

    monkeypatch.setattr(sys.modules[__name__], "held", held, raising=False)
    with listening(Served(f"{__name__}:held", None, {}), waiting=1) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(Http(url), pictures(1), ["a"], [{}])
        assert asked.wait(60)
        with pytest.raises(UserError, match=r"got status 503 .*come again"):
            Http(url, retries=0)(pictures(1), ["a"], [{}])
        go_on.set()
        assert first.result().tolist() == [1.0]
        assert Http(url, retries=5)(pictures(1), ["a"], [{}]).tolist() == [1.0]  # its place is free again


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"expected to listen at 127.0.0.1:{port}, could not .*another --port"):
            server(REDNESS, "127.0.0.1", port)
