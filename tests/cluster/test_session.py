"""Who draws where there are no actors: this process, which starts no Ray."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raysuite import rewards
from raysuite.cluster import session
from raysuite.config import load
from raysuite.errors import RewardHung
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import load_prompts, training_blocks
from tests.processes import HANG_GUARD


def test_a_reward_is_held_to_its_seconds_where_this_process_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(rewards, "resolve", lambda name: lambda images, prompts, metadata: release.wait(HANG_GUARD))
    config = load("toy-ddpo", {"rewards": "[{name: redness, seconds: 0.05}]", "cluster.actors": "0"})
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    with session.drawing(FoundModel("toy", config, None), tmp_path, []) as (policy, collector):
        with pytest.raises(RewardHung, match=r"redness to answer within 0\.05 seconds"):
            next(collector.start(blocks[:1], policy.weights(), 0))
        release.set()
