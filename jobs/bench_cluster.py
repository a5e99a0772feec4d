"""What Ray costs, and what more actors bring: `python jobs/bench_cluster.py [scaling] [weights] [judges] [run] [--turns N]`.

All but the last draw with a double of a model that takes a fixed time for every prediction, so that two cores can tell what
sixteen actors lose to each other and to the learner's process. docs/benchmarks.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, it finds jobs.bench

from jobs.bench import Figure, ratio
from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.cluster.judges import Names, running_judges
from raysuite.cluster.session import ENVIRONMENT, connect, killed_at_the_end
from raysuite.config import RunConfig, load
from raysuite.cpus import usable_cpus
from raysuite.families.toy import ToyPolicy, open_toy
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.types import Block

ACTORS = (1, 2, 4, 8, 16)
BLOCKS = 6
"""Blocks an actor draws in a turn of `scaling`."""
STEPS, SECONDS = 10, 0.05
"""Predictions of a block, and what each takes the double."""
UPDATES = (4, 8, 16)
"""Blocks of an update of `judges`."""
PIECES = 10
"""Parameters among which the double's weights are divided."""
RUN = {
    "updates": "6",
    "rollouts.prompts": "4",
    "learn.minibatches": "1",
    "evaluation.every": "100",
    "evaluation.prompts": "2",
    "evaluation.final_samples": "1",
    "checkpoints.every": "100",
}
"""scenes-ddpo with updates of a few seconds."""
SIDES = {"ray": 1, "alone": 0}
"""Actors of each side of `run`."""


class Double(ToyPolicy):
    """The toy model, asleep for a while at every prediction, with megabytes of trained weights that it does not use."""

    def __init__(self, config: RunConfig, megabytes: int) -> None:
        super().__init__(schedule=open_toy(config.sampler).schedule)
        numbers = torch.zeros(PIECES, megabytes * 10**6 // 4 // PIECES)
        self.unused = {f"piece {n}": torch.nn.Parameter(numbers[n].clone()) for n in range(PIECES)}

    def predict(self, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], **who: Any) -> Tensor:
        """What the toy model predicts, later."""
        time.sleep(SECONDS)
        return super().predict(x_N, t_N, prompts_N, **who)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The weights that it does not use."""
        return self.unused


class DoubleActor(RolloutActor):
    """A rollout actor with a double in place of its model."""

    def __init__(self, config: RunConfig, megabytes: int, judges: Names | None = None) -> None:
        self._megabytes = megabytes
        super().__init__(config, threads=1, judges=judges)

    def _open(self, texts: Path | None) -> Double:
        return Double(self._config, self._megabytes)


def slow(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A reward that is as slow as drawing."""
    time.sleep(STEPS * SECONDS)
    return np.zeros(len(images))


def drawing(blocks: int, **changes: object) -> tuple[RunConfig, list[Block]]:
    """Sixteen actors, and so many blocks for them."""
    settings = {
        "sampler.steps": STEPS,
        "rollouts.samples": 4,
        "cluster.actors": max(ACTORS),
        "cluster.actor_cpus": usable_cpus() / max(ACTORS),
        **changes,
    }
    config = load("toy-ddpo", {path: str(value) for path, value in settings.items()})
    prompts = load_prompts(config.prompts)
    updates = (training_blocks(config, prompts, update) for update in count())
    return config, list(islice(chain.from_iterable(updates), blocks))


def scaling(turns: int) -> list[Figure]:
    """Blocks a second and actor, of many actors over those of one."""
    config, blocks = drawing(BLOCKS * max(ACTORS))
    weights, taken = Double(config, 0).weights(), defaultdict[int, list[float]](list)
    connect()
    with killed_at_the_end(start_actors(config.cluster, DoubleActor, config, 0)) as actors:
        list(RayCollector(actors).start(blocks[: len(actors)], weights, 0))  # all are there
        for turn in range(turns):
            for number in ACTORS[:: -1 if turn % 2 else 1]:
                started = time.perf_counter()
                list(RayCollector(actors[:number]).start(blocks[: BLOCKS * number], weights, 0))
                taken[number].append(time.perf_counter() - started)
    figures = [
        ratio(f"blocks/s and actor: {n} actors / 1", taken[1], taken[n], "at least 0.9" if n == 16 else "")
        for n in ACTORS[1:]
    ]
    ideal = BLOCKS * STEPS * SECONDS
    return [
        *figures,
        *(Figure(f"  seconds beyond the double's {ideal:g}: {n}", [t - ideal for t in taken[n]]) for n in ACTORS),
    ]


