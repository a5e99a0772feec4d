"""The benchmarks run, and compare what they say they compare. How fast anything is, they say themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from jobs import bench, bench_goal, bench_peer
from jobs.bench_goal import Looks, Progress, race, times_sooner
from raysuite.config import RunConfig
from raysuite.kernel.stats import Interval

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


@pytest.mark.slow
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


class Twin(bench_peer.Own):
    """In the peer's place: the suite itself, with settings of its own."""

    def save(self, file: Path) -> None:
        safetensors.torch.save_file(self.training.policy.trained.network.state_dict(), file)  # type: ignore[attr-defined]

    def close(self) -> None:
        """It has no process."""


def test_both_sides_are_looked_at_alike(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = {"prompts": 3, "final_samples": 1, "rewards": ["scenes_strict"]}
    config = run_config("epsilon-all-1", **SMALL, evaluation=evaluation, updates=2)
    recipe, file = tmp_path / "small.yaml", tmp_path / "found.json"
    recipe.write_text(json.dumps(config.canonical()))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(Looks, "gain", lambda looks, weights: seen.append(weights) or Interval(0.1, 0.0, 0.2))  # type: ignore[func-returns-value]
    asked: list[dict[str, Any]] = []

    def twin(python: str, job: dict[str, Any]) -> Twin:
        asked.append(job)
        return Twin(config, tmp_path / "twin")

    monkeypatch.setattr(bench_peer, "Peer", twin)
    files = ["--peer", "python", "--recipe", str(recipe), "--peer-recipe", str(recipe), "--json", str(file)]
    limits = ["--seeds", "0", "--epochs", "2", "--every", "1", "--threads", "1"]
    bench_goal.main([*files, *limits, "--peer-set", "train_learning_rate=1e-4"])
    assert asked[0]["config"]["train_learning_rate"] == 1e-4 and len(asked[0]["prompts"]) == 2 * 8
    assert len(seen) == 4
    for own, peer in (seen[:2], seen[2:]):  # the same run twice, one of them by way of a file
        np.testing.assert_array_equal(own, peer)
    assert not np.array_equal(seen[0], seen[2])
    found = json.loads(file.read_text())["0"]
    assert {side: (found[side]["epochs"], found[side]["reached"]) for side in found} == {
        "suite": (2, False),  # up by 0.1, and its interval does not leave 0
        "trl": (2, False),
    }


def test_gain_is_of_the_same_pictures(run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = {"prompts": 5, "final_samples": 2, "rewards": ["scenes_strict"]}
    looks = Looks(run_config("epsilon-all-1", **SMALL, evaluation=evaluation))
    weights = looks.policy.weights()
    assert looks.start_N.shape == looks.prompt_of_N.shape == (10,)
    assert looks.gain(weights) == Interval(0.0, 0.0, 0.0)
    looks.start_N = np.zeros(10)
    monkeypatch.setattr(looks, "passed", lambda weights: np.array([1.0] * 4 + [0.0] * 6))
    assert looks.gain(weights).estimate == pytest.approx(0.4)


class Counted:
    """In the place of either side and of what looks at it: weights are the epochs so far, which gain 0.03 each."""

    def __init__(self, seconds: float, start: float = 0.0) -> None:
        self.seconds, self.done, self.policy = seconds, start, self

    def epoch(self) -> dict[str, Any]:
        self.done += 1
        return {"seconds": self.seconds, "processor": 2 * self.seconds, "reward": 0.5}

    def weights(self) -> np.ndarray:
        return np.array([self.done])

    def save(self, file: Path) -> None:
        np.save(file.with_suffix(".npy"), self.weights())

    def read(self, file: Path) -> np.ndarray:
        return np.load(file.with_suffix(".npy"))

    def gain(self, weights: np.ndarray) -> Interval:
        gained = 0.03 * float(weights[0])
        return Interval(gained, gained - 0.1, gained + 0.1)


def test_a_side_trains_until_a_look_finds_the_goal() -> None:
    own, peer, looks = Counted(2.0), Counted(3.0), Counted(0.0)
    done = race(own, peer, looks, sides=("suite", "trl"), goal=0.08, epochs=9, every=2)  # type: ignore[arg-type]
    assert done["suite"] == Progress(
        4, 8.0, 16.0, reached=True
    )  # 0.12 after 4: 0.09 after 3 was not looked at, 0.02 above 0
    assert done["trl"] == Progress(4, 12.0, 24.0, reached=True)
    assert times_sooner(done, "seconds") == ("", 1.5)
    with pytest.raises(SystemExit, match="begin with the weights"):
        race(Counted(2.0), Counted(3.0, 1.0), looks, sides=("suite", "trl"), goal=0.08, epochs=1, every=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suite", "trl", "expected"),
    [
        (True, True, ("", 2.0)),
        (True, False, ("at least ", 2.0)),
        (False, True, ("at most ", 2.0)),
        (False, False, None),
    ],
)
def test_a_ratio_of_a_side_that_did_not_arrive_is_a_bound(
    suite: bool, trl: bool, expected: tuple[str, float] | None
) -> None:
    sides = {"suite": Progress(4, 5.0, 0.0, reached=suite), "trl": Progress(4, 10.0, 0.0, reached=trl)}
    assert times_sooner(sides, "seconds") == expected
