"""The reward of a server: what is asked, what is made of every kind of answer, and how often it is asked again."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards import endpoints as asking, score
from raysuite.rewards.http import Http
from tests.processes import free_port

PROMPTS = ["a", "a", "b", "b", "b"]
METADATA = [{"n": 1}, {"n": 1}, {"é": [2.5]}, {"é": [2.5]}, {"é": [2.5]}]


def pictures(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)


Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def means(asked: dict[str, Any]) -> tuple[int, bytes]:
    """A good answer: the mean of each picture."""
    found = [float(np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))).mean()) for file in asked["images"]]
    return 200, json.dumps({"scores": found}).encode()


def says(status: int, body: str | bytes) -> Answer:
    return lambda asked: (status, body if isinstance(body, bytes) else body.encode())


@contextmanager
def served(*answers: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a real server that gives these answers in turn, the last one from then on; and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[min(len(asked), len(answers)) - 1](asked[-1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign] - clients leave early here
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between repetitions, which are not waited."""
    waited: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", waited.append)
    return waited


def asked_of(url: str, images: np.ndarray | None = None, **options: Any) -> np.ndarray:
    images = pictures() if images is None else images
    return Http(url, **options)(images, PROMPTS[: len(images)], METADATA[: len(images)])


def test_the_server_sees_exact_pictures_prompts_and_metadata_in_batches_and_scores_come_in_order() -> None:
    with served(means) as (url, asked):
        options = {"url": url, "batch": 2}
        scores = score("http", pictures(), PROMPTS, METADATA, options=options)
    assert scores.tolist() == pictures().mean(axis=(1, 2, 3)).tolist()
    assert [len(request["images"]) for request in asked] == [2, 2, 1]
    assert [p for request in asked for p in request["prompts"]] == PROMPTS
    assert [m for request in asked for m in request["metadata"]] == METADATA
    assert not any(request["whole_groups"] for request in asked)


def test_whole_groups_are_one_request_each_whatever_the_batch() -> None:
    with served(means) as (url, asked):
        score("http", pictures(), PROMPTS, METADATA, options={"url": url, "batch": 1, "whole_groups": True})
    assert [request["prompts"] for request in asked] == [["a", "a"], ["b", "b", "b"]]
    assert all(request["whole_groups"] for request in asked)


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        ("<html>", "got what is not JSON: '<html>'"),
        (b"\xff\xfe", "got what is not JSON"),
        ("[" * 100_000, "got what is not JSON"),
        ("[1, 2]", r"got '\[1, 2\]'"),
        ('{"score": [1, 2]}', "got '{"),
        ('{"scores": 1}', "got '{"),
        ('{"scores": [1]}', "got 1: one for each picture"),
        ('{"scores": [1, 2, 3]}', "got 3: one for each picture"),
        ('{"scores": [1, "2"]}', "as number 2: all must be finite"),
        ('{"scores": [1, null]}', "got 'null' as number 2"),
        ('{"scores": [true, 1]}', "got 'true' as number 1"),
        ('{"scores": [1, NaN]}', "got 'NaN' as number 2"),
        ('{"scores": [-1e999, 1]}', "as number 1"),
        (f'{{"scores": [1, {10**400}]}}', "as number 2"),
        ('{"scores": [[1], [2]]}', "as number 1"),
        (b" " * (2**24 + 1), "got one of more than 16 MiB"),
    ],
)
def test_a_malformed_answer_is_a_sentence_and_is_not_asked_for_again(
    body: str | bytes, mentions: str, waits: list[float]
) -> None:
    with served(says(200, body)) as (url, asked), pytest.raises(UserError, match=mentions) as raised:
        asked_of(url, pictures(2))
    assert url in str(raised.value) and len(str(raised.value)) < 400
    assert len(asked) == 1 and not waits


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_asked_again_after_longer_and_longer_waits(status: int, waits: list[float]) -> None:
    with served(*[says(status, "busy")] * 3, means) as (url, asked):
        assert asked_of(url).tolist() == pictures().mean(axis=(1, 2, 3)).tolist()
    assert len(asked) == 4 and all(request == asked[0] for request in asked)
    assert waits == [1.0, 2.0, 4.0]


