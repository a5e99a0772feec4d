"""A study of directions on Ray: actors draw the units, measure them, and evaluate steps along what was found.

    rung:   draw units -> measure blocks -> inner products -> estimates        (-> steps -> predicted against realised gain)

Every file is written whole, so that the command that began a study goes on with it. When a rung has its estimates, what
can be drawn and measured again is removed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import safetensors
import safetensors.numpy
import torch
from ray.util import ActorPool

from raysuite.cluster import launch
from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.policy import Policy
from raysuite.kernel.credit import PromptTracker
from raysuite.kernel.sketch import Sketch
from raysuite.progress import Counting
from raysuite.stages import checkpoint, stored
from raysuite.stages.directions import bin_ranges
from raysuite.stages.estimates import estimates, predicted_gain
from raysuite.stages.files import is_held, provenance, replacing, write_json
from raysuite.stages.gains import Scored, measured_kl, realised, step_of_kl, trained_reward
from raysuite.stages.measure import (
    REWARD,
    SPACES,
    Advantages,
    Measurement,
    adam_scale,
    block_advantages,
    block_number,
    inner_products,
    study_blocks,
    study_sketch,
)
from raysuite.stages.preference_set import PreferenceSet
from raysuite.stages.prompts import evaluation_blocks, load_prompts
from raysuite.stages.stored import check_replay
from raysuite.study import Rung, Study
from raysuite.types import Block, Cost, Rollouts

Progress = Callable[[str, str], Counting]
"""Makes a counter from what is counted and its unit."""


class StudyActor(RolloutActor):
    """Draws like a rollout actor, and measures units at a rung's checkpoint."""

    def __init__(self, study: Study, rung: Rung, directory: Path, *, threads: int, steps: bool = False) -> None:
        """Open the policy.

        Args:
            study: declared.
            rung: which of its measurements.
            directory: of the rung.
            threads: of torch.
            steps: evaluate steps from the checkpoint: it is what their KL is measured from.
        """
        super().__init__(rung.config, threads=threads)
        load_policy(study, rung, self._policy)
        if steps:
            self._policy.set_reference(self._policy.weights())
        self._study, self._rung, self._directory = study, rung, directory
        self._measurement: Measurement | None = None

    def measure(self, block: Block, advantage: Advantages | None) -> int:
        """Measure a block whose rollouts lie on disk; returns its number."""
        if self._measurement is None:  # rollouts may have left other weights behind
            load_policy(self._study, self._rung, self._policy)
            self._version = -1
            scale = scale_of(self._study, self._rung, self._policy)
            self._measurement = Measurement(self._study, self._rung, self._policy, scale)
        rollouts = _stored(self._rung, self._directory, block) if advantage is not None else None
        self._measurement.block(block, rollouts, advantage, self._directory)
        return block_number(self._rung.config, block)


def study(declared: Study, directory: Path, command: Sequence[str], progress: Progress) -> None:
    """Do a study, or go on with one that was stopped.

    Raises:
        UserError: something that the user can mend; what is finished stands.
    """
    _preflight(declared)
    claim(declared, directory, command)
    missing = [rung for rung in declared.rungs if not (directory / rung.name / "estimates.parquet").exists()]
    if missing:
        launch.connect()
        launch.check_resources(declared.rungs[0].config.cluster)
    for rung in missing:
        _measure_rung(declared, rung, directory / rung.name, progress)
    if declared.gain:
        for rung in declared.rungs:
            if not (directory / rung.name / "gains.parquet").exists():
                launch.connect()
                _gains(declared, rung, directory / rung.name, progress)
    _collect(declared, directory)


def claim(declared: Study, directory: Path, command: Sequence[str]) -> None:
    """Make `directory` this study's, or find that it already is.

    Raises:
        UserError: it belongs to another study, or to something else.
    """
    wanted = declared.canonical()
    if is_held(directory, "study.json", _settled(wanted), "study", _settled):
        for unfinished in directory.rglob(".*"):  # what a killed process was writing
            unfinished.unlink()
        return
    write_json(directory / "study.json", wanted)
    write_json(directory / "provenance.json", provenance(command))


def _settled(study: dict[str, Any]) -> dict[str, Any]:
    """Where work runs may change between the parts of a study."""
    return {**study, "run": {name: section for name, section in study["run"].items() if name != "cluster"}}


