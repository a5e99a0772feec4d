"""Seconds of training until a goal, in the suite and in TRL: `python jobs/bench_goal.py --peer .venv-peer/bin/python`.

The goal is a strict pass on held-out prompts that is up by `--goal`, with a 95 % interval of the difference above 0. The suite trains
with a recipe, TRL with its own DDPO on the recipe's network, prompts, sampler and batches. Epochs of both sides alternate; every few
epochs the suite draws the same held-out prompts with the same noise for either, which is not timed. docs/benchmarks.md says what the
numbers mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, it finds jobs.bench_peer

from jobs.bench_peer import ALIKE, Own, Peer, both_sides
from raysuite.config import RunConfig, load
from raysuite.families import open_policy
from raysuite.kernel.stats import Interval, paired_difference
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.collect import LocalCollector
from raysuite.stages.prompts import evaluation_blocks, load_prompts

REWARD = "scenes_strict"
SIDES = ("suite", "trl")
CHOSEN = {"train_learning_rate": 2.0e-4}
"""Fields of TRL's DDPOConfig: what came furthest of what was tried at seed 0 (docs/benchmarks.md)."""


@dataclass
class Progress:
    """How far one side of one seed has come."""

    epochs: int = 0
    seconds: float = 0.0
    """Of training, as a clock shows them."""
    processor: float = 0.0
    """Of training, of all cores together: they depend less on what else runs."""
    reached: bool = False


class Looks:
    """The suite's own evaluation: held-out prompts, the same with the same noise at every look."""

    def __init__(self, config: RunConfig) -> None:
        """Take the prompts and pictures of a run's last evaluation."""
        self.config, self.policy = config, open_policy(config, torch.device("cpu"))
        self.collector = LocalCollector(self.policy, config)
        self.blocks = evaluation_blocks(config, load_prompts(config.prompts), 0, final=True)["held_out"]
        self.prompt_of_N = np.concatenate([block.prompt_ids for block in self.blocks])
        self.start_N = self.passed(self.policy.weights())

    def passed(self, weights: np.ndarray) -> np.ndarray:
        """Which pictures are right, (N,) of 0 and 1."""
        return np.concatenate([done.scores[REWARD] for done in self.collector.start(self.blocks, weights, 0)])

    def gain(self, weights: np.ndarray) -> Interval:
        """How much more often than before training."""
        rng = numpy_generator(seed=self.config.evaluation.seed, stage=Stage.BOOTSTRAP)
        return paired_difference(self.start_N, self.passed(weights), self.prompt_of_N, rng)

    def read(self, file: Path) -> np.ndarray:
        """Weights that a peer saved, as the suite has them."""
        state = safetensors.torch.load_file(file)
        return np.concatenate([state[name].numpy().ravel() for name in self.policy.trainable()])


def race(
    own: Own, peer: Peer, looks: Looks, *, sides: Sequence[str], goal: float, epochs: int, every: int
) -> dict[str, Progress]:
    """Train each side until the goal or the last epoch."""
    train: Mapping[str, Callable[[], dict[str, Any]]] = {"suite": own.epoch, "trl": peer.epoch}
    progress = {side: Progress() for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unet.safetensors"

        def weights(side: str) -> np.ndarray:
            if side == "suite":
                return own.weights()
            peer.save(file)
            return looks.read(file)

        if not all(np.array_equal(weights(side), looks.policy.weights()) for side in SIDES):
            raise SystemExit("bench_goal: expected both sides to begin with the weights that are evaluated")
        for epoch in range(1, epochs + 1):
            for side in list(sides)[:: 1 if epoch % 2 else -1]:
                done = progress[side]
                if done.reached:
                    continue
                answer = train[side]()
                done.epochs = epoch
                done.seconds += answer["seconds"]
                done.processor += answer["processor"]
                row = f"{side:>8}{epoch:8}{done.seconds:12.1f}{done.processor:12.1f}{answer['reward']:10.3f}"
                if epoch % every == 0 or epoch == epochs:
                    gain = looks.gain(weights(side))
                    done.reached = gain.estimate >= goal and gain.low > 0
                    row += f"   {gain.estimate:+.3f} [{gain.low:.3f}, {gain.high:.3f}]{'  goal' * done.reached}"
                print(row, flush=True)
            if all(done.reached for done in progress.values()):
                break
    return progress


def times_sooner(progress: Mapping[str, Progress], clock: str) -> tuple[str, float] | None:
    """TRL's seconds over the suite's, and whether that is the ratio or a bound of it; None where neither arrived."""
    suite, trl = progress["suite"], progress["trl"]
    if not (suite.reached or trl.reached):
        return None
    kind = "" if suite.reached and trl.reached else "at least " if suite.reached else "at most "
    return kind, getattr(trl, clock) / getattr(suite, clock)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter of an environment with TRL")
    parser.add_argument("--goal", type=float, default=0.08, help="how much higher the strict pass must be")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--epochs", type=int, default=12, help="after which a side has not arrived")
    parser.add_argument("--every", type=int, default=2, help="epochs from one look to the next")
    parser.add_argument("--recipe", default="scenes-forward-rl", help="the suite's")
    parser.add_argument("--peer-recipe", default="scenes-ddpo", help="TRL's, as far as TRL can follow it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting of the recipe; repeatable"
    )
    parser.add_argument(
        "--peer-set", action="append", default=[], metavar="NAME=JSON", help="a field of TRL's DDPOConfig; repeatable"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="one alone, to choose its settings")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each side")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    overrides = dict(setting.split("=", 1) for setting in options.set)
    fields = CHOSEN | {name: json.loads(text) for name, text in (given.split("=", 1) for given in options.peer_set)}
    results: dict[int, dict[str, Progress]] = {}
    looks: Looks | None = None
    print(f"{'side':>8}{'epoch':>8}{'seconds':>12}{'processor':>12}{'reward':>10}   strict pass since the beginning")
    for seed in options.seeds:
        of_run = {"seed": str(seed), "updates": str(options.epochs), "budget": "null"}
        config = load(options.recipe, overrides | of_run)
        peer_config = load(options.peer_recipe, ALIKE | of_run)
        looks = looks or Looks(config)  # nothing of it depends on the seed
        with both_sides(
            config,
            peer_config,
            options.peer,
            epochs=options.epochs,
            threads=options.threads,
            peer_settings=fields,
        ) as (own, peer):
            results[seed] = race(
                own, peer, looks, sides=options.sides, goal=options.goal, epochs=options.epochs, every=options.every
            )
        if options.json:
            found = {of: {side: asdict(done) for side, done in sides.items()} for of, sides in results.items()}
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    for seed, progress in results.items():
        for side, done in progress.items():
            within = "goal after" if done.reached else "not within"
            print(
                f"seed {seed}, {side}: {within} {done.seconds:.0f} s ({done.processor:.0f} of processors), {done.epochs} epochs"
            )
    if len(options.sides) < len(SIDES):
        return
    for clock in ("seconds", "processor"):
        ratios = [times_sooner(progress, clock) for progress in results.values()]
        told = ", ".join("neither arrived" if found is None else f"{found[0]}{found[1]:.2f}" for found in ratios)
        print(f"{clock} of training to the goal, TRL / suite, by seed: {told}; target at least 1.5")


if __name__ == "__main__":
    main()
