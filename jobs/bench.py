"""How fast the suite is on this machine, as ratios: `python jobs/bench.py [--recipe NAME] [--set PATH=VALUE] [--json FILE]`.

`--objectives scenes-ddpo scenes-dspo ...` measures the updates of several recipes instead.

Each ratio compares two things that take turns, so that a busy machine slows both alike: the median of the turns' ratios,
the smallest and the largest, and the ratio of each side's fastest turn. docs/benchmarks.md says what they mean.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator

from raysuite.config import RunConfig, load
from raysuite.cpus import usable_cpus
from raysuite.families import open_policy
from raysuite.families.stable_diffusion import StableDiffusionPolicy
from raysuite.kernel.credit import PromptTracker
from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.stages.learn import Batch, advantages, learn, transitions
from raysuite.stages.preferences import compared, rankings
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.study.declared import STANDARD, Study
from raysuite.study.gradients import unit_gradients
from raysuite.study.measure import study_sketch
from raysuite.types import Block, Preferences, Rollouts

Work = Callable[[int], object]


@dataclass(frozen=True)
class Figure:
    """Something measured several times, and what it should be."""

    name: str
    values: list[float]
    target: str = ""
    fastest: float | None = None
    """The ratio of each side's fastest turn."""

    def __str__(self) -> str:
        spread, best = (
            f"{min(self.values):.3g} to {max(self.values):.3g}",
            f"{self.fastest:.3f}" if self.fastest else "",
        )
        return f"{self.name:64}{statistics.median(self.values):8.4g}  {spread:16}{len(self.values):3}  {best:8} {self.target}"


def ratio(name: str, above: Sequence[float], below: Sequence[float], target: str = "") -> Figure:
    """The ratio of what was measured in the same turns."""
    return Figure(name, [a / b for a, b in zip(above, below, strict=True)], target, min(above) / min(below))