def test_no_wait_is_longer_than_half_a_minute(waits: list[float]) -> None:
    with served(says(500, "")) as (url, _), pytest.raises(UserError, match="got status 500, 8 times in a row"):
        asked_of(url, retries=7)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("status", "body", "mentions"),
    [
        (400, '{"error": "expected one size"}', r"got status 400 \(expected one size\)"),
        (404, "not here", r"got status 404 \('not here'\)"),
        (401, "", "got status 401: mend"),
        (302, "", "got status 302"),
        (204, "", "got status 204"),
        (413, '{"error": 5}', "got status 413"),
    ],
)
def test_a_refusal_is_told_with_what_the_server_says_and_is_not_asked_again(
    status: int, body: str, mentions: str, waits: list[float]
) -> None:
    with served(says(status, body)) as (url, asked), pytest.raises(UserError, match=mentions):
        asked_of(url)
    assert len(asked) == 1 and not waits


def test_a_server_that_is_too_slow_is_asked_again(waits: list[float]) -> None:
    """Half a second of silence is too long however slow the machine is; the second answer has all the time it needs."""
    released = threading.Event()

    def slow(asked: dict[str, Any]) -> tuple[int, bytes]:
        released.wait(60)
        return means(asked)

    with served(slow) as (url, asked):
        try:
            with pytest.raises(UserError, match=r"got none within 0\.5 seconds, 2 times in a row"):
                asked_of(url, seconds=0.5, retries=1)
        finally:
            released.set()
    assert len(asked) == 2 and waits == [1.0]


def test_an_answer_that_trickles_in_is_too_slow_as_a_whole(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    clock = iter(range(0, 10_000, 40))  # every look at it is 40 seconds later: no part is late, the whole is
    monkeypatch.setattr(asking.time, "monotonic", lambda: next(clock))
    with served(means) as (url, _), pytest.raises(UserError, match="got none within 30 seconds"):
        asked_of(url, seconds=30, retries=0)


def test_an_answer_that_breaks_off_is_asked_for_again(waits: list[float]) -> None:
    """The first answer promises more than comes."""
    asked = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal asked
            asked += 1
            _, body = means(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (1 if asked == 1 else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            scores = asked_of(f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()
    assert asked == 2 and scores.tolist() == pictures().mean(axis=(1, 2, 3)).tolist()


def test_nobody_listening_is_a_sentence_before_a_run_and_in_it(waits: list[float]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=r"could not connect \(Connection refused\): start it"):
        rewards.check("http", options={"url": url})
    with pytest.raises(UserError, match=r"could not ask for it \(Connection refused\), 4 times in a row"):
        asked_of(url)
    assert waits == [1.0, 2.0, 4.0]


def test_a_server_that_accepts_is_enough_before_a_run() -> None:
    with served(means) as (url, asked):
        rewards.check("http", options={"url": url})
    assert not asked


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({}, "missing a required argument: 'url'"),
        ({"url": "127.0.0.1:8100"}, "expected a url such as"),
        ({"url": "ftp://host"}, "expected a url such as"),
        ({"url": "http://"}, "expected a url such as"),
        ({"url": "http://host:port"}, "expected a url such as"),
        ({"url": "http://host:0"}, "expected a url such as"),
        ({"url": "http://a..b"}, "expected a url such as"),
        ({"url": "http://[::1"}, "expected a url such as"),
        ({"url": "http://host/a b"}, "expected a url such as"),
        ({"url": 8100}, "expected a url such as"),
        ({"url": "http://me:secret@host"}, "without a password"),
        ({"url": "http://host", "batch": 0}, "expected batch of at least 1 for the reward http, got 0"),
        ({"url": "http://host", "batch": True}, "expected batch"),
        ({"url": "http://host", "batch": 1.5}, "expected batch"),
        ({"url": "http://host", "retries": -1}, "expected retries of at least 0"),
        ({"url": "http://host", "seconds": 0}, "expected seconds above 0"),
        ({"url": "http://host", "seconds": float("inf")}, "expected seconds above 0"),
        ({"url": "http://host", "seconds": "5"}, "expected seconds above 0"),
        ({"url": "http://host", "whole_groups": "no"}, "expected whole_groups of true or false"),
    ],
)
def test_options_are_looked_at_before_anything_is_asked(options: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions) as raised:
        rewards.check("http", options=options)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), object(), b"bytes"])
def test_metadata_that_json_cannot_hold_is_a_sentence(value: object) -> None:
    with served(means) as (url, asked), pytest.raises(UserError, match="expected metadata that JSON can hold"):
        Http(url)(pictures(1), ["a"], [{"value": value}])
    assert not asked
