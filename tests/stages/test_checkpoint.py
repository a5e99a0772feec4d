"""Checkpoints: what training did not touch takes room once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.stages import checkpoint
from raysuite.stages.checkpoint import State

Opener = Callable[..., tuple[Policy, RunConfig]]


def saved(directory: Path, policy: Policy, updates: int, *, keep: int = 2) -> Path:
    """A checkpoint whose weights depend on its number."""
    weights = np.full_like(policy.weights(), updates / 100)
    return checkpoint.save(directory, policy, State(updates=updates, behaviour={updates: weights}), keep=keep)


def test_files_that_training_did_not_touch_are_one_file_in_all_checkpoints(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("epsilon-all-3")
    first, second = (saved(tmp_path, policy, updates) for updates in (1, 2))
    shared = {
        path.relative_to(second).parts[1]
        for path in (second / "model").rglob("*.safetensors")
        if path.samefile(first / path.relative_to(second))
    }
    assert shared == {"vae", "text_encoder"}
    third = saved(tmp_path, policy, 3)  # drops the first
    assert not first.exists()
    for path, updates in ((second, 2), (third, 3)):
        assert checkpoint.read_state(path).updates == updates
        unet = diffusers.StableDiffusionPipeline.from_pretrained(path / "model").unet
        assert all((p == updates / 100).all() for p in unet.parameters())
    assert not list(tmp_path.rglob(".*"))


def test_a_file_system_without_links_has_two(
    policy_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    policy, _ = policy_of("epsilon-all-3")
    first, second = (saved(tmp_path, policy, updates) for updates in (1, 2))
    vae = "model/vae/diffusion_pytorch_model.safetensors"
    assert (first / vae).read_bytes() == (second / vae).read_bytes() and not (first / vae).samefile(second / vae)
    assert checkpoint.read_state(second).updates == 2
