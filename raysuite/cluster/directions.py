"""A study of directions on Ray: actors draw the units, measure them, and evaluate steps along what was found.

    rung:   draw units -> measure blocks -> inner products -> estimates        (-> steps -> predicted against realised gain)

Every file is written whole, so that the command that began a study goes on with it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from raysuite import places
from raysuite.cluster import launch, session
from raysuite.cluster.actors import RayCollector, RolloutActor, dealt, start_actors
from raysuite.cluster.judges import Names, running_judges
from raysuite.cluster.placement import pieces_of
from raysuite.cluster.texts import encode_once
from raysuite.cluster.turns import end_once_there, own_turn
from raysuite.devices import told_if_full
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.policy import Policy
from raysuite.kernel.stats import NOTHING
from raysuite.progress import Counting
from raysuite.stages.files import is_held, provenance, write_json
from raysuite.stages.preference_set import open_set
from raysuite.stages.prompts import evaluation_blocks, load_prompts
from raysuite.stages.rewrites import refuse_writer
from raysuite.stages.stored import check_replay
from raysuite.study.declared import Rung, Study
from raysuite.study.estimates import predicted_gain
from raysuite.study.gains import NoStep, Scored, measured_kl, realised, step_of_kl, trained_reward, unpredicted
from raysuite.study.measure import Advantages, Measurement, asked_prompts, block_number, study_blocks
from raysuite.study.rung import RungDirectory, Totals, collect
from raysuite.types import Block, Cost

Progress = Callable[[str, str], Counting]
"""Makes a counter from what is counted and its unit."""


class StudyActor(RolloutActor):
    """Draws like a rollout actor, and measures units at a rung's checkpoint."""

    def __init__(
        self,
        held: RungDirectory,
        *,
        threads: int,
        texts: Path | None = None,
        steps: bool = False,
        judges: Names | None = None,
    ) -> None:
        """Open the policy.

        Args:
            held: one of the study's measurements.
            threads: of torch.
            texts: as of a rollout actor.
            steps: evaluate steps from the checkpoint: it is what their KL is measured from.
            judges: of rewards that have processes of their own.
        """
        self._held, self._steps = held, steps
        self._measurement: Measurement | None = None
        super().__init__(held.rung.config, threads=threads, texts=texts, judges=judges)

    def _open(self, texts: Path | None) -> Policy:
        policy = super()._open(texts)
        self._held.load(policy)
        if self._steps:
            policy.set_reference(policy.weights())
        return policy

    @told_if_full()
    def measure(self, block: Block, advantage: Advantages | None) -> int:
        """Measure a block whose rollouts lie on disk; returns its number."""
        held = self._held
        if self._measurement is None:  # rollouts may have left other weights behind
            held.load(self._policy)
            self._loaded = ""
            self._measurement = Measurement(held.study, held.rung, self._policy, held.adam_scale(self._policy))
        rollouts = held.rollouts(block) if advantage is not None else None
        self._measurement.block(block, rollouts, advantage, held.path)
        return block_number(held.rung.config, block)


def study(declared: Study, directory: Path, command: Sequence[str], progress: Progress) -> None:
    """Do a study, or go on with one that was stopped.

    Raises:
        UserError: something that the user can mend; what is finished stands.
    """
    _preflight(declared)
    claim(declared, directory, command)
    rungs = [RungDirectory(declared, rung, directory / rung.name) for rung in declared.rungs]
    missing = [held for held in rungs if not held.finished]
    if missing:
        session.connect()
        session.check_resources(declared.rungs[0].config.cluster.with_actors())
    for held in rungs:
        held.tidy()
    for held in missing:
        _measure_rung(held, progress)
    collect(rungs, directory)  # whatever becomes of steps, this can be read
    if declared.gain:
        for held in rungs:
            if not held.stepped:
                session.connect()
                _gains(held, progress)
        collect(rungs, directory)
    for where in (directory, *(held.path for held in rungs)):  # can be had again
        shutil.rmtree(where / "texts", ignore_errors=True)


