"""The run: rollouts for this update, credit, objective, gradient, update, new weights; now and then an evaluation.

Who waits for whom, with rollouts.staleness = 0 (1 lets the next row's rollouts begin before this row's learning):

    actors    | draw and score update u |                | draw and score u + 1 |
    learner   |        waits            | learn update u |        waits         |

Every learner worker runs this same function on its share of the blocks; only the first writes files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.families.sharding import is_share
from raysuite.families.text import Answer
from raysuite.kernel.credit import PromptTracker, RewardScale
from raysuite.kernel.learning_rate import share_of_peak
from raysuite.stages import checkpoint, stored
from raysuite.stages.checkpoint import State
from raysuite.stages.collect import Collector
from raysuite.stages.evaluate import Judged, judge_rankings, judged_metrics, judged_rankings, record
from raysuite.stages.files import RunDirectory, trained_rewards, write_json
from raysuite.stages.guards import Watch
from raysuite.stages.learn import Batch, Metrics, advantages, blocks_of_worker, learn, minibatches, transitions
from raysuite.stages.optimizer import optimizer_of, set_rate
from raysuite.stages.preference_set import PreferenceSet, sets_of
from raysuite.stages.preferences import compared, rankings, rows_of_set
from raysuite.stages.prompts import PromptSet, evaluation_blocks, run_prompts, training_blocks
from raysuite.stages.rollout import check_noise
from raysuite.stages.stop import StopRequested
from raysuite.stages.stored import ReplayCollector
from raysuite.stages.summaries import rescale, reward_metrics, summary
from raysuite.stages.warm import blank, shapes, warm_learning
from raysuite.types import Block, Cost, Rollouts

AVERAGE, OLD = -2, -3
"""By `AVERAGE - 2 u` and `OLD - 2 u` those who draw know weights that are no version of the policy: after u updates the average of its
weights, and the old policy."""
T = TypeVar("T")


class Training:
    """One worker's part of a run, between one update and the next."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        policy: Policy,
        collector: Collector,
        accelerator: Accelerator,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open a run.

        Args:
            config: of the run.
            directory: of the run.
            policy: as it came.
            collector: draws rollouts.
            accelerator: knows the other workers.
            check: called now and then, where the work can be left; raises StopRequested to stop the run.
        """
        self.config, self.policy, self.collector, self.accelerator = config, policy, collector, accelerator
        self.run, self.check = RunDirectory(directory), check
        self.watch = Watch(config, self.run, latent_numbers=math.prod(policy.latent_shape))
        replay = config.rollouts.replay
        self.source = ReplayCollector(Path(replay)) if replay else collector
        if config.cluster.shard and accelerator.num_processes > 1:
            policy.shard()
        check_noise(config, policy.schedule)
        self.prompts: PromptSet = run_prompts(config, directory)
        self.tracker = PromptTracker.empty(size=config.credit.tracker_size, minimum=config.credit.tracker_minimum)
        self.scale = RewardScale()
        self.state = State(behaviour={0: policy.weights()})
        if config.reference.refresh:
            self.state.reference = policy.weights()
        if config.learn.ema is not None:
            self.state.ema = policy.weights()
        self.pending: dict[int, Iterator[Rollouts]] = {}
        self.started, self.started_at = time.monotonic(), 0
        self.began = self.started

    # what only learning needs: an evaluation opens none of it

    @cached_property
    def sets(self) -> tuple[PreferenceSet | None, PreferenceSet | None]:
        """The preference sets that are learned from and held out."""
        return sets_of(self.config, self.policy.latent_shape)

    @property
    def set(self) -> PreferenceSet | None:
        """What is learned from in place of rollouts."""
        return self.sets[0]

    @property
    def held_out(self) -> PreferenceSet | None:
        """What the objective judges at every evaluation of the run."""
        return self.sets[1]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW on what is trained."""
        return optimizer_of(self.config.learn, self.policy.trainable().values())

    @cached_property
    def snapshot(self) -> checkpoint.Snapshot:
        """What the optimiser remembered after the last update."""
        return checkpoint.Snapshot(self.optimizer, keep=self.first)

    @property
    def first(self) -> bool:
        """Whether this worker writes files."""
        return bool(self.accelerator.is_main_process)

    def train(self) -> None:
        """Go on from the last checkpoint to the last update.

        Raises:
            UserError: something that only the user can mend, or the run was told to stop.
        """
        try:
            self.resume()
            self.warm()
            if self.evaluates and not self.of_first(self.evaluated):
                self.evaluate()
                if self.state.updates:  # the run was stopped as this policy was evaluated, or ends with it after all
                    self.save()
            while not self.state.finished(self.config):
                self.update()
                if self.evaluates:
                    self.evaluate()
                if self.evaluates or self.state.updates % self.config.checkpoints.every == 0:
                    self.save()
        except StopRequested as request:
            raise UserError(self.stop(str(request))) from request
        if self.first:
            self.run.progress(
                phase="done",
                update=self.state.updates,
                updates=self.state.updates,
                warnings=list(self.watch.warnings.values()),
            )

    @property
    def evaluates(self) -> bool:
        """Whether the policy after this many updates is one that is evaluated."""
        updates = self.state.updates
        return self.state.final(self.config) or updates % self.config.evaluation.every == 0

    @property
    def evaluated(self) -> bool:
        """Whether it was, to the end."""
        return self.state.is_evaluated(self.config, self.run)

    def stop(self, who: str) -> str:
        """Put the last completed update on disk, and return the sentence with which the run ends.

        Of the update that was under way nothing is kept. Other workers are not waited for.
        """
        updates = self.state.updates
        if not updates:
            return f"stopped by {who} before the first update was done: the same command begins the run again"
        directory = self.run.path / "checkpoints"
        if directory / f"{updates:06d}" not in checkpoint.completed(directory):
            self.write_checkpoint()
        return (
            f"stopped by {who} after {updates} update{'' if updates == 1 else 's'}, of which checkpoints/{updates:06d} is the "
            "last: the same command goes on from there"
        )

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and drop what was written after it.

        Raises:
            UserError: a set is not there or of another model, or the optimiser lacks something.
        """
        _ = self.sets, self.snapshot  # found out before anything is drawn
        found = self.of_first(checkpoint.completed(self.run.path / "checkpoints"))
        if found:
            self.state = checkpoint.load(found[-1], self.policy, self.optimizer)
            self.state.moments = self.snapshot.take()
            self.tracker.restore(self.state.tracker)
            self.scale = RewardScale(self.state.scale)
        self.state.count_lost(self.run.ledger())
        if self.first:
            again = self.evaluates and self.state.evaluated != self.state.updates
            self.run.rewind(self.state.updates if found else -1, again=again)
        self.accelerator.wait_for_everyone()
        self.started_at = self.state.updates

    def warm(self) -> None:
        """Compile the network, where it is to be, for what will be drawn and learned: no stage's seconds have it in them."""
        if not self.config.model.compile:
            return
        if self.first:
            self.say("compile")
        with self.timed("compile"):
            drawing = self.collector.warm(shapes(self.config, self.prompts))
            if self.set:
                batch, *_ = self.from_set(self.state.updates)[0].values()
            else:
                batch = blank(self.policy, self.config, self.prompts)
            warm_learning(self.policy, self.config, batch)
            drawing()

    def update(self) -> None:
        """One update, from rollouts to new weights."""
        number = self.state.updates
        with self.timed("rollout"):
            blocks, told, costs = self.from_set(number) if self.set else self.from_rollouts(number)
        if self.first:
            self.say("learn")
        rate = self.set_learning_rate(number)
        self.snapshot.before_step()
        with self.timed("learn"):
            metrics, cost = learn(
                self.config,
                self.policy,
                self.optimizer,
                blocks,
                update=number,
                accelerator=self.accelerator,
                check=self.check,
            )
        with self.timed("moments"):
            self.state.moments = self.snapshot.take()
        self.state.training = sum([*self.gather([cost]), *costs], self.state.training)
        self.state.underway = Cost()
        self.state.updates += 1
        self.state.tracker, self.state.scale = self.tracker.state(), self.scale.state()
        oldest = max(0, self.state.updates - self.config.rollouts.staleness)
        self.state.behaviour = {v: w for v, w in self.state.behaviour.items() if v >= oldest}
        self.state.behaviour[self.state.updates] = self.policy.weights()
        if self.config.learn.ema is not None:
            self.state.average(self.state.behaviour[self.state.updates], decay=self.config.learn.ema)
        self.refresh_reference()
        if self.first:
            spent = {"budget/network_evaluations": self.state.training.network_evaluations}
            told = {**told, **metrics, **rate, **spent}
            self.run.log(number, told)
            self.write_ledger()
            self.watch.after_update(number, told)

    def set_learning_rate(self, number: int) -> Metrics:
        """Let the optimiser learn with this update's rate, and return it where it is not always the same."""
        learning = self.config.learn
        share = share_of_peak(number, warmup=learning.warmup, decline=learning.decline, end=learning.decline_until)
        rate = learning.learning_rate * share
        set_rate(self.optimizer, rate)
        constant = learning.decline == "constant" and not learning.warmup
        return {} if constant else {"learn/learning_rate": rate}

    def from_rollouts(self, number: int) -> tuple[dict[int, Batch], Metrics, list[Cost]]:
        """This worker's blocks as the objective sees them, what there is to tell of all, and what they cost."""
        rollouts = self.collect(number)
        if self.config.rollouts.keep:
            for done in rollouts:
                stored.keep(self.run.path, done)
        summaries = sorted(self.gather([summary(r) for r in rollouts]), key=lambda s: s["block"])
        scaled = self.config.reward_scale != "given"
        if scaled:
            summaries = self.rescaled(summaries)
        rounding = {s["block"]: s["rounding_N"] for s in summaries}
        told, costs = reward_metrics(summaries), [s["cost"] for s in summaries]
        self.state.redone = sum((s["redone"] for s in summaries), self.state.redone)
        if self.config.built_objective.consumes == "preferences":
            reward = {s["block"]: s["learned_N"] for s in summaries}
            blocks = [r.block for r in rollouts]
            ranked = {b.index: rankings(self.config, b, reward[b.index], rounding[b.index]) for b in blocks}
            counts = self.gather([(len(indices), ties) for indices, ties in ranked.values()])
            told["train/rankings"], told["train/ties"] = (float(sum(column)) for column in zip(*counts, strict=True))
            across = self.config.preferences.across_draws
            return (
                {r.block.index: compared(r, ranked[r.block.index][0], across_draws=across) for r in rollouts},
                told,
                costs,
            )
        advantage = advantages(
            self.config,
            {s["block"]: s["credit_NK"] for s in summaries},
            {s["block"]: [self.prompts.names[number] for number in s["numbers_N"]] for s in summaries},
            self.tracker,
            rounding if scaled else None,
        )
        return {r.block.index: transitions(r, advantage[r.block.index]) for r in rollouts}, told, costs

    def rescaled(self, summaries: list[dict]) -> list[dict]:
        """All blocks of an update with their rewards' terms on one scale."""
        running = self.config.reward_scale == "running"
        return rescale(self.config, summaries, self.scale if running else RewardScale())

    def from_set(self, number: int) -> tuple[dict[int, Batch], Metrics, list[Cost]]:
        """The same from an off-line preference set: nothing is drawn, so it costs nothing."""
        assert self.set is not None
        rank, workers = self.accelerator.process_index, self.accelerator.num_processes
        blocks: dict[int, Batch] = {}
        texts: dict[str, Answer] = {}
        for number_of_block in (b for members in minibatches(self.config, number) for b in members[rank::workers]):
            rows = rows_of_set(self.config, len(self.set), update=number, block=number_of_block)
            blocks[number_of_block] = self.set.rows(rows)
            if not self.policy.draws_prompts:  # whose states change as it learns
                texts |= self.set.texts(rows)
        self.policy.remember(texts)
        return blocks, {"train/rankings": float(self.config.rollouts.prompts)}, []

    def refresh_reference(self) -> None:
        """Let the reference follow the policy, if it is time."""
        spec = self.config.reference
        if self.state.reference is None or self.state.updates % spec.refresh:
            return
        old, new = self.state.reference, self.policy.weights()
        self.state.reference = spec.decay * old + (1 - spec.decay) * new if spec.decay else new
        self.policy.set_reference(self.state.reference)

    def ends_before(self, update: int) -> bool:
        """Whether the budget will probably be spent before an update that is not the next."""
        done, spent = self.state.updates, self.state.training.network_evaluations
        if self.config.budget is None or not done or update <= done:
            return False
        return spent + (update - done) * spent / done >= self.config.budget

    def collect(self, number: int) -> list[Rollouts]:
        """This worker's rollouts of an update; rollouts of later updates may begin too, as far as staleness lets them."""
        last = min(number + self.config.rollouts.staleness, self.config.updates - 1)
        for update in range(number, last + 1):
            if update not in self.pending and not self.ends_before(update):
                version = max(0, update - self.config.rollouts.staleness)
                blocks = training_blocks(self.config, self.prompts, update)
                mine = blocks_of_worker(
                    self.config, blocks, update, self.accelerator.process_index, self.accelerator.num_processes
                )
                weights, known_as = self.sampler(version)
                self.pending[update] = self.source.start(mine, weights, known_as)
        rollouts = []
        total = self.config.rollouts.prompts * self.config.rollouts.samples // self.accelerator.num_processes
        if self.first:
            self.say("rollout", images=0, images_total=total)
        for done in self.pending.pop(number):
            _, expected = self.sampler(max(0, number - self.config.rollouts.staleness))
            if done.version != expected and self.source is self.collector:
                raise RuntimeError(f"asked for rollouts of policy version {expected}, got {done.version}")
            rollouts.append(done)
            self.arrived(done)
            if self.first:
                scoring = sum(r.scoring_seconds for r in rollouts) / len(rollouts)
                self.say("rollout", images=sum(r.block.size for r in rollouts), images_total=total, scoring=scoring)
            self.check()
        return rollouts

    def sampler(self, version: int) -> tuple[np.ndarray, int]:
        """The weights that draw pictures to learn from, and the number by which those who draw know them: the policy's, or those of
        the old policy with an objective that compares with who drew.
        """
        spec = self.config.reference
        if not self.config.built_objective.reference_is_sampler or (spec.refresh == 1 and not spec.decay):
            return self.state.behaviour[version], version
        assert self.state.reference is not None
        return self.state.reference, OLD - 2 * version

    def arrived(self, done: Rollouts) -> None:
        """Put what a block cost into the ledger at once: should the run be killed, it was for nothing."""
        self.state.underway += done.cost + done.redone
        self.state.underway_seconds = time.monotonic() - self.began
        self.state.scoring_seconds += done.scoring_seconds
        if self.first:
            self.write_ledger()

    def evaluate(self) -> None:
        """Evaluate the policy as part of the run, which pays for it."""
        with self.timed("evaluate"):
            metrics, cost, redone = self.measure(self.arrived, self.judge())
        self.state.evaluation += cost
        self.state.redone += redone
        self.state.underway = Cost()
        self.state.evaluated = self.state.updates
        if self.first:
            self.write_ledger()
            self.watch.after_evaluation(self.state.updates, metrics)

    def measure(
        self, arrived: Callable[[Rollouts], None] = lambda done: None, judged: Sequence[Judged] = ()
    ) -> tuple[Metrics, Cost, Cost]:
        """Score the policy as it is, or the average of its weights, the first and the last time with more samples.

        Args:
            arrived: is told of every block.
            judged: what the objective said of preferences that are held out.

        Returns:
            The metrics (on the first worker), what that cost, and what of it was done in vain and again.
        """
        number = self.state.updates
        final = self.state.final(self.config)
        split_of: list[tuple[str, Block]] = [
            (split, block)
            for split, blocks in evaluation_blocks(self.config, self.prompts, number, final=final).items()
            for block in blocks
        ]
        mine = split_of[self.accelerator.process_index :: self.accelerator.num_processes]
        results: list[tuple[str, Rollouts]] = []
        total = sum(block.size for _, block in mine)
        weights, version = self.state.behaviour[number], number
        if self.config.evaluation.ema:
            assert self.state.ema is not None
            weights, version = self.state.ema, AVERAGE - 2 * number
        for split, done in self.collector.by_split(mine, weights, version):
            results.append((split, done))
            arrived(done)
            if self.first:
                self.say("evaluate", images=sum(r.block.size for _, r in results), images_total=total)
            self.check()
        results = self.gather(results)
        metrics: Metrics = {}
        if self.first:
            seed = self.config.evaluation.seed
            metrics = record(self.run, number, results, self.prompts.names, seed=seed)
            if judged:
                metrics |= judged_metrics(judged, update=number, seed=seed)
            self.run.log(number, metrics)
        cost, redone = (sum((getattr(r, kind) for _, r in results), Cost()) for kind in ("cost", "redone"))
        return metrics, sum((of.cost for of in judged), cost), redone

    def judge(self) -> list[Judged]:
        """What the objective says of the preferences that are held out; of all workers together."""
        if self.held_out is None:
            return []
        blocks = list(enumerate(judged_rankings(self.config, len(self.held_out))))
        sharded = is_share(next(iter(self.policy.trainable().values())))
        if not sharded:  # who share a network go through it together
            blocks = blocks[self.accelerator.process_index :: self.accelerator.num_processes]
        if self.config.evaluation.ema:
            assert self.state.ema is not None
            self.policy.set_weights(self.state.ema)
        judged: list[Judged] = []
        for block, rows in blocks:
            if self.first:
                self.say("evaluate", blocks=len(judged), blocks_total=len(blocks))
            judged.append(judge_rankings(self.config, self.policy, self.held_out, block, rows, self.check))
        self.policy.let_go()
        if self.config.evaluation.ema:
            self.policy.set_weights(self.state.behaviour[self.state.updates])
        return judged if sharded else self.gather(judged)

    def save(self) -> None:
        """Write a checkpoint, all workers together."""
        with self.timed("checkpoint"):
            if self.first:
                self.write_checkpoint()
            self.accelerator.wait_for_everyone()

    def write_checkpoint(self) -> None:
        """Write a checkpoint, and drop those that are not to be kept."""
        self.snapshot.wait()
        best, kept, directory = None, self.config.checkpoints, self.run.path / "checkpoints"
        if kept.best:
            split = "held_out" if self.prompts.held_out else "training"
            alike = min(self.config.evaluation.samples, self.config.evaluation.final_samples)
            scores = self.run.first_pictures(split, alike)
            rewards = (
                trained_rewards(scores, self.config, split)
                if kept.best is True
                else scores.get(f"evaluation/{split}/{kept.best}", {})
            )
            # the model as it came has none, and some went before the best one was to be kept
            there = {int(path.name) for path in checkpoint.completed(directory)} | {self.state.updates}
            best = max(there & rewards.keys(), key=rewards.__getitem__, default=None)
        checkpoint.save(directory, self.policy, self.state, keep=kept.keep, best=best)

    def write_ledger(self) -> None:
        """Write what the run has cost so far."""
        write_json(self.run.path / "ledger.json", self.state.ledger())

    def gather(self, items: list) -> list:
        """All workers' items, in the order of workers, on every worker."""
        return gather_object(items) if self.accelerator.num_processes > 1 else items

    def of_first(self, seen: T) -> T:
        """What the first worker sees in the run's directory, on every worker.

        A machine may remember for a minute how shared storage was: workers that each look for themselves could go on from
        different updates, and nothing would say so.
        """
        seen_by_first: T = self.gather([seen])[0]
        return seen_by_first

    def say(self, phase: str, **values: object) -> None:
        """Tell how far the run is and how long it will still take."""
        done, expected = self.state.updates - self.started_at, self.state.expected_updates(self.config)
        left = None
        if done and expected is not None:
            left = (time.monotonic() - self.started) / done * max(0, expected - self.state.updates)
        warnings = list(self.watch.warnings.values())
        self.run.progress(
            phase=phase, update=self.state.updates, updates=expected, seconds_left=left, warnings=warnings, **values
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the seconds of a stage in the ledger."""
        self.began = time.monotonic()
        yield
        self.state.seconds[stage] = self.state.seconds.get(stage, 0.0) + time.monotonic() - self.began
        self.state.underway_seconds = 0.0