def _preflight(declared: Study) -> None:
    for rung in declared.rungs:
        for label, config in rung.configs.items():
            try:
                if config.preferences.source is not None:
                    found = PreferenceSet(Path(config.preferences.source))
                    found.check(config)
                    if len(found) < declared.units * rung.rankings:
                        raise UserError(
                            f"expected at least {declared.units} units x {rung.rankings} rankings (preferences.limit) in "
                            f"{config.preferences.source}, got {len(found)}: make a larger set, or lower one of them"
                        )
                elif config.rollouts.replay is not None:
                    check_replay(config.model_copy(update={"updates": declared.rounds}))
            except UserError as error:
                raise UserError(f"{label} cannot learn from what this study measures it on: {error}") from error
        launch.preflight(rung.config)
        if declared.gain:
            _require_rewards(rung)


def _require_rewards(rung: Rung) -> None:
    if rung.config.sampler.eta == 0 or rung.config.built_objective.consumes != "advantages":
        raise UserError(
            "expected --gain-kl with ddpo or forward_rl among the objectives and sampler.eta above 0: gains are predicted by the "
            "policy gradient of the reward"
        )


def load_policy(declared: Study, rung: Rung, policy: Policy) -> None:
    """Put a rung's checkpoint into a policy: its weights, and the reference that the run had then."""
    path = _checkpoint(declared, rung)
    if path is not None:
        checkpoint.load(path, policy)


def scale_of(declared: Study, rung: Rung, policy: Policy) -> dict[str, torch.Tensor] | None:
    """Of the optimiser at the rung's checkpoint; None for the model as it came."""
    path = _checkpoint(declared, rung)
    return adam_scale(path, policy, rung.config) if path is not None else None


def _checkpoint(declared: Study, rung: Rung) -> Path | None:
    if not rung.checkpoint:
        return None
    return Path(str(declared.directory)) / "checkpoints" / f"{rung.checkpoint:06d}"


def _stored(rung: Rung, directory: Path, block: Block) -> Rollouts:
    run = Path(rung.config.rollouts.replay) if rung.config.rollouts.replay else directory
    return stored.read(run, block.update, block.index)


def _actors(declared: Study, rung: Rung, directory: Path, *, steps: bool = False) -> Any:
    cluster = rung.config.cluster
    threads = launch.threads_of(rung.config, cluster.actors, cluster.actor_cpus)
    return launch.killed_at_the_end(
        start_actors(cluster, StudyActor, declared, rung, directory, threads=threads, steps=steps)
    )


def _measure_rung(declared: Study, rung: Rung, directory: Path, progress: Progress) -> None:
    of = f"rung {rung.number + 1} of {len(declared.rungs)}: " if len(declared.rungs) > 1 else ""
    policy, started = open_policy(rung.config, torch.device("cpu")), time.monotonic()
    load_policy(declared, rung, policy)
    with _actors(declared, rung, directory) as actors:
        blocks = study_blocks(declared, rung)
        if rung.draws:
            _draw(rung, directory, blocks, actors, policy.weights(), progress(f"{of}drawing", "blocks"))
        drawn = time.monotonic()
        _measure(declared, rung, directory, blocks, actors, progress(f"{of}measuring", "blocks"))
    measured = time.monotonic()
    sketch = study_sketch(declared, rung.config.seed, policy)
    rows = list(_estimates(declared, rung, directory, sketch))
    seconds = {"draw": drawn - started, "measure": measured - drawn, "estimate": time.monotonic() - measured}
    of_study = {
        "bins": bin_ranges(policy, declared.bins),
        "blocks": sketch.coordinates,
        "exact": sketch.error == 0,
        "projection_error": sketch.error,
    }
    of_rung = _facts(declared, rung, directory, seconds)
    write_json(directory / "facts.json", {**of_study, "objectives": list(declared.objectives), "rungs": [of_rung]})
    with replacing(directory / "estimates.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    (directory / "drawn.json").unlink(missing_ok=True)
    for finished in ("units", "rollouts", "sums"):
        shutil.rmtree(directory / finished, ignore_errors=True)


def _draw(
    rung: Rung,
    directory: Path,
    blocks: Sequence[Block],
    actors: Sequence[ray.actor.ActorHandle],
    weights: np.ndarray,
    counting: Counting,
) -> None:
    known = directory / "drawn.json"
    drawn: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    missing = [b for b in blocks if str(block_number(rung.config, b)) not in drawn]
    with counting:
        counting.begin(len(blocks), done=len(blocks) - len(missing))
        for rollouts in RayCollector(actors).start(missing, weights, 0):
            stored.keep(directory, rollouts)
            facts = {"cost": vars(rollouts.cost), "reward": float(rollouts.reward_N.mean())}
            drawn[str(block_number(rung.config, rollouts.block))] = facts
            write_json(known, drawn)
            counting.advance()


def _measure(
    declared: Study,
    rung: Rung,
    directory: Path,
    blocks: Sequence[Block],
    actors: Sequence[ray.actor.ActorHandle],
    counting: Counting,
) -> None:
    """Measure what is missing. Sums over blocks are added up in the order of blocks, whoever is first."""
    done = {int(path.stem) for path in (directory / "units").glob("[0-9]*.safetensors")}
    missing = [b for b in blocks if block_number(rung.config, b) not in done]
    told = _advantages(declared, rung, directory, blocks) if missing else {}
    totals = _Totals(directory)
    totals.take(done)
    with counting:
        counting.begin(len(blocks), done=len(done))
        for number in _dealt(actors, [(block, told.get(block_number(rung.config, block))) for block in missing]):
            totals.take({number})
            counting.advance()


def _dealt(actors: Sequence[ray.actor.ActorHandle], work: Sequence[tuple[Block, Advantages | None]]) -> Iterator[int]:
    pool: Any = ActorPool(list(actors))
    try:
        yield from pool.map_unordered(lambda actor, item: actor.measure.remote(*item), list(work))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):  # a sentence for the user crosses processes as it was written
            raise error.cause from None
        raise


