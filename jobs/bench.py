"""How fast the suite is on this machine, as ratios: `python jobs/bench.py [--recipe NAME] [--set PATH=VALUE] [--json FILE]`.

Each ratio compares two things that take turns in the same minutes, so that a busy machine slows both alike; what is
printed is the median of the pairs' ratios with the smallest and the largest. docs/benchmarks.md says what they mean.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler

from raysuite.config import RunConfig, load
from raysuite.families import open_policy
from raysuite.families.stable_diffusion import StableDiffusionPolicy
from raysuite.kernel.credit import PromptTracker
from raysuite.stages.learn import advantages, learn, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.types import Block, Rollouts

Work = Callable[[int], object]


@dataclass(frozen=True)
class Figure:
    """A quantity measured several times, and what it should be."""

    name: str
    values: list[float]
    target: str = ""

    def __str__(self) -> str:
        spread = f"{min(self.values):.4g} to {max(self.values):.4g}"
        return (
            f"{self.name:62} {statistics.median(self.values):8.4g}   {spread:17} {len(self.values):3}   {self.target}"
        )


class Suite:
    """A recipe's policy and optimiser, with the stages of an update and what they are compared with."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.accelerator = Accelerator(cpu=config.cluster.worker_gpus == 0)
        policy = open_policy(config, self.accelerator.device)
        assert isinstance(policy, StableDiffusionPolicy), "expected a model that is a diffusers pipeline"
        self.policy, self.pipeline = policy, policy.pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.prompts = load_prompts(config.prompts)
        self.optimizer = torch.optim.AdamW(policy.trainable().values(), lr=config.learn.learning_rate)
        self.rollouts: list[Rollouts] = []

    def blocks(self, update: int) -> list[Block]:
        """The blocks of an update: other prompts at each."""
        return training_blocks(self.config, self.prompts, update)

    def plain(self, block: Block) -> np.ndarray:
        """A block's pictures from diffusers' own pipeline."""
        sampler = self.config.sampler
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.policy.dtype == torch.bfloat16):
            return self.pipeline(
                list(block.prompt_of_N),
                num_inference_steps=sampler.steps,
                guidance_scale=sampler.guidance,
                eta=sampler.eta,
                output_type="np",
            ).images

    def draw(self, update: int) -> None:
        """The rollouts of an update and their rewards."""
        self.rollouts = [
            score(sample(self.policy, b, self.config, version=0), self.config) for b in self.blocks(update)
        ]

    def learn(self, update: int) -> None:
        """The advantages and optimiser steps of an update."""
        credit = {r.block.index: r.credit_NK for r in self.rollouts if r.credit_NK is not None}
        prompts = {r.block.index: r.block.prompt_of_N for r in self.rollouts}
        tracker = PromptTracker.empty(size=self.config.credit.tracker_size, minimum=self.config.credit.tracker_minimum)
        advantage = advantages(self.config, credit, prompts, tracker)
        blocks = {r.block.index: transitions(r, advantage[r.block.index]) for r in self.rollouts}
        learn(self.config, self.policy, self.optimizer, blocks, update=update, accelerator=self.accelerator)

    def bare(self, stage: Work) -> tuple[Work, Work]:
        """The U-Net calls and the VAE calls of a stage, found by watching it once: as many, as large, and nothing else."""
        policy = self.policy
        calls: list[tuple[str, int]] = []
        predict, decode = policy.predict, policy.decode

        def watched_predict(x: torch.Tensor, *rest: Any, reference: bool = False) -> torch.Tensor:
            calls.append(("gradient" if torch.is_grad_enabled() and not reference else "forward", len(x)))
            return predict(x, *rest, reference=reference)

        def watched_decode(latents: torch.Tensor) -> np.ndarray:
            calls.append(("decode", len(latents)))
            return decode(latents)

        policy.predict, policy.decode = watched_predict, watched_decode  # type: ignore[method-assign]
        stage(0)
        del policy.predict, policy.decode
        made = {call: self._call(*call) for call in calls}
        unet = [made[c] for c in calls if c[0] != "decode"]
        vae = [made[c] for c in calls if c[0] == "decode"]
        return (lambda _: [call() for call in unet]), (lambda _: [call() for call in vae])

    def _call(self, kind: str, size: int) -> Callable[[], None]:
        policy = self.policy
        rows = size if kind == "decode" else size * policy.evaluations_per_prediction
        x, t = (
            torch.randn(rows, *policy.latent_shape, device=policy.device),
            torch.full((rows,), 500, device=policy.device),
        )
        text = policy.pipeline.encode_prompt(self.prompts.training[0].text, policy.device, rows, False)[0].detach()

        def call() -> None:
            with torch.autocast(
                policy.device.type, torch.bfloat16, enabled=kind != "decode" and policy.dtype == torch.bfloat16
            ):
                with torch.set_grad_enabled(kind == "gradient"):
                    decode = policy.pipeline.vae.decode
                    y = decode(x, return_dict=False)[0] if kind == "decode" else policy.trained.network(x, t, text)[0]
            if kind == "gradient":
                y.backward(x)

        return call


