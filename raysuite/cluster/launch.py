"""Start a run: Ray, the rollout actors, and the learner as a Ray Train `TorchTrainer`; or a learner that does everything, here."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import ray
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from ray.train import FailureConfig, RunConfig as TrainRunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raysuite import rewards
from raysuite.cluster.actors import RayCollector
from raysuite.cluster.fitting import fit
from raysuite.cluster.interrupt import Interruption
from raysuite.cluster.judges import Judges, Names, blocks_at_once
from raysuite.cluster.placement import pieces_of, worker_resources
from raysuite.cluster.session import (
    check_answer,
    check_resources,
    check_shared,
    connect,
    device_here,
    drawing_actors,
    is_here,
    running_actors,
    threads_of,
)
from raysuite.cluster.texts import encode_once
from raysuite.cluster.turns import end_once_there, own_turn
from raysuite.cluster.writer import rewrite_prompts
from raysuite.config import Model, RunConfig, validate
from raysuite.devices import told_if_full
from raysuite.errors import Stopped, UserError, is_full
from raysuite.families import Policy, check_model, cut_prompts, encoder_digests, open_policy
from raysuite.families.compiled import check_compiler
from raysuite.stages import checkpoint
from raysuite.stages.collect import Collector, LocalCollector
from raysuite.stages.files import RunDirectory, write_json
from raysuite.stages.optimizer import check_optimizer
from raysuite.stages.preference_set import sets_of
from raysuite.stages.prompts import Prompt, load_prompts, said_of_cut, training_blocks
from raysuite.stages.rewrites import place_of
from raysuite.stages.rollout import check_noise
from raysuite.stages.stop import StopFile, StopRequested
from raysuite.stages.stored import check_replay
from raysuite.stages.train import Training
from raysuite.trackers import following, preflight as preflight_of_trackers
from raysuite.writer.model import open_writer

OPENED_AT_ONCE = 1 << 30
"""Bytes of weights that are read in a second."""


def preflight(config: RunConfig, *, rewritten: bool = False) -> None:
    """Find in a second what would otherwise be found after a minute of start-up.

    Args:
        config: of the run.
        rewritten: whether the model will read rewrites in place of prompts, of which it is told as they are made.

    Raises:
        UserError: prompts, their writer, rewards or the model are not there, or the model is not complete or not for these
            settings (one whose weights take long to read is looked at no further than its index says; it fails when Ray has started).
    """
    if is_here(config.cluster):  # what takes no time first
        device_here(config.cluster)
    if config.rollouts.staleness and not config.cluster.actors:
        _say_once(
            "NOTE: rollouts.staleness gains nothing in one process, which draws and learns by turns: --set cluster.actors=1"
            f"{' --set cluster.actor_gpus=1' if config.cluster.worker_gpus else ''} overlaps them."
        )
    prompts = load_prompts(config.prompts)
    for reward in (*config.rewards, *config.watched):
        rewards.resolve(reward.name)
    source, held_out = sets_of(config)
    check_drawing(config)
    if source is None:  # a set has prompts of its own
        training_blocks(config, prompts, update=0)
    check_scoring(config, prompts.all, prompts.repeated, rewritten=rewritten or config.prompts.writer is not None)
    writer = config.prompts.writer
    if writer is not None and _bytes_of_weights(str(place_of(writer))) <= OPENED_AT_ONCE:
        open_writer(writer)
    if config.rollouts.replay is not None:
        check_replay(config)
    for found in (source, held_out):
        if found is not None:
            found.check_encoders(encoder_digests(config.model))
    wanted = config.updates * config.rollouts.prompts
    if source is not None and config.budget is None and wanted > len(source):
        _say_once(
            f"NOTE: {config.updates} updates of {config.rollouts.prompts} go {wanted / len(source):.1f} times through the "
            f"{len(source)} rankings of the set."
        )
    preflight_of_trackers(config.trackers)


def check_drawing(config: RunConfig) -> None:
    """Find out whether a cluster that is to be joined answers, and whether the model is there and fits; say what is computed on CPUs
    beside a GPU.

    Raises:
        UserError: one of them does not.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and not ray.is_initialized():
        check_answer(address)
    check_model(config.model)
    if config.parameters.start is not None:
        from raysuite.families.loading import check_start  # with diffusers, which a toy does without

        check_start(config.parameters.start)
    cluster = config.cluster
    if config.model.compile and not (cluster.worker_gpus and (cluster.actor_gpus or not cluster.actors)):
        check_compiler(torch.device("cpu"))
    if not cluster.worker_gpus:
        check_optimizer(config.learn, torch.device("cpu"))
    if not address and not cluster.wanted("gpus", workers=cluster.workers) and torch.cuda.is_available():
        _say_once("NOTE: this machine has a GPU and the run computes on CPUs: --set cluster.worker_gpus=1 uses it.")
    if cluster.worker_gpus and cluster.actors and not cluster.actor_gpus:
        _say_once(
            "NOTE: actors draw on CPUs what is learned from on a GPU: --set cluster.actor_gpus=1 gives each a GPU; a learner and an "
            "actor share one with cluster.worker_gpus=0.5 and cluster.actor_gpus=0.5."
        )
    if _bytes_of_weights(config.model.path) <= OPENED_AT_ONCE:
        check_noise(config, open_policy(config, torch.device("cpu"), compiled=False).schedule)


