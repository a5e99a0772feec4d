"""Rows that cannot go through a network in one call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raysuite.errors import UserError
from raysuite.families.pipeline import PipelinePolicy

Opener = Callable[..., PipelinePolicy]


def test_learners_that_share_a_network_do_not_call_it_for_each_length(
    open_tiny: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them would wait for calls that the others do not make."""
    policy = open_tiny("qwen_image", sampler={"guidance": 1}, parameters={"kind": "all", "rank": 16})
    monkeypatch.setattr(policy.trained, "shard", lambda: None)  # there is nobody to share it with
    x = torch.zeros(2, *policy.latent_shape)
    t = policy.schedule.timesteps_K[:1].expand(2)
    policy.shard()
    with torch.no_grad():
        policy.predict(x, t, ["a cat", "a cat"])
        with pytest.raises(UserError, match=r"in one call with cluster\.shard, .* got 2 groups"):
            policy.predict(x, t, ["a cat", "a drawing of a large blue house"])


def test_wan_that_gives_each_token_the_time_of_its_call(
    tiny: Callable[[str], Path], open_tiny: Opener, tmp_path: Path
) -> None:
    """Wan 2.2 of 5 billion weights: rows at other times would share one, or end in an error."""
    place = shutil.copytree(tiny("wan"), tmp_path / "wan")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": True}))
    policy = open_tiny("wan", model={"path": str(place)}, sampler={"guidance": 1})
    x = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = policy.schedule.timesteps_K[torch.tensor([2, 0, 1])]
    with torch.no_grad():
        together = policy.predict(x, t, ["a cat"] * 3)
        alone = torch.cat([policy.predict(x[[n]], t[[n]], ["a cat"]) for n in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