def claim(declared: Study, directory: Path, command: Sequence[str]) -> None:
    """Make `directory` this study's, or find that it already is.

    Raises:
        UserError: it belongs to another study, or to something else.
    """
    wanted = declared.canonical()
    stepped = any(directory.glob("rung-*/gains.parquet"))

    def settled(study: dict[str, Any]) -> dict[str, Any]:
        """Where work runs may change between the parts of a study, and how far steps go until the first of them are told."""
        run = {name: section for name, section in study["run"].items() if name != "cluster"}
        gain = wanted["gain"] if study["gain"] and wanted["gain"] and not stepped else study["gain"]
        return {**study, "gain": gain, "run": run}

    held = is_held(directory, "study.json", settled(wanted), "study", settled, begun=["rung-*"])
    beside = directory / "provenance.json"
    if held:
        places.remove_unfinished(directory)
    write_json(directory / "study.json", wanted)
    if not (held and beside.exists()):  # a command may have been killed between the two
        write_json(beside, provenance(command))


def _preflight(declared: Study) -> None:
    for rung in declared.rungs:
        for label, config in rung.configs.items():
            try:
                if config.preferences.source is not None:
                    found = open_set(config)
                    if len(found.units) < declared.sizes[-1]:
                        raise UserError(
                            f"expected at least {declared.sizes[-1]} units in {config.preferences.source}, got {len(found.units)}: "
                            "rankings of one prompt are one unit, since they may share pictures; lower --units, or make a set of more"
                            " prompts"
                        )
                elif config.rollouts.replay is not None:
                    check_replay(config.model_copy(update={"updates": rung.rounds(declared.sizes[-1])}))
            except UserError as error:
                raise UserError(f"{label} cannot learn from what this study measures it on: {error}") from error
        refuse_writer(rung.config, "a study of directions")
        launch.preflight(rung.config)
        if declared.gain:
            _check_gains(rung)


def _check_gains(rung: Rung) -> None:
    if not rung.config.evaluation.kl:
        raise UserError("expected evaluation.kl=true with --gain-kl, got false: the KL of a step has to be measured")
    if rung.config.sampler.noise.level == 0 or rung.config.built_objective.consumes != "advantages":
        raise UserError(
            "expected --gain-kl with ddpo or forward_rl among the objectives and sampler.noise.level above 0: gains are predicted "
            "by the policy gradient of the reward"
        )
    if rung.config.rollouts.samples < 2:
        raise UserError(
            "expected rollouts.samples of at least 2 with --gain-kl, got 1: gains are predicted from how rewards of a "
            "prompt's pictures differ"
        )


@contextmanager
def _working(held: RungDirectory, *, steps: bool = False) -> Iterator[tuple[list[ray.actor.ActorHandle], Policy]]:
    """Actors, and the policy that is measured in this process, all with text states that were encoded before if that is wanted."""
    config = held.rung.config.with_actors()
    cluster = config.cluster
    threads = session.threads_of(config, cluster.actors, cluster.actor_cpus)
    texts = encode_once(config, _common(held), threads=threads, prompts=asked_prompts(held.study, held.rung))
    with own_turn(pieces_of(cluster, workers=0)) as turn, running_judges(config) as judges:
        options = {"threads": threads, "texts": texts, "steps": steps, "judges": judges}
        with session.killed_at_the_end(start_actors(cluster, StudyActor, held, **options)) as actors:
            end_once_there(turn, actors)
            policy = open_policy(config, torch.device("cpu"), texts=texts)
            held.load(policy)
            yield actors, policy


def _common(held: RungDirectory) -> Path:
    """The directory of what rungs of one model share: the study's, or the rung's where the ladder changes the model."""
    models = [rung.config.model for rung in held.study.rungs]
    return held.path.parent if all(model == models[0] for model in models) else held.path


def _measure_rung(held: RungDirectory, progress: Progress) -> None:
    rungs = len(held.study.rungs)
    of = f"rung {held.rung.number + 1} of {rungs}: " if rungs > 1 else ""
    with _working(held) as (actors, policy):
        for units in held.sizes:
            grown = held.of_size(units)
            blocks = study_blocks(grown.study, grown.rung)
            if grown.rung.draws:
                with grown.timed("draw"):
                    _draw(grown, blocks, actors, policy.weights(), progress(f"{of}drawing", "blocks"))
            with grown.timed("measure"):
                _measure(grown, blocks, actors, progress(f"{of}measuring", "blocks"))
            if grown.estimate(policy, last=units == held.sizes[-1]):
                break