def _advantages(declared: Study, rung: Rung, directory: Path, blocks: Sequence[Block]) -> dict[int, Advantages]:
    """Of every block, round by round as training would have them; none where nothing is drawn or replayed."""
    config, out = rung.config, {}
    if not rung.draws and config.rollouts.replay is None:
        return {}
    tracker = PromptTracker.empty(size=config.credit.tracker_size, minimum=config.credit.tracker_minimum)
    for start in range(0, len(blocks), config.rollouts.blocks):
        rollouts = [_stored(rung, directory, block) for block in blocks[start : start + config.rollouts.blocks]]
        for done, advantage in zip(rollouts, block_advantages(config, rollouts, tracker), strict=True):
            out[block_number(config, done.block)] = advantage
    return out


class _Totals:
    """Sum of all units' gradients by objective, added in the order of blocks so that it is the same every time."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, directory / "totals.safetensors"
        self._next, self._waiting = 0, set[int]()
        self._sums: dict[str, np.ndarray] = {}
        if self._file.exists():
            with safetensors.safe_open(self._file, framework="numpy") as held:
                self._sums = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a mapping
                self._next = int(held.metadata()["blocks"])

    def take(self, numbers: set[int]) -> None:
        """These blocks are measured."""
        self._waiting |= {number for number in numbers if number >= self._next}
        before = self._next
        while self._next in self._waiting:
            file = self._directory / "sums" / f"{self._next:06d}.safetensors"
            if not file.exists():  # no steps are to be taken
                return
            for name, value in safetensors.numpy.load_file(file).items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._next += 1
        if self._next > before:
            with replacing(self._file) as temporary:
                safetensors.numpy.save_file(self._sums, temporary, metadata={"blocks": str(self._next)})
            for number in range(before, self._next):
                (self._directory / "sums" / f"{number:06d}.safetensors").unlink()


def _estimates(declared: Study, rung: Rung, directory: Path, sketch: Sketch) -> Iterator[dict[str, Any]]:
    labels = list(rung.configs)
    with safetensors.safe_open(next(iter(sorted((directory / "units").glob("[0-9]*")))), framework="numpy") as stored:
        spaces = list(dict.fromkeys(name.split("/")[0] for name in stored.keys()))  # noqa: SIM118 - not a mapping
    for space in (space for space in SPACES if space in spaces):
        whole = space == "prediction"
        spans = {"": slice(None)} if whole else sketch.spans
        measured = [*labels, REWARD] if declared.gain and space == "parameters" else labels
        products = inner_products(directory, space, measured, spans)
        order = {label: str(number) for number, label in enumerate(measured)}
        arrays = {}
        for (a, b), (by_bin, by_block) in products.items():
            arrays[f"{order[a]}-{order[b]}/bins"], arrays[f"{order[a]}-{order[b]}/blocks"] = by_bin, by_block
        with replacing(directory / f"inner_products-{space}.safetensors") as temporary:
            safetensors.numpy.save_file(arrays, temporary, metadata={"labels": json.dumps(measured)})
        own = {pair: found for pair, found in products.items() if REWARD not in pair}
        for row in estimates(own, labels, list(spans)):
            yield {**_place(rung), "space": space, **row}


def _place(rung: Rung) -> dict[str, Any]:
    return {
        "rung": rung.number,
        "along": rung.along,
        "value": json.dumps(rung.value),
        "checkpoint": rung.checkpoint,
    }


def _facts(declared: Study, rung: Rung, directory: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    cost, ranked = Cost(), 0
    for file in sorted((directory / "units").glob("[0-9]*.safetensors")):
        with safetensors.safe_open(file, framework="numpy") as measured:
            metadata = measured.metadata()
        cost += Cost(**json.loads(metadata["cost"]))
        ranked += json.loads(metadata["counts"])["rankings"]
    known = directory / "drawn.json"
    drawn = json.loads(known.read_text()) if known.exists() else {}
    cost = sum((Cost(**block["cost"]) for block in drawn.values()), cost)
    return {
        **_place(rung),
        "units": declared.units,
        "rankings": ranked,
        "reward": float(np.mean([drawn[number]["reward"] for number in sorted(drawn, key=int)])) if drawn else None,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "network_evaluations": cost.network_evaluations,
    }


def _gains(declared: Study, rung: Rung, directory: Path, progress: Progress) -> None:
    """A step of the wanted KL along every objective's mean gradient, evaluated on the run's fixed prompts and noise."""
    assert declared.gain is not None
    config, labels = rung.config, list(rung.configs)
    policy = open_policy(config, torch.device("cpu"))
    load_policy(declared, rung, policy)
    weights, totals = policy.weights(), safetensors.numpy.load_file(directory / "totals.safetensors")
    products = _reward_products(directory, labels)
    by_split = evaluation_blocks(config, load_prompts(config.prompts), 0, final=True)
    blocks = [(split, block) for split, found in by_split.items() for block in found]
    measuring = [(split, block) for split, block in blocks if block.measure_kl]
    if not measuring:
        raise UserError("expected evaluation.kl=true with --gain-kl, got false: the KL of a step has to be measured")
    rewards = {term.name: term.weight for term in config.rewards}
    rows: list[dict[str, Any]] = []
    with _actors(declared, rung, directory, steps=True) as actors, progress("taking steps", "objectives") as counting:
        collector, versions = RayCollector(actors), iter(range(1, 1_000_000))

        def scored(of: Sequence[tuple[str, Block]], flat: np.ndarray) -> Scored:
            return list(collector.by_split(of, flat, next(versions)))

        counting.begin(len(labels), done=0)
        before = scored(blocks, weights)
        for label in labels:
            direction = -totals[label] / declared.units
            length = float(np.linalg.norm(direction))
            if not length:
                raise UserError(f"expected a direction of {label} to step along, got a gradient of 0: leave it out")

            def moved(step: float, direction: np.ndarray = direction) -> np.ndarray:
                return (weights + step * direction).astype(np.float32)

            step = step_of_kl(
                lambda step: measured_kl(scored(measuring, moved(step)), seed=config.evaluation.seed)["kl"],
                declared.gain.kl,
                first=1e-3 * max(1.0, float(np.linalg.norm(weights))) / length,
            )
            after = scored(blocks, moved(step))
            predicted = predicted_gain(products, label, step)
            of_step = {**_place(rung), "objective": label, **measured_kl(after, seed=config.evaluation.seed)}
            for row in realised(before, after, rewards, seed=config.evaluation.seed):
                told = (predicted.estimate, predicted.low, predicted.high)
                if row["reward"] != trained_reward(rewards):
                    told = (float("nan"),) * 3
                names = ("predicted", "predicted_low", "predicted_high")
                rows.append({**of_step, **dict(zip(names, told, strict=True)), **row})
            counting.advance()
    with replacing(directory / "gains.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    (directory / "totals.safetensors").unlink()


def _reward_products(directory: Path, labels: Sequence[str]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    arrays, last = safetensors.numpy.load_file(directory / "inner_products-parameters.safetensors"), len(labels)
    return {
        (label, REWARD): (arrays[f"{number}-{last}/bins"], arrays[f"{number}-{last}/blocks"])
        for number, label in enumerate(labels)
    }


def _collect(declared: Study, directory: Path) -> None:
    """Put the rungs together in one table each."""
    facts = [json.loads((directory / rung.name / "facts.json").read_text()) for rung in declared.rungs]
    write_json(directory / "facts.json", {**facts[0], "rungs": [rung for found in facts for rung in found["rungs"]]})
    for name in ("estimates", "gains") if declared.gain else ("estimates",):
        tables = [pq.read_table(directory / rung.name / f"{name}.parquet") for rung in declared.rungs]
        with replacing(directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.concat_tables(tables), temporary)
