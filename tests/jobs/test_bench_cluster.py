"""The double draws what the toy model draws, with weights of the size asked for. What Ray does with it, it measures itself."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from jobs import bench_cluster
from raysuite.families import open_policy
from raysuite.stages.rollout import sample


def test_a_double_draws_the_same_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cluster, "SECONDS", 0.01)
    config, blocks = bench_cluster.drawing(5)
    assert len({(block.update, block.index) for block in blocks}) == 5
    double = bench_cluster.Double(config, megabytes=1)
    assert double.weights().nbytes == 10**6
    started = time.perf_counter()
    drawn = sample(double, blocks[-1], config, version=0)
    assert time.perf_counter() - started >= bench_cluster.STEPS * bench_cluster.SECONDS
    expected = sample(open_policy(config, torch.device("cpu")), blocks[-1], config, version=0)
    assert drawn.latents_NK is not None and expected.latents_NK is not None
    assert np.array_equal(drawn.latents_NK, expected.latents_NK)