def seconds(works: Sequence[Work], turns: int) -> np.ndarray:
    """Seconds of each in turn, in the opposite order every other time, (works, turns); a first turn does not count."""
    taken = np.zeros((len(works), turns + 1))
    for turn in range(turns + 1):
        for which in range(len(works))[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            works[which](turn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[which, turn] = time.perf_counter() - started
    return taken[:, 1:]


class Suite:
    """A recipe's policy and optimiser, the stages of an update, and what these are compared with."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.accelerator = Accelerator(cpu=config.cluster.worker_gpus == 0)
        policy = open_policy(config, self.accelerator.device)
        assert isinstance(policy, StableDiffusionPolicy), "expected a model that is a diffusers pipeline"
        self.policy, self.pipeline, self.unet = policy, policy.pipeline, policy.trained.network
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = diffusers.DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.prompts = load_prompts(config.prompts)
        self.optimizer = torch.optim.AdamW(policy.trainable().values(), lr=config.learn.learning_rate)
        self.rollouts: list[Rollouts] = []

    def autocast(self) -> torch.autocast:
        """What the suite runs the U-Net in."""
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.policy.dtype == torch.bfloat16)

    def blocks(self, update: int) -> list[Block]:
        """The blocks of an update: other prompts at each."""
        return training_blocks(self.config, self.prompts, update)

    def plain(self, block: Block) -> np.ndarray:
        """A block's pictures from diffusers' own pipeline."""
        of = self.config.sampler
        with self.autocast():
            prompts, options = (
                list(block.prompt_of_N),
                {"guidance_scale": of.guidance, "eta": of.noise.level, "output_type": "np"},
            )
            return self.pipeline(prompts, num_inference_steps=of.steps, **options).images

    def draw(self, update: int) -> None:
        """The rollouts of an update and their rewards."""
        drawn = (sample(self.policy, block, self.config, version=0) for block in self.blocks(update))
        self.rollouts = [score(block, self.config) for block in drawn]

    def learn(self, update: int) -> None:
        """Who is better by how much, and the optimiser steps of an update."""
        learn(self.config, self.policy, self.optimizer, self.batches(), update=update, accelerator=self.accelerator)

    def batches(self) -> dict[int, Batch]:
        """The rollouts as the objective sees them."""
        if self.config.built_objective.consumes == "preferences":
            ranked = {r.block.index: rankings(self.config, r.block, r.reward_N)[0] for r in self.rollouts}
            return {r.block.index: compared(r, ranked[r.block.index]) for r in self.rollouts}
        credit = {r.block.index: r.credit_NK for r in self.rollouts if r.credit_NK is not None}
        prompts = {r.block.index: r.block.prompt_of_N for r in self.rollouts}
        tracker = PromptTracker.empty(size=self.config.credit.tracker_size, minimum=self.config.credit.tracker_minimum)
        advantage = advantages(self.config, credit, prompts, tracker)
        return {r.block.index: transitions(r, advantage[r.block.index]) for r in self.rollouts}

    def bare(self, stage: Work) -> tuple[Work, Work]:
        """A stage's U-Net calls, and its VAE calls, found by watching it: as many, as large, and nothing else."""
        policy, calls = self.policy, list[tuple[str, int]]()
        predict, decode = policy.predict, policy.decode

        def watched_predict(
            x_N: torch.Tensor, t_N: torch.Tensor, prompts_N: Sequence[str], *, guided: bool = True, **options: Any
        ) -> torch.Tensor:
            learned = torch.is_grad_enabled() and not options.get("reference")
            rows = len(x_N) * (policy.evaluations_per_prediction if guided else 1)
            calls.append(("gradient" if learned else "forward", rows))
            return predict(x_N, t_N, prompts_N, guided=guided, **options)

        def watched_decode(latents_N: torch.Tensor) -> np.ndarray:
            calls.append(("decode", len(latents_N)))
            return decode(latents_N)

        policy.predict, policy.decode = watched_predict, watched_decode  # type: ignore[method-assign]
        stage(0)
        del policy.predict, policy.decode
        made = {call: self.call(*call) for call in calls}
        unet = [made[call] for call in calls if call[0] != "decode"]
        vae = [made[call] for call in calls if call[0] == "decode"]
        return (lambda _: [call() for call in unet]), (lambda _: [call() for call in vae])

    def call(self, kind: str, rows: int) -> Callable[[], None]:
        """One network call on so many rows: decode, forward, or gradient (forward and backward)."""
        x, t = torch.randn(rows, *self.policy.latent_shape, device=self.policy.device), torch.tensor(500)
        text = self.pipeline.encode_prompt(self.prompts.training[0].text, self.policy.device, rows, False)[0].detach()

        @torch.set_grad_enabled(kind == "gradient")
        def call() -> None:
            if kind == "decode":
                self.pipeline.vae.decode(x, return_dict=False)
                return
            with self.autocast():
                y = self.unet(x, t, text, return_dict=False)[0]
            if kind == "gradient":
                y.backward(x)

        return call


def rollout_speed(config: RunConfig, turns: int) -> list[Figure]:
    """Pictures per second of `sample` over those of a pipeline call with the same batch, steps, guidance and eta."""
    suite, of = Suite(config), f"guidance {config.sampler.guidance:g}"

    def ours(update: int) -> None:
        sample(suite.policy, suite.blocks(update)[0], config, version=0)

    def plain(update: int) -> None:
        suite.plain(suite.blocks(update)[0])

    ours_s, plain_s = seconds((ours, plain), turns)
    pixels = [side * suite.pipeline.vae_scale_factor for side in suite.policy.latent_shape[1:]]
    suite.unet.forward = lambda x, *rest, **options: (torch.zeros_like(x),)
    suite.pipeline.vae.decode = lambda z, *rest, **options: (torch.zeros(len(z), 3, *pixels),)
    around_ours_s, around_plain_s = seconds((ours, plain), 3 * turns)
    return [
        ratio(f"pictures/s: rollout / diffusers, {of}", plain_s, ours_s, "at least 1"),
        ratio("  seconds outside the networks: diffusers / rollout", around_plain_s, around_ours_s),
        Figure("  seconds outside the networks: rollout's", list(around_ours_s)),
        Figure("  seconds: rollout", list(ours_s)),
    ]


def update_overhead(config: RunConfig, turns: int) -> list[Figure]:
    """Seconds of the stages of an update over those of their network calls."""
    suite = Suite(config)
    unet, vae = suite.bare(suite.draw)
    back, _ = suite.bare(suite.learn)
    draw, learning, unet_s, vae_s, back_s = seconds((suite.draw, suite.learn, unet, vae, back), turns)
    return [
        ratio("seconds: update / its U-Net and VAE calls", draw + learning, unet_s + vae_s + back_s, "at most 1.05"),
        ratio("seconds: update / its U-Net calls alone", draw + learning, unet_s + back_s),
        ratio("  seconds: rollout and rewards / their U-Net and VAE calls", draw, unet_s + vae_s),
        ratio("  seconds: learning / its U-Net calls, with backward", learning, back_s),
        Figure("  seconds: update", list(draw + learning)),
    ]


def objective_overhead(recipe: str, overrides: Mapping[str, str], turns: int) -> list[Figure]:
    """Seconds of one objective's learning, and of its whole update, over those of their network calls."""
    suite = Suite(load(recipe, overrides))
    unet, vae = suite.bare(suite.draw)
    back, _ = suite.bare(suite.learn)
    draw, learning, unet_s, vae_s, back_s = seconds((suite.draw, suite.learn, unet, vae, back), turns)
    name = f"{recipe}: seconds of an update / its network calls"
    return [
        ratio(name, draw + learning, unet_s + vae_s + back_s, "at most 1.15"),
        ratio("  learning / its network calls", learning, back_s),
    ]


def objective_memory(recipes: Sequence[str], settings: Sequence[str], turns: int) -> list[Figure]:
    """Peak memory of a learner with each recipe's objective over that with the first's."""
    peaks = {recipe: list[float]() for recipe in recipes}
    for _ in range(turns):
        for recipe in recipes:
            peaks[recipe].append(_in_a_process(["--recipe", recipe, *settings], "update")[0])
    first = peaks[recipes[0]]
    return [ratio(f"{recipe}: peak memory / {recipes[0]}'s", peaks[recipe], first) for recipe in recipes[1:]]


def directions_overhead(config: RunConfig, turns: int) -> list[Figure]:
    """Seconds of one unit's gradients under k objectives that ask about the same points, over their network's."""
    suite, names = Suite(config), ("diffusion_dpo", "dspo", "cal_dpo")
    policy = suite.policy
    objectives: dict[str, Objective[Any]] = {n: OBJECTIVES[n](**STANDARD[n]) for n in names}
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 2, 1, *policy.latent_shape, generator=draw)
    unit = Preferences(latents_RMK=latents, prompts_R=(suite.prompts.training[0].text,) * 4)
    sketch = study_sketch(Study(run={}, objectives={n: {} for n in names}), 0, policy)
    sizes: list[int] = []

    def keep(name: str, number: int, gradients: dict[str, torch.Tensor]) -> None:
        sketch(gradients)

    def measured(_: int) -> None:
        unit_gradients(
            objectives,
            policy,
            dict.fromkeys(names, unit),
            keep,
            generator=lambda: torch.Generator().manual_seed(0),
            bins=4,
            microbatch=config.learn.microbatch,
        )

    predict = policy.predict

    def watched(x_N: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(x_N))
        return predict(x_N, *rest, **options)

    policy.predict = watched  # type: ignore[method-assign]
    measured(0)
    del policy.predict
    chunks, parameters = sizes[::2], list(policy.trainable().values())  # each is looked at by policy and reference

    def forward(size: int, *, reference: bool = False) -> torch.Tensor:
        x, t = torch.randn(size, *policy.latent_shape), torch.full((size,), 500)
        return policy.predict(x, t, list(unit.prompts_R[:1]) * size, reference=reference, guided=False)

    def bare(_: int) -> None:
        for size in chunks:
            forward(size, reference=True)
            output = forward(size)
            for last in (False, False, True):
                torch.autograd.grad(output.sum(), parameters, retain_graph=not last)

    ours, theirs = seconds((measured, bare), turns)
    return [
        ratio(
            "seconds: 3 objectives on shared points / 1 forward, 1 reference, 3 backward", ours, theirs, "at most 1.2"
        )
    ]


def resident() -> float:
    """The most memory that this process ever held, MB."""
    status = Path("/proc/self/status")  # getrusage would count what the process that started this one held
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory_of(config: RunConfig, what: str) -> tuple[float, float]:
    """In a fresh process: how far the peak is above that of the imports, and the size of the trajectories, MB."""
    before, suite = resident(), Suite(config)
    if what == "microbatch":
        points = min(config.learn.microbatch, suite.blocks(0)[0].size)
        call = suite.call("gradient", points * suite.policy.evaluations_per_prediction)
        for _ in range(4):  # the allocator keeps what it once had: only after some steps is the peak steady
            suite.optimizer.zero_grad()
            for _ in range(4):
                call()
            suite.optimizer.step()
        return resident() - before, 0.0
    empty = np.zeros((suite.blocks(0)[0].size, 32, 32, 3), np.uint8)
    suite.policy.decode = lambda latents_N: empty  # type: ignore[method-assign]
    suite.draw(0)  # rollout actors decode, a learner does not; rewards that differ, or every pair would be a tie
    rng = np.random.default_rng(0)
    suite.rollouts = [replace(r, reward_N=rng.normal(size=len(r.reward_N))) for r in suite.rollouts]
    suite.learn(0)
    stored = sum(a.nbytes for r in suite.rollouts for a in (r.latents_NK, r.logp_NK) if a is not None)
    return resident() - before, stored / 2**20


def _in_a_process(arguments: Sequence[str], what: str) -> tuple[float, float]:
    command = [sys.executable, __file__, *arguments, "--memory-of", what]
    peak, stored = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return peak, stored


def memory(arguments: Sequence[str], turns: int) -> list[Figure]:
    """Peak memory of a learner over that of bare microbatches through the same model and optimiser."""
    runs = [[_in_a_process(arguments, what) for what in ("update", "microbatch")] for _ in range(turns)]
    updates, bare = zip(*runs, strict=True)
    return [
        ratio("peak memory: learner / model, AdamW and one microbatch", [u for u, _ in updates], [b for b, _ in bare]),
        Figure("  learner, MB above the imports", [u for u, _ in updates]),
        Figure("  of it the trajectories of an update, MB", [stored for _, stored in updates]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the suite is on this machine, as ratios.")
    parser.add_argument("--recipe", default="scenes-ddpo", help="a recipe's name or a YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting; repeatable"
    )
    parser.add_argument("--turns", type=int, default=9, help="turns of each side")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="torch threads")
    parser.add_argument("--directions", action="store_true", help="measure only what the study of directions costs")
    parser.add_argument("--objectives", nargs="+", metavar="RECIPE", help="measure these recipes' updates instead")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--memory-of", choices=("microbatch", "update"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    overrides = dict(setting.split("=", 1) for setting in options.set)
    config, turns = load(options.recipe, overrides), options.turns
    if options.memory_of:
        print(json.dumps(memory_of(config, options.memory_of)))
        return
    same = ["--threads", str(options.threads), *(f"--set={setting}" for setting in options.set)]
    parts = [
        lambda: directions_overhead(config, turns),
        lambda: rollout_speed(load(options.recipe, overrides | {"sampler.guidance": "1"}), 2 * turns),
        lambda: rollout_speed(load(options.recipe, overrides | {"sampler.guidance": "3"}), 2 * turns),
        lambda: update_overhead(config, turns),
        lambda: memory(["--recipe", options.recipe, *same], 3),
    ]
    if options.directions:
        parts = parts[:1]
    if options.objectives:
        parts = [partial(objective_overhead, recipe, overrides, turns) for recipe in options.objectives]
        parts.append(lambda: objective_memory(options.objectives, same, 3))
    print(f"{'':64}{'median':>8}  {'min to max':16}{'n':>3}  fastest  target")
    figures: list[Figure] = []
    for part in parts:
        figures += (new := part())
        print(*new, sep="\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
