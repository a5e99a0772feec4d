"""How fast the suite is on one GPU, and how much it holds: `python jobs/bench_gpu.py [--models "SD 1.5" ...] [--json FILE]`.

Networks of released models' sizes with random weights, no hub and no Ray. The stages that a run is made of (rollout, learn) do the
work, LoRA is trained, pictures have 512 pixels on a side. Each row switches one thing; all rows are done within `--seconds`, and
those for which no time is left are named. Then the tests marked `cuda` run. `--dry-run` does the same on CPUs with tiny networks: its
numbers mean nothing. docs/benchmarks.md says what the columns are.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, it finds its neighbour

from jobs.gpu_models import MODELS, Released, write
from raysuite import families
from raysuite.config import Model, RunConfig, put, validate
from raysuite.families import compiled, pipeline as adapter
from raysuite.families.loading import modules_of, outlined, pipeline_class
from raysuite.families.pipeline import PipelinePolicy
from raysuite.stages.learn import learn, transitions
from raysuite.stages.plan import GB, Plan, plan
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.types import Rollouts

PEAK_FLOPS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}
"""Products in bfloat16 with sums in float32, dense, a second, as their maker gives them. All shares are of these."""
RUN: Mapping[str, Any] = {
    "updates": 1,
    "sampler": {"steps": 20, "guidance": 1.0, "noise": {"kind": "flow_sde", "level": 0.7}},
    "parameters": {"kind": "lora", "rank": 16, "checkpointing": True},
    "rewards": [{"name": "redness"}],
    "rollouts": {"prompts": 2, "samples": 8, "prompts_per_block": 1},
    "objective": {"name": "ddpo", "clip": 1e-4, "advantage_clip": 5.0, "per_dimension": True},
    "learn": {"learning_rate": 1e-4, "minibatches": 2, "microbatch": 8},
    "cluster": {"encode_once": True},
}
DRY: Mapping[str, Any] = {
    "model.size": 32,
    "sampler.steps": 5,
    "rollouts.samples": 2,
    "learn.microbatch": 2,
    "parameters.rank": 2,
}
PROMPT = "a photograph of a small red house beside a large green tree, number "


@dataclass(frozen=True)
class Way:
    """One way to run a model."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What one way to run a model came to."""

    model: str
    way: str
    rollout: float
    """Pictures a second."""
    plain: float
    """Pictures a second of the pipeline's own call, with the same network, batch and steps."""
    update: float
    """Seconds of learning from these pictures."""
    loop: float
    """Pictures a second of both together."""
    rollout_share: float | None
    """Of the GPU's peak arithmetic, in rollouts. Decoding is in the seconds and not in the operations."""
    learn_share: float | None
    """In learning; what checkpointing does again is no useful work and not counted."""
    outside: float | None
    """Seconds of drawing that are neither the network's nor decoding's; None where it is compiled."""
    memory: float | None
    """GB of tensors at the peak of learning."""
    planned: float
    drawing_memory: float | None
    """GB of tensors at the peak of drawing."""
    drawing_planned: float
    first: float
    """Seconds of the first update, warming up and compiling included."""


def ways(model: Released, *, checkpointing: bool) -> list[Way]:
    """The first is the plain one, and each other switches one thing or adds one."""
    other = f"{'no ' if checkpointing else ''}checkpointing"
    compiling, laid = {"model.compile": True}, {"model.channels_last": True}
    found = [
        Way("bfloat16", {}),
        Way("bfloat16, compiled", compiling),
        Way(f"bfloat16, {other}", {"parameters.checkpointing": not checkpointing}),
        Way("float32", {"model.precision": "float32"}),
    ]
    if model.network[0].startswith("UNet"):
        found[2:2] = [
            Way("bfloat16, channels last", laid),
            Way("bfloat16, channels last, compiled", {**laid, **compiling}),
        ]
    return found


