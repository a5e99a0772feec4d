"""A model as judge: an endpoint whose answers are known, a tiny Qwen-VL, and answers that are none."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import raysuite.rewards.endpoints as asking
from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards.qwen import QwenVL
from raysuite.rewards.vlm import Vlm
from tests.rewards import networks
from tests.rewards.test_networks import pictures


class Endpoint:
    """Of the form of OpenAI's chats. It answers with the mean grey of a picture in tenths, unless it is told otherwise."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.failures = 0
        self.answer: str | bytes | None = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append({**request, "path": self.path})
                endpoint.headers.append(dict(self.headers))
                if endpoint.failures:
                    endpoint.failures -= 1
                    self.reply(503, b'{"error": {"message": "still loading"}}')
                elif isinstance(endpoint.answer, bytes):
                    self.reply(200, endpoint.answer)
                else:
                    self.reply(
                        200, json.dumps({"choices": [{"message": {"content": endpoint.said(request)}}]}).encode()
                    )

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def said(self, request: dict[str, Any]) -> str:
        if isinstance(self.answer, str):
            return self.answer
        url = request["messages"][0]["content"][0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        return f"{np.asarray(image).mean() / 25.5:.3f}"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", waited.append)
    return waited


def test_an_endpoint_is_asked_about_every_picture(endpoint: Endpoint) -> None:
    images = pictures(24, 32, 5)
    prompts = [f"prompt {index}, {{metadata}}" for index in range(5)]
    options = {"url": endpoint.url, "at_once": 3, "question": "Rate: {prompt}", "tokens": 5}
    scores = rewards.score("vlm", images, prompts, [{}] * 5, model="judge", options=options)
    assert scores == pytest.approx(images.reshape(5, -1).mean(1) / 25.5, abs=1e-3)
    assert sorted(r["messages"][0]["content"][1]["text"] for r in endpoint.requests) == [f"Rate: {p}" for p in prompts]
    request = endpoint.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert {name: request[name] for name in ("model", "max_tokens", "temperature")} == {
        "model": "judge",
        "max_tokens": 5,
        "temperature": 0,
    }


def test_an_endpoint_that_loads_is_asked_again(endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.failures = 2
    scores, said = Vlm("judge", url=endpoint.url)(pictures(8, 8, 1), ["a"], [{}])
    assert waits == [1, 2] and scores[0] == pytest.approx(float(said["answers"][0]))
    endpoint.failures = 9
    with pytest.raises(UserError, match=r"got status 503 \(still loading\), 2 times in a row"):
        Vlm("judge", url=endpoint.url, retries=1)(pictures(8, 8, 1), ["a"], [{}])


def test_fields_and_a_key_go_with_a_request(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"max_tokens": None, "max_completion_tokens": 64}
    judge = Vlm("judge", url=f"{endpoint.url}/", key="JUDGE_KEY", fields=fields)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="expected a key in the environment variable JUDGE_KEY"):
        judge(pictures(8, 8, 1), ["a"], [{}])
    monkeypatch.setenv("JUDGE_KEY", "a secret")
    judge(pictures(8, 8, 1), ["a"], [{}])
    assert endpoint.headers[0]["Authorization"] == "Bearer a secret"
    assert endpoint.requests[0]["max_completion_tokens"] == 64 and "max_tokens" not in endpoint.requests[0]


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"choices": []}', b"[]", b'{"choices": [{"message": 1}]}'])
def test_an_answer_of_another_form_is_told(endpoint: Endpoint, answer: bytes) -> None:
    endpoint.answer = answer
    with pytest.raises(UserError, match=r"expected .*choices.* from http.*: is it an endpoint for chats"):
        Vlm("judge", url=endpoint.url)(pictures(8, 8, 1), ["a"], [{}])


@pytest.mark.parametrize(
    ("options", "answer", "value"),
    [
        ({}, "7", 7),
        ({}, " 7.5.\n", 7.5),
        ({}, "10", 10),
        ({}, "11", None),
        ({}, "-1", None),
        ({}, "7/10", None),
        ({}, "seven", None),
        ({}, "nan", None),
        ({}, "", None),
        ({"answers": [-1, 1]}, "-0.25", -0.25),
        ({"answers": {"Yes": 1, "no": 0}}, "yes.", 1),
        ({"answers": {"Yes": 1, "no": 0}}, "NO", 0),
        ({"answers": {"Yes": 1, "no": 0}}, "maybe", None),
        ({"find": r"Score: ([\d.]+)"}, "Score: 1? No. Score: 8.", 8),
        ({"find": r"Score: ([\d.]+)"}, "8", None),
        ({"find": "Score(:)?", "answers": [0, 1]}, "Score", None),
    ],
)
def test_answers_by_hand(options: dict[str, Any], answer: str, value: float | None) -> None:
    assert Vlm("judge", url="http://127.0.0.1:9", **options).value(answer) == value


