"""A cluster that is to be joined and is not there, or is small."""

from __future__ import annotations

import logging
from itertools import count
from types import SimpleNamespace

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
    """One that was joined, has 4 CPUs, 6 from the fourth look on, and keeps what it was asked for."""
    seen: dict[str, list] = {"looks": [], "asked": []}

    def nodes() -> list[dict]:
        seen["looks"].append(0)
        return [{"Alive": True, "Resources": {"CPU": 4.0 if len(seen["looks"]) < 4 else 6.0}}]

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)  # which would look for a cluster
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
    # anew at every look, since Ray keeps one such request for all jobs
    assert small_cluster["asked"] == [{"bundles": [{"CPU": 1.0}] * 6}, {"num_cpus": 0}]


def test_waiting_for_a_cluster_ends(small_cluster: dict[str, list], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(step=0.1)
    monkeypatch.setattr(placement, "time", SimpleNamespace(monotonic=lambda: next(ticks), sleep=lambda seconds: None))
    wanted = Cluster(actors=8, actor_gpus=0.25, patience=0.5)
    with pytest.raises(
        UserError, match=r"to grow within 0\.5 seconds .* wants 9 CPUs where there are 6 and 2 GPUs where there are 0"
    ):
        session.check_resources(wanted, workers=1)
    learner, actor = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 0.25}
    *asked, taken_back = small_cluster["asked"]
    # anew at every look: Ray keeps one request, and another job's takes its place
    assert len(asked) > 1 and all(wanted == {"bundles": [learner] + [actor] * 8} for wanted in asked)
    assert taken_back == {"num_cpus": 0}


def test_places_that_are_kept_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []

    def get(asked: list, timeout: float | None) -> None:
        limits.append(timeout)
        if timeout is not None:
            raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "get", get)
    placement.wait_for([], "2 actors", holding=False)
    with pytest.raises(UserError, match="expected 2 actors within 60 minutes beside places that are kept for learners"):
        placement.wait_for([], "2 actors", holding=True)
    assert limits == [None, 3600.0]


CPUS = {"worker_cpus": 2.0, "actor_cpus": 1.0, "actors": 2}


@pytest.mark.parametrize(
    ("nodes", "cluster", "left"),
    [
        ([{"CPU": 4}], CPUS, None),
        ([{"CPU": 2}] * 2, CPUS, None),
        ([{"CPU": 2}] * 2, {"worker_cpus": 3.0}, "a learner (3 CPUs)"),  # larger than any machine
        ([{"CPU": 3}] * 2, {"workers": 2, "actors": 1, "worker_cpus": 2.0, "actor_cpus": 2.0}, "an actor (2 CPUs)"),
        (
            [{"CPU": 8, "GPU": 2}],
            {"actors": 5, "actor_gpus": 0.4},
            "an actor (1 CPUs, 0.4 GPUs)",
        ),  # four fit, 2.0 in sum
        ([{"CPU": 8, "GPU": 2}], {"workers": 2, "actors": 2, "worker_gpus": 0.6, "actor_gpus": 0.4}, None),
        ([{"CPU": 8, "GPU": 2}], {"actors": 3, "actor_gpus": 0.6}, "an actor (1 CPUs, 0.6 GPUs)"),
        (
            [{"CPU": 1, "GPU": 1}, {"CPU": 8, "GPU": 1}],
            {"worker_cpus": 8.0, "worker_gpus": 0.5, "actor_gpus": 1.0},
            None,
        ),
        # each fits in one of the two orders of pieces, or of nodes, alone
        (
            [{"CPU": 3, "GPU": 2}, {"CPU": 3, "GPU": 1}],
            {"workers": 2, "actors": 2, "actor_cpus": 2.0, "worker_gpus": 0.5},
            None,
        ),
        (
            [{"CPU": 4, "GPU": 1}] * 2,
            {"workers": 2, "actors": 2, "actor_cpus": 2.0, "worker_gpus": 1.0},
            None,
        ),
        (
            [{"CPU": 3, "GPU": 2}, {"CPU": 2, "GPU": 2}],
            {"workers": 2, "actors": 3, "worker_gpus": 0.6, "actor_gpus": 0.5},
            None,
        ),
        (
            [{"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 1}],
            {"actors": 3, "worker_cpus": 2.0, "actor_cpus": 2.0, "worker_gpus": 1.0, "actor_gpus": 0.4},
            None,
        ),
        ([{"CPU": 1}, {"CPU": 2}], {"judges": {"redness": {"actors": 2, "cpus": 2}}}, "a judge of redness (2 CPUs)"),
        ([{"CPU": 0.3}], {"workers": 3, "actors": 0, "worker_cpus": 0.1}, None),
    ],
)
def test_each_process_has_a_place_on_one_machine_and_one_gpu(nodes: list, cluster: dict, left: str | None) -> None:
    found = placement.without_place(placement.pieces_of(Cluster(**cluster), workers=cluster.get("workers", 1)), nodes)
    assert (found and str(found)) == left


def test_pieces_too_small_are_refused_though_their_sum_suffices(
    small_cluster: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}])
    with pytest.raises(
        UserError, match=r"a place on one machine for an actor .* where there are 1 x \(4 CPUs, 2 GPUs\)"
    ):
        session.check_resources(Cluster(actors=3, actor_gpus=0.6), workers=1)


def test_what_does_not_fill_a_gpu_is_asked_for_with_its_gaps(small_cluster: dict[str, list]) -> None:
    placement._ask_for([placement.Piece("an actor", 1, 0.4)] * 5, "head:6379")
    (asked,) = small_cluster["asked"]
    assert asked["bundles"][5:] == [{"GPU": 1.0}] and sum(b["GPU"] for b in asked["bundles"]) == pytest.approx(3)