def check_scoring(
    config: RunConfig, asked: Sequence[Prompt], repeated: Mapping[str, int], *, rewritten: bool = False
) -> None:
    """Look at prompts, and at the rewards that will be asked about them; say what there is to tell of prompts.

    Args:
        config: of the run.
        asked: all prompts.
        repeated: rows that count once, by split.
        rewritten: whether the model will read something else in their place.

    Raises:
        UserError: a reward is not there, or lacks something.
    """
    texts, metadata = [prompt.text for prompt in asked], [prompt.metadata for prompt in asked]
    _tell_of_prompts(config.model, repeated, [] if rewritten else texts)
    for reward in (*config.rewards, *config.watched):
        judge = config.cluster.judges.get(reward.name)
        if judge is not None and judge.environment is not None:
            continue  # what it needs is there and not here
        rewards.check(reward.name, model=reward.model, options=reward.options, prompts=texts, metadata=metadata)


def _tell_of_prompts(model: Model, repeated: Mapping[str, int], texts: list[str]) -> None:
    """Say which rows of prompt files count once, and which prompts the model will not read to their end."""
    for split, count in repeated.items():
        rows = "row" if count == 1 else "rows"
        _say_once(f"NOTE: prompts.{split} has {count} {rows} that came before: each counts once.")
    cut, tokens = cut_prompts(model, texts)
    if cut:
        _say_once(said_of_cut("prompts", cut, len(texts), tokens))


@cache
def _say_once(line: str) -> None:
    """The runs of a sweep, and the objectives of a study, have the same to tell."""
    logging.getLogger("raysuite").warning("%s", line)


def _bytes_of_weights(model: str) -> float:
    """Of a model's directory; what is bundled has few, what is on a hub may have any number, and what is not there none."""
    if not Path(model).is_dir():
        return inf if "/" in model and not Path(model).is_absolute() else 0
    return sum(file.stat().st_size for file in Path(model).rglob("*") if file.suffix in (".safetensors", ".bin"))


def train(config: RunConfig, directory: Path, *, placed: bool = False) -> None:
    """Run to the end, or go on with a run that was stopped.

    Args:
        config: of the run.
        directory: of the run.
        placed: whether a learner that does everything is meant to do it in this very process, of a cluster that was joined.

    Raises:
        Stopped: a signal came; the last completed update is in a checkpoint.
        UserError: something that the user can mend; the last checkpoint stands.
    """
    failure = directory / "failure.json"
    failure.unlink(missing_ok=True)
    rewrite_prompts(config, directory, placed=placed)
    here = is_here(config.cluster, placed=placed)
    with (
        StopFile(directory) as stop,
        Interruption(stop.request, failure.exists) as interruption,
        (_alone if here else _through_ray)(config, directory) as work,
        following(config, directory),
    ):
        interruption.wait_for(work)
    shutil.rmtree(directory / "ray", ignore_errors=True)  # Ray Train's own notes; what matters is in checkpoints/
    if (message := failed(directory)) is not None:
        if interruption.signum:
            raise Stopped(message, interruption.signum, left=interruption.waiting)
        raise UserError(message)