def seconds(works: Sequence[Work], number: int) -> list[float]:
    """How long each takes, one after the other, in the opposite order every other time."""
    taken = [0.0] * len(works)
    for which in range(len(works))[:: -1 if number % 2 else 1]:
        started = time.perf_counter()
        works[which](number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken[which] = time.perf_counter() - started
    return taken


def rollout_speed(config: RunConfig, pairs: int) -> Figure:
    """Pictures per second of `sample` over those of a pipeline call with the same batch, steps, guidance and eta."""
    suite = Suite(config)
    works = (
        lambda i: sample(suite.policy, suite.blocks(i)[0], config, version=0),
        lambda i: suite.plain(suite.blocks(i)[0]),
    )
    taken = [seconds(works, i) for i in range(pairs + 1)][1:]  # the first round is for warming up, here and below
    name = f"rollout / diffusers pipeline, pictures per second, guidance {config.sampler.guidance:g}"
    return Figure(name, [plain / ours for ours, plain in taken], "at least 1")


def update_overhead(config: RunConfig, pairs: int) -> list[Figure]:
    """Seconds of the stages of an update over those of their network calls, which take turns with them."""
    suite = Suite(config)
    unet_draw, vae_draw = suite.bare(suite.draw)
    unet_learn, _ = suite.bare(suite.learn)
    rounds = [
        (seconds((suite.draw, unet_draw, vae_draw), i), seconds((suite.learn, unet_learn), i)) for i in range(pairs + 1)
    ][1:]
    return [
        Figure(
            "update / its U-Net and VAE calls, seconds",
            [(d[0] + l[0]) / (d[1] + d[2] + l[1]) for d, l in rounds],
            "at most 1.15",
        ),
        Figure("update / its U-Net calls alone, seconds", [(d[0] + l[0]) / (d[1] + l[1]) for d, l in rounds]),
        Figure("  of it: rollout and rewards / their U-Net and VAE calls", [d[0] / (d[1] + d[2]) for d, _ in rounds]),
        Figure("  of it: learning / its U-Net calls with backward", [l[0] / l[1] for _, l in rounds]),
        Figure("  update, seconds", [d[0] + l[0] for d, l in rounds]),
    ]


def resident() -> float:
    """The most memory that this process ever held, MB."""
    status = Path("/proc/self/status")  # getrusage inherits the peak of the process that started this one
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory_of(config: RunConfig, what: str) -> dict[str, float]:
    """In a fresh process: what loading and then learning add to the peak, MB. `what` is microbatch or update."""
    before = resident()
    suite = Suite(config)
    policy = suite.policy
    if what == "microbatch":
        block = suite.blocks(0)[0]
        x = torch.randn(min(config.learn.microbatch, block.size), *policy.latent_shape, device=policy.device)
        t = policy.schedule.timesteps_K[:1].expand(len(x))
        policy.predict(x, t, block.prompt_of_N[: len(x)]).square().mean().backward()
        suite.optimizer.step()
        return {"peak": resident() - before, "trajectories": 0.0}
    policy.decode = lambda latents: np.zeros((len(latents), 32, 32, 3), np.uint8)  # type: ignore[method-assign]
    drawn = [sample(policy, b, config, version=0) for b in suite.blocks(0)]  # a learner does not decode: actors do
    suite.rollouts = [score(d, config) for d in drawn]
    suite.learn(0)
    stored = sum(
        r.latents_NK.nbytes + r.logp_NK.nbytes
        for r in suite.rollouts
        if r.latents_NK is not None and r.logp_NK is not None
    )
    return {"peak": resident() - before, "trajectories": stored / 2**20}


def memory(arguments: Sequence[str], pairs: int) -> list[Figure]:
    """Peak memory of a learner over that of one microbatch through the same model and optimiser."""

    def run(what: str) -> dict[str, float]:
        command = [sys.executable, __file__, *arguments, "--memory-of", what]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    results = [(run("update"), run("microbatch")) for _ in range(pairs)]
    return [
        Figure("peak memory, learner / model, AdamW and one microbatch", [u["peak"] / m["peak"] for u, m in results]),
        Figure("  learner, MB above the imports", [u["peak"] for u, _ in results]),
        Figure("  model, AdamW and one microbatch, MB above the imports", [m["peak"] for _, m in results]),
        Figure("  stored trajectories of an update, MB", [u["trajectories"] for u, _ in results]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="scenes-ddpo", help="a recipe's name or a YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting; repeatable"
    )
    parser.add_argument("--pairs", type=int, default=9, help="turns that each side takes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--memory-of", choices=("microbatch", "update"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = dict(setting.split("=", 1) for setting in options.set)
    config = load(options.recipe, overrides)
    if options.memory_of:
        print(json.dumps(memory_of(config, options.memory_of)))
        return
    print(f"{'':62} {'median':>8}   {'min to max':17} {'n':>3}   target", flush=True)
    figures: list[Figure] = []
    same = [
        "--recipe",
        options.recipe,
        "--threads",
        str(options.threads),
        *(a for s in options.set for a in ("--set", s)),
    ]
    for part in (
        *(
            lambda g=g: [rollout_speed(load(options.recipe, overrides | {"sampler.guidance": g}), 3 * options.pairs)]
            for g in "13"
        ),
        lambda: update_overhead(config, options.pairs),
        lambda: memory(same, 3),
    ):
        new = part()
        print(*new, sep="\n", flush=True)
        figures += new
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
