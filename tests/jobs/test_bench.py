"""The benchmarks run, and compare what they say they compare. How fast anything is, they say themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from jobs import bench, bench_peer
from raysuite.config import RunConfig

SMALL = {"sampler": {"steps": 2}, "rollouts": {"prompts": 4, "samples": 2, "prompts_per_block": 2}}


@pytest.fixture
def small(run_config: Callable[..., RunConfig]) -> RunConfig:
    """Two blocks of four pictures, two steps."""
    return run_config("epsilon-all-1", **SMALL, learn={"microbatch": 2}, updates=2)


@pytest.mark.parametrize("policy", ["epsilon-all-1", "epsilon-all-3", "v_prediction-lora-3"])
def test_rollout_speed_is_a_ratio(run_config: Callable[..., RunConfig], policy: str) -> None:
    speed, around, *taken = bench.rollout_speed(run_config(policy, **SMALL), turns=2)
    assert len(speed.values) == 2 and len(around.values) == 6
    for figure in (speed, around, *taken):
        assert np.isfinite(figure.values).all() and min(figure.values) > 0
        assert figure.name in str(figure)


def test_update_overhead_are_ratios(small: RunConfig) -> None:
    for figure in bench.update_overhead(small, turns=2):
        assert len(figure.values) == 2
        assert np.isfinite(figure.values).all() and min(figure.values) > 0


def test_bare_calls_are_those_of_the_stage(small: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = bench.Suite(small)
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(suite, "call", lambda kind, size: lambda: made.append((kind, size)))
    unet, vae = suite.bare(suite.draw)
    learning, nothing = suite.bare(suite.learn)
    unet(0)
    vae(0)
    assert made == [("forward", 4)] * 4 + [("decode", 4)] * 2  # 2 blocks of 4 pictures, 2 steps
    made.clear()
    learning(0)
    nothing(0)
    assert made == [("gradient", 2)] * 8  # the same 16 points, 2 at a time


def test_memory_is_measured_in_processes_of_their_own(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps(small.canonical()))
    monkeypatch.setenv("PYTHONPATH", str(bench_peer.ROOT))
    share, peak, stored = bench.memory(["--recipe", str(recipe), "--threads", "1"], turns=1)
    assert share.values[0] > 0 and peak.values[0] > 0
    latents, densities = 8 * 3 * 4 * 8 * 8, 8 * 2
    assert stored.values == [pytest.approx(4 * (latents + densities) / 2**20)]


def test_peer_reads_the_same_pipeline(pipelines: dict[str, Path], tmp_path: Path) -> None:
    bench_peer.for_transformers_4(pipelines["epsilon"], tmp_path / "copy")
    before = safetensors.torch.load_file(pipelines["epsilon"] / "text_encoder" / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "copy" / "text_encoder" / "model.safetensors")
    assert len(after) == len(before) and all(name.startswith("text_model.") for name in after)
    tokenizer = json.loads((pipelines["epsilon"] / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert json.loads((tmp_path / "copy" / "tokenizer" / "vocab.json").read_text()) == tokenizer["vocab"]
    merges = (tmp_path / "copy" / "tokenizer" / "merges.txt").read_text().splitlines()
    assert len(merges) == 1 + len(tokenizer["merges"])


def test_peer_takes_as_many_steps_over_as_many_samples(small: RunConfig) -> None:
    settings = bench_peer.trl_settings(small)
    samples = settings["sample_batch_size"] * settings["sample_num_batches_per_epoch"]
    assert samples == small.rollouts.prompts * small.rollouts.samples
    of_a_step = settings["train_batch_size"] * settings["train_gradient_accumulation_steps"]
    assert samples == of_a_step * small.learn.minibatches


def test_own_side_of_the_peer_comparison_trains(small: RunConfig, tmp_path: Path) -> None:
    own = bench_peer.Own(small, tmp_path / "run")
    before = own.training.policy.weights()
    answer = own.epoch()
    assert answer["seconds"] > 0 and np.isfinite(answer["reward"])
    assert not np.array_equal(before, own.training.policy.weights())
