"""The same DDPO training in the suite and in TRL, timed in turns: `python jobs/bench_peer.py --peer .venv-peer/bin/python`.

Both sides start from the same pipeline and train all weights, without Ray and in one process each, on the same prompts,
rewards and hyper-parameters; epochs alternate. The first epoch of each seed warms up and is not timed.
docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator

from raysuite.config import RunConfig, load
from raysuite.families import open_policy
from raysuite.families.stable_diffusion import StableDiffusionPolicy
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.stages.collect import LocalCollector
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.train import Training
from raysuite.worlds import scenes

ROOT = Path(__file__).resolve().parents[1]
ALIKE = {  # what TRL can do too
    "parameters.kind": "all",
    "rewards": "[{name: scenes}]",
    "credit.kind": "terminal",
    "credit.normalise": "global",
    "credit.discount": "1.0",
    "objective.step_fraction": "1.0",
    "objective.kl_weight": "0.0",
    "objective.per_dimension": "true",
}
PROBE = ["three red circles", "a blue square left of a green triangle", "one black square", ""]


def for_transformers_4(model: Path, copy: Path) -> None:
    """Copy a pipeline that transformers 5 saved, with the text encoder's and tokenizer's files as transformers 4 reads them."""
    shutil.copytree(model, copy)
    weights = copy / "text_encoder" / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    state = {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in state.items()}
    safetensors.torch.save_file(state, weights, metadata={"format": "pt"})
    tokenizer = json.loads((copy / "tokenizer" / "tokenizer.json").read_text())["model"]
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]]
    (copy / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def trl_settings(config: RunConfig) -> dict[str, Any]:
    """The run's hyper-parameters by their names in DDPOConfig."""
    rollouts, learning, objective = config.rollouts, config.learn, config.built_objective
    assert isinstance(objective, Ddpo) and objective.clip is not None, "expected objective.name=ddpo with a clip"
    block = rollouts.prompts_per_block * rollouts.samples
    batch = min(learning.microbatch, block)
    return {
        "seed": config.seed,
        "mixed_precision": "no",
        "accelerator_kwargs": {"cpu": True},
        "save_freq": 10**9,
        "sample_num_steps": config.sampler.steps,
        "sample_eta": config.sampler.noise.level,
        "sample_guidance_scale": config.sampler.guidance,
        "sample_batch_size": block,
        "sample_num_batches_per_epoch": rollouts.blocks,
        "train_batch_size": batch,
        "train_gradient_accumulation_steps": rollouts.prompts * rollouts.samples // learning.minibatches // batch,
        "train_num_inner_epochs": learning.epochs,
        "train_learning_rate": learning.learning_rate,
        "train_adam_beta1": learning.betas[0],
        "train_adam_beta2": learning.betas[1],
        "train_adam_weight_decay": learning.weight_decay,
        "train_adam_epsilon": learning.epsilon,
        "train_max_grad_norm": learning.max_grad_norm,
        "train_cfg": config.sampler.guidance > 1,
        "train_adv_clip_max": objective.advantage_clip,
        "train_clip_range": objective.clip,
    }


class Peer:
    """TRL in its own interpreter, asked by lines of JSON."""

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [python, str(ROOT / "jobs" / "bench_peer_trl.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"},
        )
        self.predictions = np.array(self.ask(job)["predictions"], dtype=np.float32)

    def epoch(self) -> dict[str, Any]:
        """Train for one."""
        return self.ask({"do": "epoch"})

    def save(self, file: Path) -> None:
        """Write the U-Net's weights."""
        self.ask({"do": "save", "file": str(file)})

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line, wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("bench_peer: the peer ended early; its own message is above")
        return json.loads(answer)


