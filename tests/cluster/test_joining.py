"""A cluster that is to be joined and is not there, or is small."""

from __future__ import annotations

import logging

import pytest
import ray

from raysuite.cluster import placement, session
from raysuite.config import Cluster
from raysuite.errors import UserError


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_nobody_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"expected a Ray cluster at RAY_ADDRESS={address}, nobody answered"):
        session.connect()


def test_what_a_cluster_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise ConnectionError("the token is wrong")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, could not: the token is wrong; check its address and token"):
        session.connect()


@pytest.fixture
def small_cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """One that was joined, has 4 CPUs, 6 from the third look on, and keeps what it was asked for."""
    seen: dict[str, list] = {"looks": [], "asked": []}

    def resources() -> dict[str, float]:
        seen["looks"].append(0)
        return {"CPU": 4.0 if len(seen["looks"]) < 3 else 6.0}

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "cluster_resources", resources)
    monkeypatch.setattr(placement, "LOOKS_EVERY", 0.01)
    monkeypatch.setattr(placement, "request_resources", lambda **wanted: seen["asked"].append(wanted))
    return seen


def test_what_is_waited_for_is_said(small_cluster: dict[str, list], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session.check_resources(Cluster(actors=3), workers=1)
        assert not caplog.messages and not small_cluster["asked"]
        session.check_resources(Cluster(actors=5), workers=1)
    (message,) = caplog.messages
    assert "the run wants 6 CPUs where there are 4 of the cluster at head:6379" in message
    assert small_cluster["asked"] == [{"num_cpus": 6, "bundles": []}, {"num_cpus": 0}]


def test_waiting_for_a_cluster_ends(small_cluster: dict[str, list]) -> None:
    wanted = Cluster(actors=8, actor_gpus=0.25, patience=0.05)
    with pytest.raises(
        UserError, match=r"to grow within 0\.05 seconds .* wants 9 CPUs where there are 6 and 2 GPUs where there are 0"
    ):
        session.check_resources(wanted, workers=1)
    assert small_cluster["asked"] == [{"num_cpus": 9, "bundles": [{"GPU": 1.0}] * 2}, {"num_cpus": 0}]