def run_of(model: Released, directory: Path, settings: Mapping[str, Any], *, gpu: bool) -> RunConfig:
    """A run of a model whose directory this is."""
    prompts = directory.parent / "prompts.txt"
    prompts.write_text("\n".join(f"{PROMPT}{number}" for number in range(64)))
    tree: dict[str, Any] = {
        **RUN,
        "model": {"path": str(directory), "size": 512, "precision": "bfloat16"},
        "prompts": {"training": str(prompts), "held_out": None},
        "cluster": {**RUN["cluster"], "worker_gpus": float(gpu), "actor_gpus": float(gpu)},
    }
    for section, values in model.settings.items():
        tree[section] = {**tree[section], **values}
    tree = validate(tree).canonical()
    for path, value in settings.items():
        put(tree, path, value)
    return validate(tree)


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """Pipelines are opened with the networks that their configurations describe, freshly initialised, in place of weights."""

    def opened(
        model: Model,
        *,
        part: str | None = None,
        network: torch.dtype = torch.float32,
        without: Collection[str] = (),
        hollow: bool = False,
    ) -> Any:
        assert part is None and not hollow, "only LoRA is trained here, and needs no second copy"
        pipeline = outlined(model, network=network)
        for name, shape in modules_of(pipeline).items():
            if name in without:
                made = None
            elif isinstance(shape, transformers.PreTrainedModel):
                made = type(shape).from_pretrained(model.path, subfolder=name, dtype=getattr(torch, model.precision))
            else:
                made = _initialised(shape, device)
            setattr(pipeline, name, made.eval().requires_grad_(False) if made is not None else None)
        return pipeline

    with patch.object(adapter, "load_pipeline", opened), patch.object(families, "check_model", pipeline_class):
        yield


def _initialised(shape: Any, device: torch.device) -> Any:
    """A network as `shape` describes it, made where it will be, in its type from the beginning."""
    kind = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with device:
            return type(shape).from_config(shape.config)
    finally:
        torch.set_default_dtype(kind)


class Bench:
    """One way to run a model, ready to be timed."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(0)
        with random_weights(device):
            policy = families.open_policy(config, device)
        assert isinstance(policy, PipelinePolicy)
        self.policy, self.network = policy, policy.trained.network
        self.optimizer = torch.optim.AdamW(policy.trainable().values(), lr=config.learn.learning_rate)
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.prompts = load_prompts(config.prompts)
        self.eager = not config.model.compile

    def draw(self, update: int) -> list[Rollouts]:
        """The rollouts of an update."""
        drawn = [
            sample(self.policy, block, self.config, version=0)
            for block in training_blocks(self.config, self.prompts, update)
        ]
        return [score(block, self.config) for block in drawn]

    def learn(self, update: int, rollouts: list[Rollouts]) -> None:
        """The optimiser steps of an update."""
        draw = np.random.default_rng(0)
        batches = {
            r.block.index: transitions(r, draw.normal(size=r.logp_NK.shape)) for r in rollouts if r.logp_NK is not None
        }
        learn(self.config, self.policy, self.optimizer, batches, update=update, accelerator=self.accelerator)

    def plain(self, update: int) -> None:
        """As many pictures from the pipeline's own call, decoded as rollouts are: in float32."""
        pipeline, steps = self.policy.pipeline, self.config.sampler.steps
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"guidance_scale": 1.0, "output_type": "latent"}
        options |= {name: self.policy.driver.arguments[name] for name in ("height", "width")}
        for block in training_blocks(self.config, self.prompts, update):
            with torch.no_grad(), self.policy._autocast():
                drawn = pipeline(list(block.prompt_of_N), num_inference_steps=steps, **options)
            self.policy.decode(drawn.images.float())

    def operations(self) -> tuple[int, int]:
        """Of a block's prediction, and of a microbatch's with its way back, without what checkpointing does again."""
        rows = min(self.config.learn.microbatch, self.config.rollouts.samples)
        x_N = torch.zeros(rows, *self.policy.latent_shape, device=self.device)
        t_N = self.policy.schedule.timesteps_K[0].expand(rows)
        prompts = [self.prompts.training[0].text] * rows
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            self.policy.predict(x_N, t_N, prompts)
        with FlopCounterMode(display=False) as both:
            self.policy.predict(x_N, t_N, prompts).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        again = forward.get_total_flops() if self.config.parameters.checkpointing else 0
        return forward.get_total_flops(), both.get_total_flops() - again

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """What work takes until its last kernel has ended."""
        self.wait()
        started = time.perf_counter()
        made = work()
        self.wait()
        return time.perf_counter() - started, made

    def wait(self) -> None:
        """Until all kernels have ended."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """GB of tensors since the last time."""
        if self.device.type != "cuda":
            return None
        most = torch.cuda.max_memory_allocated() / GB
        torch.cuda.reset_peak_memory_stats()
        return most

    def outside(self) -> float:
        """Seconds of drawing an update's pictures that are neither the network's nor decoding's."""
        with self.network_time() as taken:
            whole, rollouts = self.seconds(lambda: self.draw(2))
        zeros = torch.zeros(self.config.rollouts.samples, *self.policy.latent_shape, device=self.device)
        decoding, _ = self.seconds(lambda: [self.policy.decode(zeros) for _ in rollouts])
        return max(0.0, whole - decoding - sum(ask() for ask in taken))

    @contextmanager
    def network_time(self) -> Iterator[list[Callable[[], float]]]:
        """Seconds of every forward pass of the network within, each to be asked for when all is done."""
        taken: list[Callable[[], float]] = []
        begun: list[Any] = []

        def now() -> Any:
            if self.device.type != "cuda":
                return time.perf_counter()
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        def before(*_: object) -> None:
            begun.append(now())

        def after(*_: object) -> None:
            first, last = begun.pop(), now()
            taken.append(lambda: first.elapsed_time(last) / 1000 if self.device.type == "cuda" else last - first)

        hooks = [self.network.register_forward_pre_hook(before), self.network.register_forward_hook(after)]
        try:
            yield taken
        finally:
            for hook in hooks:
                hook.remove()