class Own:
    """The suite, without Ray."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        policy = open_policy(config, torch.device("cpu"))
        assert isinstance(policy, StableDiffusionPolicy)
        x = np.random.default_rng(0).standard_normal((1, *policy.latent_shape)).astype(np.float32)
        with torch.no_grad():
            x_N, t_N = torch.from_numpy(x).expand(len(PROBE), -1, -1, -1), torch.full((len(PROBE),), 500)
            states_N = policy.driver.encoded(PROBE)[0]
            self.predictions = policy.trained.network(x_N, t_N, states_N, return_dict=False)[0].numpy()
        self.metrics = directory / "metrics.jsonl"
        directory.mkdir()
        self.training = Training(config, directory, policy, LocalCollector(policy, config), Accelerator(cpu=True))

    def epoch(self) -> dict[str, Any]:
        """One update."""
        started, worked = time.perf_counter(), time.process_time()
        self.training.update()
        taken = {"seconds": time.perf_counter() - started, "processor": time.process_time() - worked}
        rows = map(json.loads, self.metrics.read_text().splitlines())
        return taken | {"reward": [row["value"] for row in rows if row["name"] == "train/reward"][-1]}

    def weights(self) -> np.ndarray:
        """What it trains, flat."""
        return self.training.policy.weights()


@contextmanager
def both_sides(
    own_config: RunConfig,
    peer_config: RunConfig,
    python: str,
    *,
    epochs: int,
    threads: int,
    peer_settings: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Own, Peer]]:
    """The suite and TRL with the same pipeline, each with its own run's settings, ready for their first epoch.

    `peer_settings` are further fields of DDPOConfig.
    """
    path = peer_config.model.path
    model = Path(scenes.__file__).parent / "model" if path == "scenes" else Path(path)
    prompts = load_prompts(peer_config.prompts)
    drawn = [p for e in range(epochs) for block in training_blocks(peer_config, prompts, e) for p in block.prompt_of_N]
    with tempfile.TemporaryDirectory() as folder:
        for_transformers_4(model, Path(folder) / "model")
        job = {
            "model": f"{folder}/model",
            "config": trl_settings(peer_config) | dict(peer_settings or {}),
            "prompts": drawn,
            "probe": PROBE,
            "threads": threads,
        }
        own, peer = Own(own_config, Path(folder) / "run"), Peer(python, job)
        try:
            apart = float(np.abs(own.predictions - peer.predictions).max())
            print(
                f"seed {own_config.seed}: the U-Net's predictions differ by at most {apart:.1e} before training",
                flush=True,
            )
            if apart > 1e-4:
                raise SystemExit(
                    "bench_peer: expected the same predictions on both sides: the pipeline was not converted well"
                )
            yield own, peer
        finally:
            peer.close()


def compare(config: RunConfig, python: str, epochs: int, threads: int) -> list[dict[str, float]]:
    """Both curves of one seed, with the seconds of every epoch."""
    rows = []
    with both_sides(config, config, python, epochs=epochs, threads=threads) as (own, peer):
        for epoch in range(epochs):
            turns = [own.epoch, peer.epoch] if epoch % 2 else [peer.epoch, own.epoch]
            answers = {turn: turn() for turn in turns}
            a, b = answers[own.epoch], answers[peer.epoch]
            row = {"epoch": epoch, "suite": a["seconds"], "trl": b["seconds"], "ratio": b["seconds"] / a["seconds"]}
            rows.append(row | {"suite_reward": a["reward"], "trl_reward": b["reward"]})
            print("".join(f"{value:13.4g}" for value in rows[-1].values()), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter of an environment with TRL")
    parser.add_argument("--repeats", type=int, default=2, help="seeds")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each seed, the first not timed")
    parser.add_argument("--recipe", default="scenes-ddpo")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting; repeatable"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each side")
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    overrides = ALIKE | dict(setting.split("=", 1) for setting in options.set)
    runs = []
    print("".join(f"{name:>13}" for name in ("epoch", "suite s", "TRL s", "TRL / suite", "suite reward", "TRL reward")))
    for seed in range(options.repeats):
        config = load(options.recipe, overrides | {"seed": str(seed), "updates": str(options.epochs)})
        runs.append(compare(config, options.peer, options.epochs, options.threads))
    ratios = [row["ratio"] for rows in runs for row in rows[1:]]
    print(
        f"samples per second, suite / TRL: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
        f"{len(ratios)} pairs of epochs); target at least 1.5"
    )
    for side in ("suite", "trl"):
        curve = np.array([[row[f"{side}_reward"] for row in rows] for rows in runs])
        print(
            f"mean reward by epoch over {len(runs)} seeds, {side:5}: {' '.join(f'{value:.3f}' for value in curve.mean(0))}"
        )
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