def weights(turns: int) -> list[Figure]:
    """Seconds from an update to the first pictures of the new policy, and to those of the last of sixteen actors."""
    config, blocks = drawing(max(ACTORS))
    figures, drawn = [], STEPS * SECONDS
    connect()
    for megabytes in (10, 200):
        flat, first, last = Double(config, megabytes).weights(), list[float](), list[float]()
        with killed_at_the_end(start_actors(config.cluster, DoubleActor, config, megabytes)) as actors:
            collector = RayCollector(actors)
            for version in range(turns + 1):  # the first finds actors that have only just started
                flat += 1
                started = time.perf_counter()
                times = [time.perf_counter() - started - drawn for _ in collector.start(blocks, flat, version)]
                first.append(times[0])
                last.append(times[-1])
        name = f"{megabytes} MB to {len(actors)} actors, beyond the {drawn:g} s that pictures take"
        figures += [Figure(f"{name}: first, s", first[1:]), Figure("  all, s", last[1:])]
    return figures


def judges(turns: int) -> list[Figure]:
    """Seconds of an update's pictures with a reward as slow as drawing over those of drawing alone, one process for each."""
    plain, blocks = drawing(max(UPDATES), **{"cluster.actors": 1})
    entry, judge = "[{name: 'jobs.bench_cluster:slow'}]", "{'jobs.bench_cluster:slow': {cpus: 0.1}}"
    beside, judged = ({"cluster.actors": 1, "rewards": entry, "cluster.judges": of} for of in ("{}", judge))
    configs = {
        "alone": plain,
        "in the drawing process": drawing(1, **beside)[0],
        "with a judge": drawing(1, **judged)[0],
    }
    weights, taken = Double(plain, 0).weights(), defaultdict[tuple[str, int], list[float]](list)
    connect()
    with running_judges(configs["with a judge"]) as names, ExitStack() as stack:
        collectors = {}
        for side, config in configs.items():
            arguments = (config, 0, names if side == "with a judge" else None)
            actors = stack.enter_context(killed_at_the_end(start_actors(config.cluster, DoubleActor, *arguments)))
            collectors[side] = RayCollector.of(config, actors)
        for collector in collectors.values():
            list(collector.start(blocks[:1], weights, 0))  # all are there
        for turn, number in product(range(turns), UPDATES):
            for side in list(collectors)[:: -1 if turn % 2 else 1]:
                started = time.perf_counter()
                list(collectors[side].start(blocks[:number], weights, 0))
                taken[side, number].append(time.perf_counter() - started)
    return [
        ratio(
            f"seconds of {number} blocks: {side} / drawing alone",
            taken[side, number],
            taken["alone", number],
            "at most 1.15" if side == "with a judge" else "",
        )
        for number, side in product(UPDATES, list(configs)[:0:-1])
    ]


def run(turns: int) -> list[Figure]:
    """Seconds of an update of a run through Ray, with one actor, over those of the same run in one process, without."""
    start, update = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for side, actors in list(SIDES.items())[:: -1 if turn % 2 else 1]:
                started, ends = _timed(Path(folder) / f"{side}-{turn}", actors)
                start[side].append(started)
                update[side].append((ends[-1] - ends[0]) / (len(ends) - 1))
    return [
        ratio("seconds of an update: through Ray / in one process", update["ray"], update["alone"], "at most 1.10"),
        *(Figure(f"  seconds of an update: {side}", update[side]) for side in update),
        *(Figure(f"  seconds from the command to the first evaluation: {side}", start[side]) for side in start),
    ]


def _timed(directory: Path, actors: int) -> tuple[float, list[float]]:
    """When a run has evaluated the model as it came, and when each update ended, in seconds after the command."""
    settings = [f"--set={path}={value}" for path, value in {**RUN, "cluster.actors": actors}.items()]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "raysuite.cli", "train", "scenes-ddpo", "--out", str(directory), *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    file, first, ends = directory / "metrics.jsonl", 0.0, list[float]()
    while process.poll() is None:
        time.sleep(0.02)
        text = file.read_text() if file.exists() else ""
        now = time.perf_counter() - began
        first = first or (now if text else 0.0)
        ends += [now] * (text.count('"budget/') - len(ends))
    assert process.returncode == 0 and len(ends) == int(RUN["updates"]), f"the run with cluster.actors={actors} failed"
    return first, ends


PARTS = {"scaling": scaling, "weights": weights, "judges": judges, "run": run}


def main() -> None:
    parser = argparse.ArgumentParser(description="What Ray costs, and what more actors bring.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    print(f"{'':64}{'median':>8}  {'min to max':16}{'n':>3}  fastest  target")
    figures: list[Figure] = []
    for part in options.parts or PARTS:
        figures += (new := PARTS[part](options.turns))
        print(*new, sep="\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
