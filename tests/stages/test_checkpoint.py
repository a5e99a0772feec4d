"""Checkpoints: what training did not touch takes room once, and no file system that several machines share loses one."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest

from raysuite.config import RunConfig, load
from raysuite.families.policy import Policy
from raysuite.stages import checkpoint
from raysuite.stages.checkpoint import State
from tests.stages.worker import begin

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


def mapped(file: Path) -> bool:
    """Whether this process has a file in its memory."""
    return any(line.rstrip().endswith(str(file)) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def as_on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is still open gets another name in place of going, so that its directory cannot go either."""
    unlink = os.unlink

    def renaming(path: str, *, dir_fd: int | None = None) -> None:
        file = Path(path) if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        if mapped(file):
            file.rename(file.with_name(".nfs000000000001"))
        else:
            unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", renaming)


def test_a_checkpoint_that_is_still_open_is_none_any_more_and_goes_later(
    policy_of: Opener, tmp_path: Path, as_on_nfs: None
) -> None:
    policy, _ = policy_of("toy")
    first = saved(tmp_path, policy, 1, keep=1)
    with (first / "model" / "toy.safetensors").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        second = saved(tmp_path, policy, 2, keep=1)
        assert checkpoint.completed(tmp_path) == [second] and len(list(tmp_path.iterdir())) == 2
    third = saved(tmp_path, policy, 3, keep=1)
    assert list(tmp_path.iterdir()) == [third]


def test_a_run_that_goes_on_keeps_no_file_of_a_checkpoint_open(tmp_path: Path, as_on_nfs: None) -> None:
    settings = {"checkpoints.every": "1", "checkpoints.keep": "1", "evaluation.every": "100"}
    begin(load("toy-ddpo", settings | {"updates": "1"}), tmp_path).train()
    again = begin(load("toy-ddpo", settings | {"updates": "2"}), tmp_path)
    again.resume()
    assert not mapped(tmp_path / "checkpoints" / "000001" / "optimizer.safetensors")
    again.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000002"]


def test_what_an_evaluation_cost_is_added_to_a_checkpoint_that_stays_whole(tmp_path: Path) -> None:
    """A second checkpoint of the same update would have to take the place of the first, with a moment in which there is neither."""
    config = load("toy-ddpo", {"updates": "2", "checkpoints.every": "1", "evaluation.final_samples": "2"})
    stopped = begin(config, tmp_path)
    stopped.resume()
    stopped.evaluate()
    for _ in range(2):
        stopped.update()
    stopped.save()  # as if it had been stopped in the evaluation
    last = tmp_path / "checkpoints" / "000002"
    before = {path: path.stat().st_ino for path in last.rglob("*.safetensors")}
    again = begin(config, tmp_path)
    again.train()
    assert {path: path.stat().st_ino for path in last.rglob("*.safetensors")} == before
    found = checkpoint.read_state(last)
    assert found.evaluation == again.state.evaluation != stopped.state.evaluation
    assert json.loads((tmp_path / "ledger.json").read_text())["evaluation"]["forward"] == found.evaluation.forward
