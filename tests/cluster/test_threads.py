"""How many threads each run of a sweep has."""

from __future__ import annotations

import pytest
import ray

from raysuite.cluster.sweep import _placed
from raysuite.config import load


@pytest.mark.parametrize(
    ("nodes", "cluster", "at_once", "threads"),
    [
        (1, {"actors": "2"}, 2, 2),
        (1, {"actors": "2"}, 8, 1),
        (1, {"actors": "0", "workers": "2"}, 2, 2),
        (1, {"actors": "2", "threads": "3"}, 2, 3),
        (1, {"actors": "2"}, 1, None),
        (2, {"actors": "2"}, 2, None),
    ],
)
def test_runs_that_go_on_at_once_share_the_cores_of_a_machine(
    nodes: int, cluster: dict[str, str], at_once: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{}] * nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    settings = {f"cluster.{name}": value for name, value in cluster.items()}
    config = load("toy-ddpo", {"learn.minibatches": "1", **settings})
    assert _placed(config, at_once=at_once).cluster.threads == threads