@contextmanager
def _alone(config: RunConfig, directory: Path) -> Iterator[Callable[[], object]]:
    """The work of a run whose learner needs nobody else, in this process."""
    device_here(config.cluster)
    threads = threads_of(config, 1, config.cluster.worker_cpus)
    texts = encode_once(config, directory, threads=threads, here=True)
    yield lambda: _learner(_options(config, directory, threads=threads, texts=texts))


@contextmanager
def _through_ray(config: RunConfig, directory: Path) -> Iterator[Callable[[], object]]:
    """The same of Ray Train's workers, with the run's actors and judges."""
    connect()
    cluster, drawing = config.cluster, config.cluster.with_actors()
    check_resources(cluster, workers=cluster.workers)
    texts = encode_once(config, directory, threads=threads_of(config, drawing.actors, drawing.actor_cpus))
    with (
        own_turn(pieces_of(cluster, workers=cluster.workers)) as turn,
        running_actors(config, workers=cluster.workers, texts=texts) as (actors, judges),
    ):
        threads = threads_of(config, cluster.workers, cluster.worker_cpus)
        trainer = TorchTrainer(
            _learner,
            train_loop_config=_options(
                config, directory, threads=threads, texts=texts, actors=actors, judges=judges, turn=turn
            ),
            # learners wait for one whose actors wait for a machine, which takes longer than the half an hour that is Ray's
            # default; that one of them was lost Ray Train sees without it
            torch_config=TorchConfig(timeout_s=24 * 3600),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.worker_gpus > 0,
                resources_per_worker=worker_resources(cluster),
            ),
            run_config=TrainRunConfig(
                name="ray",
                storage_path=str(directory),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        yield lambda: fit(
            trainer,
            directory / "ray",
            limit=f"than cluster.max_failures={cluster.max_failures} allows",
            known=(directory / "failure.json").exists,
        )


def _options(
    config: RunConfig,
    directory: Path,
    *,
    threads: int,
    texts: Path | None,
    actors: Sequence[ray.actor.ActorHandle] = (),
    judges: Names | None = None,
    turn: ray.actor.ActorHandle | None = None,
) -> dict[str, Any]:
    """What a learner is told, in a form that travels."""
    return {
        "config": config.canonical(),
        "directory": str(directory),
        "threads": threads,
        "texts": texts,
        "actors": list(actors),
        "judges": judges or {},
        "turn": turn,
    }


def failed(directory: Path) -> str | None:
    """The sentence with which a run's last attempt ended, if one did."""
    failure = directory / "failure.json"
    return json.loads(failure.read_text())["message"] if failure.exists() else None


def _learner(options: dict[str, Any]) -> None:
    """What each learner runs: a worker of Ray Train, or the command itself.

    Raises:
        UserError: the run's directory is not to be seen from here, where nobody would find what is written into it; or one of
            several learners found something that the user can mend.
    """
    torch.set_num_threads(options["threads"])
    config, directory = validate(options["config"]), Path(options["directory"])
    check_shared(directory / "config.json", "a learner")
    failure = directory / "failure.json"
    accelerator = Accelerator(cpu=config.cluster.worker_gpus == 0)
    workers = accelerator.num_processes
    if accelerator.is_main_process:  # all learners have their places
        end_once_there(options["turn"], options["actors"])
    # another worker found something that only the user can mend: do not try again. They look together, as one machine may know
    # later than another that the file is there
    if any(gather_object([failure.exists()]) if workers > 1 else [failure.exists()]):
        return
    # only the first worker looks for a request to stop: the others wait for it, and end with it
    check = StopFile(directory).check if accelerator.is_main_process else lambda: None
    try:
        _leave_if_asked(check)
        texts = options["texts"]
        with told_if_full():
            policy = open_policy(config, accelerator.device, texts=texts)
            with _collecting(config, policy, accelerator, options, check) as collector:
                Training(config, directory, policy, collector, accelerator, check=check).train()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and not is_full(error):
            raise
        told = _sentence(error, directory)
        try:
            write_json(failure, {"message": told})
        except OSError:  # there is no room for that either
            raise UserError(told) from error
        if workers > 1:  # the others wait for this one: let Ray Train end them all
            raise


@contextmanager
def _collecting(
    config: RunConfig, policy: Policy, accelerator: Accelerator, options: Mapping[str, Any], check: Callable[[], None]
) -> Iterator[Collector]:
    """Who draws for a learner, for the length of a `with`: its share of the actors, or where there are none itself."""
    rank, workers, actors = accelerator.process_index, accelerator.num_processes, options["actors"]
    if actors:
        yield RayCollector.of(config, actors[rank::workers] or [actors[rank % len(actors)]], idle=check)
        return
    with closing(Judges(options["judges"])) as judges:
        ahead = blocks_at_once(config.cluster) - 1
        yield LocalCollector(policy, config, ask=judges.ask, ahead=ahead, check=check)


def _leave_if_asked(check: Callable[[], None]) -> None:
    try:
        check()
    except StopRequested as request:
        raise UserError(
            f"stopped by {request} with no update under way: the same command goes on from the last checkpoint"
        ) from request


def _sentence(error: UserError | OSError, directory: Path) -> str:
    if isinstance(error, UserError):
        return str(error)
    return (
        f"expected to write into {directory}, could not ({error}): the last checkpoint stands; make room there, and give the "
        "same command again"
    )


def evaluate(directory: Path, *, updates: int | None, samples: int | None) -> None:
    """Evaluate a checkpoint of a run with its fixed prompts and noise. The run's ledger is left as it is.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    config, found = _evaluated(directory, updates, samples)
    config = config.with_actors()
    with drawing_actors(config, directory) as (actors, texts):
        policy = open_policy(config, torch.device("cpu"), texts=texts, compiled=False)
        training = Training(config, directory, policy, RayCollector.of(config, actors), Accelerator(cpu=True))
        if found is not None:
            training.state = checkpoint.load(found, policy)
        training.measure()


def check_evaluation(directory: Path, *, updates: int | None, samples: int | None) -> None:
    """Refuse what `evaluate` could not do, or would lose scores by.

    Raises:
        UserError: there is no such checkpoint, or it was scored with more samples.
    """
    config, found = _evaluated(directory, updates, samples)
    state = checkpoint.read_state(found) if found is not None else checkpoint.State()
    wanted = config.evaluation.final_samples if state.final(config) else config.evaluation.samples
    stored = RunDirectory(directory).samples(state.updates)
    if wanted < stored:
        raise UserError(
            f"expected at least the {stored} pictures a prompt that are scored after {state.updates} updates in {directory}, got "
            f"{wanted}: they would be lost; set --samples {stored} or more"
        )


def _evaluated(directory: Path, updates: int | None, samples: int | None) -> tuple[RunConfig, Path | None]:
    """A run with so many samples, and its checkpoint after so many updates, or the last; None is the model as it came."""
    config = RunDirectory(directory).config()
    if samples:
        evaluation = config.evaluation.model_copy(update={"samples": samples, "final_samples": samples})
        config = config.model_copy(update={"evaluation": evaluation})
    return config, None if updates == 0 else checkpoint.find(directory, updates)


def claim(config: RunConfig, directory: Path, command: Sequence[str]) -> bool:
    """Make `directory` this run's; returns whether it was finished before.

    Raises:
        UserError: it belongs to another run, or what is there of this one is damaged.
    """
    run = RunDirectory(directory)
    run.claim(config, command)
    StopFile(directory).forget()
    state = _last(directory)
    if state is not None:
        run.check_metrics(state.updates)
    return finished(config, directory)


def finished(config: RunConfig, directory: Path) -> bool:
    """Whether the last checkpoint in `directory` is the run's last, and was evaluated as that."""
    state = _last(directory)
    if state is None or not state.finished(config):
        return False
    return state.is_evaluated(config, RunDirectory(directory))


def _last(directory: Path) -> checkpoint.State | None:
    """What the last checkpoint says of where the run stands."""
    found = checkpoint.completed(directory / "checkpoints")
    return checkpoint.read_state(found[-1]) if found else None
