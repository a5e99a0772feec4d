"""The run: rollouts for this update, credit, objective, gradient, update, new weights; now and then an evaluation.

Who waits for whom, with rollouts.staleness = 0 (1 lets the next row's rollouts begin before this row's learning):

    actors    | draw and score update u |                | draw and score u + 1 |
    learner   |        waits            | learn update u |        waits         |

Every learner worker runs this same function on its share of the blocks; only the first writes files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.kernel.credit import PromptTracker
from raysuite.stages import checkpoint
from raysuite.stages.checkpoint import State
from raysuite.stages.collect import Collector
from raysuite.stages.evaluate import record
from raysuite.stages.files import RunDirectory, write_json
from raysuite.stages.learn import advantages, blocks_of_worker, learn, transitions
from raysuite.stages.prompts import PromptSet, evaluation_blocks, load_prompts, training_blocks
from raysuite.types import Block, Cost, Rollouts


class Training:
    """One worker's part of a run, between one update and the next."""

    def __init__(
        self, config: RunConfig, directory: Path, policy: Policy, collector: Collector, accelerator: Accelerator
    ) -> None:
        self.config, self.policy, self.collector, self.accelerator = config, policy, collector, accelerator
        self.run = RunDirectory(directory)
        self.prompts: PromptSet = load_prompts(config.prompts)
        learning = config.learn
        self.optimizer = torch.optim.AdamW(
            policy.trainable().values(),
            lr=learning.learning_rate,
            betas=learning.betas,
            eps=learning.epsilon,
            weight_decay=learning.weight_decay,
        )
        self.tracker = PromptTracker.empty(size=config.credit.tracker_size, minimum=config.credit.tracker_minimum)
        self.state = State(behaviour={0: policy.weights()})
        self.pending: dict[int, Iterator[Rollouts]] = {}
        self.started, self.started_at = time.monotonic(), 0

    @property
    def first(self) -> bool:
        """Whether this worker writes files."""
        return bool(self.accelerator.is_main_process)

    def train(self) -> None:
        """Go on from the last checkpoint to the last update."""
        self.resume()
        if self.state.updates == 0:
            self.evaluate()
        while self.state.updates < self.config.updates:
            self.update()
            done = self.state.updates == self.config.updates
            evaluate = done or self.state.updates % self.config.evaluation.every == 0
            if evaluate:
                self.evaluate()
            if evaluate or self.state.updates % self.config.checkpoints.every == 0:
                self.save()
        if self.first:
            self.run.progress(phase="done", update=self.state.updates, updates=self.config.updates)

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and drop what was written after it."""
        found = checkpoint.completed(self.run.path / "checkpoints")
        if found:
            self.state = checkpoint.load(found[-1], self.policy, self.optimizer)
            self.tracker.restore(self.state.tracker)
        self.accelerator.wait_for_everyone()
        if self.first:
            self.run.rewind(self.state.updates if found else -1)
        self.started_at = self.state.updates

    def update(self) -> None:
        """One update, from rollouts to new weights."""
        number = self.state.updates
        with self.timed("rollout"):
            rollouts = self.collect(number)
            summaries = self.gather([_summary(r) for r in rollouts])
        if self.first:
            self.say("learn")
        with self.timed("learn"):
            advantage = advantages(
                self.config,
                {s["block"]: s["credit_NK"] for s in summaries},
                {s["block"]: s["prompts_N"] for s in summaries},
                self.tracker,
            )
            blocks = {r.block.index: transitions(r, advantage[r.block.index]) for r in rollouts}
            metrics, cost = learn(
                self.config, self.policy, self.optimizer, blocks, update=number, accelerator=self.accelerator
            )
        costs = self.gather([cost]) + [s["cost"] for s in summaries]
        self.state.training = sum(costs, self.state.training)
        self.state.updates += 1
        self.state.tracker = self.tracker.state()
        oldest = max(0, self.state.updates - self.config.rollouts.staleness)
        self.state.behaviour = {v: w for v, w in self.state.behaviour.items() if v >= oldest}
        self.state.behaviour[self.state.updates] = self.policy.weights()
        if self.first:
            self.run.log(
                number,
                {
                    **_reward_metrics(summaries),
                    **metrics,
                    "budget/network_evaluations": self.state.training.network_evaluations,
                },
            )
            self.write_ledger()

    def collect(self, number: int) -> list[Rollouts]:
        """This worker's rollouts of an update; rollouts of later updates may begin too, as far as staleness lets them."""
        last = min(number + self.config.rollouts.staleness, self.config.updates - 1)
        for update in range(number, last + 1):
            if update not in self.pending:
                version = max(0, update - self.config.rollouts.staleness)
                blocks = training_blocks(self.config, self.prompts, update)
                mine = blocks_of_worker(
                    self.config, blocks, update, self.accelerator.process_index, self.accelerator.num_processes
                )
                self.pending[update] = self.collector.start(mine, self.state.behaviour[version], version)
        rollouts = []
        total = self.config.rollouts.prompts * self.config.rollouts.samples // self.accelerator.num_processes
        if self.first:
            self.say("rollout", images=0, images_total=total)
        for done in self.pending.pop(number):
            expected = max(0, number - self.config.rollouts.staleness)
            if done.version != expected:
                raise RuntimeError(f"asked for rollouts of policy version {expected}, got {done.version}")
            rollouts.append(done)
            if self.first:
                self.say("rollout", images=sum(r.block.size for r in rollouts), images_total=total)
        return rollouts

    def evaluate(self) -> None:
        """Evaluate the policy as part of the run, which pays for it."""
        with self.timed("evaluate"):
            self.state.evaluation = sum(self.measure(), self.state.evaluation)
        if self.first:
            self.write_ledger()

    def measure(self) -> list[Cost]:
        """Score the policy as it is, the first and the last time with more samples, and return what that cost."""
        number = self.state.updates
        final = number in (0, self.config.updates)
        split_of: list[tuple[str, Block]] = [
            (split, block)
            for split, blocks in evaluation_blocks(self.config, self.prompts, number, final=final).items()
            for block in blocks
        ]
        mine = split_of[self.accelerator.process_index :: self.accelerator.num_processes]
        splits = {(b.prompts, b.first_sample, b.index): split for split, b in mine}
        results: list[tuple[str, Rollouts]] = []
        total = sum(block.size for _, block in mine)
        for done in self.collector.start([b for _, b in mine], self.state.behaviour[number], number):
            block = done.block
            results.append((splits[block.prompts, block.first_sample, block.index], done))
            if self.first:
                self.say("evaluate", images=sum(r.block.size for _, r in results), images_total=total)
        results = self.gather(results)
        if self.first:
            self.run.log(number, record(self.run, number, results, seed=self.config.evaluation.seed))
        return [rollouts.cost for _, rollouts in results]

    def save(self) -> None:
        """Write a checkpoint."""
        with self.timed("checkpoint"):
            if self.first:
                checkpoint.save(
                    self.run.path / "checkpoints",
                    self.policy,
                    self.optimizer,
                    self.state,
                    keep=self.config.checkpoints.keep,
                )
            self.accelerator.wait_for_everyone()

    def write_ledger(self) -> None:
        """Write what the run has cost so far."""
        write_json(self.run.path / "ledger.json", self.state.ledger())

    def gather(self, items: list) -> list:
        """All workers' items, in the order of workers, on every worker."""
        return gather_object(items) if self.accelerator.num_processes > 1 else items

    def say(self, phase: str, **values: object) -> None:
        """Tell how far the run is and how long it will still take."""
        done = self.state.updates - self.started_at
        left = (
            None if not done else (time.monotonic() - self.started) / done * (self.config.updates - self.state.updates)
        )
        self.run.progress(
            phase=phase, update=self.state.updates, updates=self.config.updates, seconds_left=left, **values
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the seconds of a stage in the ledger."""
        started = time.monotonic()
        yield
        self.state.seconds[stage] += time.monotonic() - started


def _summary(rollouts: Rollouts) -> dict:
    """What every worker must know of a block: its rewards and credit, not its trajectories."""
    return {
        "block": rollouts.block.index,
        "prompts_N": rollouts.block.prompt_of_N,
        "credit_NK": rollouts.credit_NK,
        "reward_N": rollouts.reward_N,
        "scores": dict(rollouts.scores),
        "cost": rollouts.cost,
    }


def _reward_metrics(summaries: Sequence[dict]) -> dict[str, float]:
    reward_N = np.concatenate([s["reward_N"] for s in sorted(summaries, key=lambda s: s["block"])])
    metrics = {"train/reward": float(reward_N.mean()), "train/reward_std": float(reward_N.std())}
    for name in summaries[0]["scores"]:
        values = np.concatenate([s["scores"][name] for s in sorted(summaries, key=lambda s: s["block"])])
        metrics[f"train/reward/{name}"] = float(values.mean())
    return metrics