def opened_and_measured(
    config: RunConfig, device: torch.device, planned: Plan, operations: tuple[int, int] | None, peak: float | None
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The numbers of a row, and operations if they were not known. What was opened goes when this ends, out of memory or not."""
    bench = Bench(config, device)
    operations = operations or bench.operations()
    return measure(bench, planned, operations, peak), operations


def measure(bench: Bench, planned: Plan, operations: tuple[int, int], peak: float | None) -> dict[str, Any]:
    """Warm up with one update, and time the next: the numbers of a row."""
    config = bench.config
    pictures, steps, window = (
        config.rollouts.prompts * config.rollouts.samples,
        config.sampler.steps,
        config.sampler.window,
    )
    first, _ = bench.seconds(lambda: bench.learn(0, bench.draw(0)))
    bench.plain(0)
    bench.peak()
    drawing, rollouts = bench.seconds(lambda: bench.draw(1))
    drawing_memory = bench.peak()
    learning, _ = bench.seconds(lambda: bench.learn(1, rollouts))
    memory = bench.peak()
    plain, _ = bench.seconds(lambda: bench.plain(1))
    forward, both = operations
    points = pictures * (window.size if window else steps)
    rows = min(config.learn.microbatch, config.rollouts.samples)
    learner, actor = planned.processes
    kept = learner.device["moments"]  # one process does both here, and has them while it draws
    return {
        "rollout": pictures / drawing,
        "plain": pictures / plain,
        "update": learning,
        "loop": pictures / (drawing + learning),
        "rollout_share": forward / rows * pictures * steps / drawing / peak if peak else None,
        "learn_share": both / rows * points / learning / peak if peak else None,
        "outside": bench.outside() if bench.eager else None,
        "memory": memory,
        "planned": learner.total / GB,
        "drawing_memory": drawing_memory,
        "drawing_planned": (actor.total + kept) / GB,
        "first": first,
    }


HEAD = (
    f"{'model':11}{'way':36}{'rollout':>9}{'plain':>8}{'ratio':>7}{'update':>8}{'loop':>8}{'share of peak':>15}{'outside':>9}"
    f"{'learn GB':>16}{'draw GB':>16}{'first':>8}\n"
    f"{'':47}{'img/s':>9}{'img/s':>8}{'':7}{'s':>8}{'img/s':>8}{'draw':>8}{'learn':>7}{'s':>9}{'is':>8}{'plan':>8}{'is':>8}{'plan':>8}{'s':>8}"
)


def line(row: Row) -> str:
    """A row of the table."""

    def said(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        f"{row.model:11}{row.way:36}{row.rollout:9.3g}{row.plain:8.3g}{row.rollout / row.plain:7.2f}{row.update:8.2f}{row.loop:8.3g}"
        f"{said(row.rollout_share, '.0%'):>8}{said(row.learn_share, '.0%'):>7}{said(row.outside, '.2f'):>9}"
        f"{said(row.memory, '.1f'):>8}{row.planned:8.1f}{said(row.drawing_memory, '.1f'):>8}{row.drawing_planned:8.1f}{row.first:8.1f}"
    )


def rows_of(names: Collection[str], device: torch.device, *, dry: bool, seconds: float) -> Iterator[Row | str]:
    """Rows, and sentences about those that are left out."""
    began, memory, peak = time.monotonic(), None, None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        called = torch.cuda.get_device_name(device)
        peak = next((flops for name, flops in PEAK_FLOPS.items() if name in called), None)
    for place, name in enumerate(names):
        model = MODELS[name]
        share_ends = began + seconds * (place + 1) / len(names)  # what one model does not use is the next one's
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            write(model, directory, tiny=dry)
            small, gpu = DRY if dry else {}, device.type == "cuda"
            checkpointing = run_of(model, directory, small, gpu=gpu).parameters.checkpointing
            operations: tuple[int, int] | None = None
            longest = 0.0
            for way in ways(model, checkpointing=checkpointing):
                started, what = time.monotonic(), f"{name}, {way.name}"
                if started + longest > share_ends:
                    yield f"{what}: no time left"
                    continue
                config = run_of(model, directory, {**small, **way.settings}, gpu=gpu)
                planned = plan(config)
                if memory is not None and max(p.total for p in planned.processes) > memory:
                    yield f"{what}: not run, planned {planned.fullest / GB:.0f} GB are more than there is"
                    continue
                try:
                    numbers, operations = opened_and_measured(config, device, planned, operations, peak)
                    yield Row(model=name, way=way.name, **numbers)
                except torch.cuda.OutOfMemoryError:
                    yield f"{what}: out of memory, though {planned.fullest / GB:.0f} GB were planned"
                torch._dynamo.reset()
                gc.collect()
                if gpu:
                    torch.cuda.empty_cache()
                longest = max(longest, time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the suite is on one GPU, and how much it holds.")
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL", help=", ".join(MODELS)
    )
    parser.add_argument("--seconds", type=float, default=400, help="for all rows together")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked cuda")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny networks on CPUs: whether the script works, and nothing else"
    )
    options = parser.parse_args()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    if not (options.dry_run or torch.cuda.is_available()):
        sys.exit("expected a GPU with CUDA, found none: --dry-run tries the script on CPUs")
    device = torch.device("cpu" if options.dry_run else "cuda")
    if options.dry_run:  # whether the operations can be collected: to generate code for them takes minutes
        compiled.BACKEND = "eager"
    what = "a dry run on CPUs: these numbers mean nothing" if options.dry_run else torch.cuda.get_device_name()
    print(f"{what}; torch {torch.__version__}, diffusers {diffusers.__version__}\n{HEAD}", flush=True)
    rows = []
    for found in rows_of(options.models, device, dry=options.dry_run, seconds=options.seconds):
        print(line(found) if isinstance(found, Row) else found, flush=True)
        if isinstance(found, Row):
            rows.append(asdict(found))
    if options.json:
        options.json.write_text(json.dumps({"device": what, "rows": rows}, indent=1) + "\n")
    if not (options.no_tests or options.dry_run):
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda"]
        sys.exit(subprocess.run(tests, check=False, cwd=Path(__file__).resolve().parents[1]).returncode)


if __name__ == "__main__":
    main()