def _draw(
    held: RungDirectory,
    blocks: Sequence[Block],
    actors: Sequence[ray.actor.ActorHandle],
    weights: np.ndarray,
    counting: Counting,
) -> None:
    missing = held.undrawn(blocks)
    with counting:
        counting.begin(len(blocks), done=len(blocks) - len(missing))
        for rollouts in RayCollector.of(held.rung.config, actors).start(missing, weights, 0):
            held.keep(rollouts)
            counting.advance()


def _measure(
    held: RungDirectory, blocks: Sequence[Block], actors: Sequence[ray.actor.ActorHandle], counting: Counting
) -> None:
    """Measure what is missing. Sums over blocks are added up in the order of blocks, whoever is first."""
    by_number, done = {block_number(held.rung.config, block): block for block in blocks}, held.measured
    missing = {number: block for number, block in by_number.items() if number not in done}
    told = held.advantages(blocks) if missing else {}
    totals = Totals(held.path)
    totals.take(done)
    with counting:
        counting.begin(len(blocks), done=len(done))
        items = [(block, told.get(number)) for number, block in missing.items()]
        for number in dealt(actors, lambda actor, item: actor.measure.remote(*item), items):
            totals.take({number})
            counting.advance()


def _gains(held: RungDirectory, progress: Progress) -> None:
    """A step of the wanted KL along every objective's mean gradient, evaluated on the run's fixed prompts and noise."""
    declared, config, labels = held.study, held.rung.config, list(held.rung.configs)
    gain = declared.gain
    assert gain is not None
    totals, products = held.totals, held.reward_products()
    by_split = evaluation_blocks(config, load_prompts(config.prompts), 0, final=True)
    blocks = [(split, block) for split, found in by_split.items() for block in found]
    measuring = [(split, block) for split, block in blocks if block.measure_kl]
    rewards = {term.name: term.weight for term in config.rewards}
    rows: list[dict[str, Any]] = []
    cost, started = Cost(), time.monotonic()
    with _working(held, steps=True) as (actors, policy), progress("taking steps", "objectives") as counting:
        weights = policy.weights()
        note = unpredicted(policy.schedule.windowed(config.sampler.evaluated_window).stochastic_K)
        collector, versions = RayCollector.of(config, actors), iter(range(1, 1_000_000))

        def scored(of: Sequence[tuple[str, Block]], flat: np.ndarray) -> Scored:
            nonlocal cost
            found = list(collector.by_split(of, flat, next(versions)))
            cost += sum((rollouts.cost for _, rollouts in found), Cost())
            return found

        def step_along(label: str) -> tuple[float, Scored]:
            """Its length, as a multiple of the mean gradient, and what is drawn after it."""
            direction = -totals[label] / declared.units
            length = float(np.linalg.norm(direction))
            if not length:
                raise NoStep("its gradient is 0")

            def moved(step: float) -> np.ndarray:
                return (weights + step * direction).astype(np.float32)

            step = step_of_kl(
                lambda step: measured_kl(scored(measuring, moved(step)), seed=config.evaluation.seed)["kl"],
                gain.kl,
                first=1e-3 * max(1.0, float(np.linalg.norm(weights))) / length,
            )
            return step, scored(blocks, moved(step))

        counting.begin(len(labels), done=0)
        before = scored(blocks, weights)
        for label in labels:
            after, predicted, why = None, NOTHING, note
            try:
                step, after = step_along(label)
                predicted = NOTHING if note else predicted_gain(products[label], step)
            except NoStep as reason:
                why = f"unknown along {label}: {reason}"
            of_step = {**held.place, "objective": label, **measured_kl(after, seed=config.evaluation.seed)}
            for row in realised(before, after, rewards, seed=config.evaluation.seed):
                trained = row["reward"] == trained_reward(rewards)
                told = predicted if trained else NOTHING
                rows.append(
                    {
                        **of_step,
                        "predicted": told.estimate,
                        "predicted_low": told.low,
                        "predicted_high": told.high,
                        **row,
                        "note": why if trained else "",
                    }
                )
            counting.advance()
    held.write_gains(rows, cost, time.monotonic() - started)
