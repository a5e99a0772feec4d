"""A cluster that is to be joined and is not there, or is small."""

from __future__ import annotations

import logging

import pytest
import ray

from raysuite.cluster import launch
from raysuite.config import Cluster
from raysuite.errors import UserError


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_nobody_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"expected a Ray cluster at RAY_ADDRESS={address}, nobody answered"):
        launch.connect()


def test_what_a_cluster_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise ConnectionError("the token is wrong")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, could not: the token is wrong; check its address and token"):
        launch.connect()


def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with caplog.at_level(logging.WARNING):
        launch.check_resources(Cluster(actors=3), workers=1)
        assert not caplog.messages
        launch.check_resources(Cluster(actors=8), workers=1)
    (message,) = caplog.messages
    assert "the run wants 9 CPUs, the cluster at head:6379 has 4" in message
