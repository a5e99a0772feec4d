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
from raysuite.stages import checkpoint, stored
from raysuite.stages.checkpoint import State
from raysuite.stages.collect import Collector
from raysuite.stages.evaluate import record
from raysuite.stages.files import RunDirectory, write_json
from raysuite.stages.learn import Batch, Metrics, advantages, blocks_of_worker, learn, minibatches, transitions
from raysuite.stages.preference_set import PreferenceSet
from raysuite.stages.preferences import compared, rankings, rows_of_set
from raysuite.stages.prompts import PromptSet, evaluation_blocks, load_prompts, training_blocks
from raysuite.stages.stored import ReplayCollector
from raysuite.types import Block, Cost, Rollouts


class Training:
    """One worker's part of a run, between one update and the next."""

    def __init__(
        self, config: RunConfig, directory: Path, policy: Policy, collector: Collector, accelerator: Accelerator
    ) -> None:
        self.config, self.policy, self.collector, self.accelerator = config, policy, collector, accelerator
        self.run = RunDirectory(directory)
        replay, offline = config.rollouts.replay, config.preferences.source
        self.source = ReplayCollector(Path(replay)) if replay else collector
        self.set = PreferenceSet(Path(offline)) if offline else None
        if self.set:
            self.set.check(config, policy.latent_shape)
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
        if config.reference.refresh:
            self.state.reference = policy.weights()
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
        while not self.state.finished(self.config):
            self.update()
            evaluate = self.state.finished(self.config) or self.state.updates % self.config.evaluation.every == 0
            if evaluate:
                self.evaluate()
            if evaluate or self.state.updates % self.config.checkpoints.every == 0:
                self.save()
        if self.first:
            self.run.progress(phase="done", update=self.state.updates, updates=self.state.updates)

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
            blocks, told, costs = self.from_set(number) if self.set else self.from_rollouts(number)
        if self.first:
            self.say("learn")
        with self.timed("learn"):
            metrics, cost = learn(
                self.config, self.policy, self.optimizer, blocks, update=number, accelerator=self.accelerator
            )
        self.state.training = sum([*self.gather([cost]), *costs], self.state.training)
        self.state.updates += 1
        self.state.tracker = self.tracker.state()
        oldest = max(0, self.state.updates - self.config.rollouts.staleness)
        self.state.behaviour = {v: w for v, w in self.state.behaviour.items() if v >= oldest}
        self.state.behaviour[self.state.updates] = self.policy.weights()
        self.refresh_reference()
        if self.first:
            spent = {"budget/network_evaluations": self.state.training.network_evaluations}
            self.run.log(number, {**told, **metrics, **spent})
            self.write_ledger()

    def from_rollouts(self, number: int) -> tuple[dict[int, Batch], Metrics, list[Cost]]:
        """This worker's blocks as the objective sees them, what there is to tell of all, and what they cost."""
        rollouts = self.collect(number)
        if self.config.rollouts.keep:
            for done in rollouts:
                stored.keep(self.run.path, done)
        compares = self.config.built_objective.consumes == "preferences"
        ranked = {r.block.index: rankings(self.config, r.block, r.reward_N) for r in rollouts} if compares else {}
        summaries = self.gather([_summary(r) for r in rollouts])
        told, costs = _reward_metrics(summaries), [s["cost"] for s in summaries]
        if compares:
            counts = self.gather([(len(indices), ties) for indices, ties in ranked.values()])
            told["train/rankings"], told["train/ties"] = (float(sum(column)) for column in zip(*counts, strict=True))
            return {r.block.index: compared(r, ranked[r.block.index][0]) for r in rollouts}, told, costs
        advantage = advantages(
            self.config,
            {s["block"]: s["credit_NK"] for s in summaries},
            {s["block"]: s["prompts_N"] for s in summaries},
            self.tracker,
        )
        return {r.block.index: transitions(r, advantage[r.block.index]) for r in rollouts}, told, costs

    def from_set(self, number: int) -> tuple[dict[int, Batch], Metrics, list[Cost]]:
        """The same from an off-line preference set: nothing is drawn, so it costs nothing."""
        assert self.set is not None
        rank, workers = self.accelerator.process_index, self.accelerator.num_processes
        blocks: dict[int, Batch] = {}
        for number_of_block in (b for members in minibatches(self.config, number) for b in members[rank::workers]):
            rows = rows_of_set(self.config, len(self.set), update=number, block=number_of_block)
            blocks[number_of_block] = self.set.rows(rows)
            self.policy.remember(self.set.texts(rows))
        return blocks, {"train/rankings": float(self.config.rollouts.prompts)}, []

    def refresh_reference(self) -> None:
        """Let the reference follow the policy, if it is time."""
        spec = self.config.reference
        if self.state.reference is None or self.state.updates % spec.refresh:
            return
        old, new = self.state.reference, self.policy.weights()
        self.state.reference = spec.decay * old + (1 - spec.decay) * new if spec.decay else new
        self.policy.set_reference(self.state.reference)

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
                self.pending[update] = self.source.start(mine, self.state.behaviour[version], version)
        rollouts = []
        total = self.config.rollouts.prompts * self.config.rollouts.samples // self.accelerator.num_processes
        if self.first:
            self.say("rollout", images=0, images_total=total)
        for done in self.pending.pop(number):
            expected = max(0, number - self.config.rollouts.staleness)
            if done.version != expected and self.source is self.collector:
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
        final = number == 0 or self.state.finished(self.config)
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
        done, expected = self.state.updates - self.started_at, self.state.expected_updates(self.config)
        left = None
        if done and expected is not None:
            left = (time.monotonic() - self.started) / done * max(0, expected - self.state.updates)
        self.run.progress(phase=phase, update=self.state.updates, updates=expected, seconds_left=left, **values)

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