def test_invalid_answers_score_least_and_are_refused_beyond_a_share(endpoint: Endpoint) -> None:
    """Of 50 at least: at 4 percent two may be, and a third may not."""
    judge = Vlm("judge", url=endpoint.url, invalid=0.04, answers=[1, 5])
    image = pictures(8, 8, 1)
    endpoint.answer = "I cannot tell"
    for _ in range(2):
        scores, said = judge(image, ["a"], [{}])
        assert scores.tolist() == [1.0] and said == {"answers": ["I cannot tell"], "invalid": 1}
    endpoint.answer = "3"
    assert judge(image, ["a"], [{}])[0].tolist() == [3.0]
    endpoint.answer = "I cannot tell"
    with pytest.raises(
        UserError, match=r"a number of 1 to 5 from judge .* got 'I cannot tell': 3 of 4 answers .* 0\.04"
    ):
        judge(image, ["a"], [{}])
    generous = Vlm("judge", url=endpoint.url, invalid=1)
    assert rewards.score("vlm", np.repeat(image, 3, 0), ["a"] * 3, [{}] * 3, model="judge",
                         options={"url": endpoint.url, "invalid": 1}).tolist() == [0, 0, 0]  # fmt: skip
    assert generous(image, ["a"], [{}])[1]["invalid"] == 1


def test_a_model_here_is_asked_the_same(tmp_path: Path) -> None:
    model, images = str(networks.save_qwen(tmp_path)), pictures(56, 56, 2)
    judge = Vlm(model, question="{prompt}?", tokens=2, invalid=1)
    scores, said = judge(images, ["a", "bb"], [{}] * 2)
    assert said["answers"] == QwenVL(model).answers(images, ["a?", "bb?"], 2)
    assert scores.tolist() == [0 if judge.value(answer) is None else judge.value(answer) for answer in said["answers"]]


@pytest.mark.parametrize(
    ("model", "options", "mentions"),
    [
        (None, {}, "missing a required argument: 'model'"),
        ("judge/of/many", {}, "expected a directory at judge/of/many"),
        ("judge", {"url": "127.0.0.1"}, "expected a url such as"),
        ("judge", {"url": "http://127.0.0.1:9"}, "expected a server at http://127.0.0.1:9/chat/completions, could not"),
        ("judge", {"url": "http://me:secret@127.0.0.1"}, "without a password for the reward vlm"),
        ("judge", {"url": "http://example.com/v1", "key": "K"}, "expected https:// in the url"),
        ("judge", {"url": "http://127.0.0.1:9", "key": "NO_SUCH_KEY"}, "expected a key in the environment variable"),
        ("judge", {"question": "How good is it?"}, r"expected a question with \{prompt\}"),
        ("judge", {"answers": [1, 1]}, "expected answers of two numbers"),
        ("judge", {"answers": {"yes": 1}}, "expected answers of two numbers"),
        ("judge", {"answers": {True: 1, False: 0}}, "expected answers of two numbers"),
        ("judge", {"answers": "yes"}, "expected answers of two numbers"),
        ("judge", {"find": "("}, "expected a regular expression"),
        ("judge", {"find": "Score"}, "expected find to have a group"),
        ("judge", {"invalid": 2}, "expected invalid of 0 to 1"),
        ("judge", {"tokens": 0}, "expected tokens of at least 1"),
        ("judge", {"url": "http://127.0.0.1:9", "at_once": 0}, "expected at_once of at least 1"),
        ("gpt", {"key": "OPENAI_API_KEY"}, "expected no key for the reward vlm without url, got 'OPENAI_API_KEY'"),
        ("judge", {"url": "http://127.0.0.1:9", "batch": 2}, "expected no batch for the reward vlm with url, got 2"),
    ],
)
def test_what_does_not_fit_is_a_sentence_before_a_run(
    model: str | None, options: dict[str, Any], mentions: str
) -> None:
    with pytest.raises(UserError, match=mentions):
        rewards.check("vlm", model=model, options=options)


def test_an_endpoint_needs_no_device_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that take a device are given the one that is there, whether they compute on it or not."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    reward = rewards.made("vlm", model="judge", options={"url": "http://127.0.0.1:9"})
    assert isinstance(reward, Vlm)


class Second(Vlm):
    """A user's own, which takes whatever the other does."""

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model, **options)


def test_a_class_that_extends_it_may_pass_options_on() -> None:
    assert Second("judge", url="http://127.0.0.1:9", seconds=5.0).model == "judge"
