"""Ray, joined or started, and who draws there: actors for the length of a `with`."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from raysuite.cluster.actors import RayCollector, RolloutActor, start_actors
from raysuite.cluster.judges import Judges, Names, running_judges
from raysuite.cluster.lives import as_written
from raysuite.cluster.placement import check_room, pieces_of, room_for_learners, wait_for
from raysuite.cluster.texts import encode_once
from raysuite.cluster.turns import end_once_there, own_turn
from raysuite.config import Cluster, RunConfig
from raysuite.cpus import usable_cpus
from raysuite.errors import UserError, in_a_line
from raysuite.families import Policy, open_policy
from raysuite.signals import postponed
from raysuite.stages.collect import Collector, LocalCollector
from raysuite.stages.models import FoundModel

ANSWER_SECONDS = 4.0
"""How long a cluster that is to be joined may take for its first answer."""
ENVIRONMENT = {
    # threads that wait soon sleep: other processes need the cores (docs/log.md, 2026-11-24, says why 300 spins and not 0)
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "300",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that was given no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a configuration mean the same in the learner as at the command line
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default makes every report and the end of a run wait 2 seconds
}


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (as in a submitted job), or start a quiet one on this machine."""
    os.environ.update(ENVIRONMENT)
    if ray.is_initialized():
        return
    with postponed():
        _connect()


def _connect() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        check_answer(address)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT})
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise UserError(
                f"expected to join the Ray cluster at RAY_ADDRESS={address}, could not: {in_a_line(error, 300)}; check "
                "its address and token, or unset RAY_ADDRESS to start one on this machine"
            ) from error
    else:  # processes of this machine inherit the environment, and start sooner than with one of their own
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody takes this machine away with a notice
        # Ray's default is 15: whatever else wakes up, Ray's own waiting processes first, would interrupt those that work
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


def check_answer(address: str) -> None:
    """Whether anybody is there: Ray would ask for minutes, and end the process.

    Raises:
        UserError: nobody is.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"expected a Ray cluster at RAY_ADDRESS={address}, nobody answered within {ANSWER_SECONDS:g} seconds ({error}): start it, "
            "correct the address, or unset RAY_ADDRESS to start one on this machine"
        ) from error


def check_shared(written: Path, who: str) -> None:
    """Look from this machine for a file that the command wrote into its --out.

    Args:
        written: the file.
        who: looks.

    Raises:
        UserError: it is not to be seen from here, where nobody would find what is written.
    """
    if not written.exists():
        raise UserError(
            f"expected a directory that all machines share, got {written.parent}, which {who} on {socket.gethostname()} does not "
            "see: set --out to one on a file system that every machine of the cluster mounts"
        )


def check_resources(cluster: Cluster, *, workers: int = 0) -> None:
    """See that there is room for the actors and judges, and for as many learners; `check_room` says how.

    Raises:
        UserError: the cluster is too small.
    """
    check_room(
        pieces_of(cluster, workers=workers),
        remedy="lower what cluster.workers, actors and judges and their cpus and gpus come to",
        patience=cluster.patience,
    )


def threads_of(config: RunConfig, processes: int, cpus: float) -> int:
    """Torch threads of each of `processes` actors or workers.

    On one machine without staleness, actors and learner take turns: each may use all cores while the other waits.
    """
    cluster = config.cluster
    if cluster.threads:
        return cluster.threads
    if not ray.is_initialized():  # this process is alone
        return usable_cpus()
    if len(ray.nodes()) > 1:
        return max(1, int(cpus))
    busy = processes if config.rollouts.staleness == 0 else cluster.actors + cluster.workers
    busy += sum(judge.actors for judge in cluster.judges.values() if judge.cpus)
    return max(1, int(ray.cluster_resources()["CPU"]) // busy)


@contextmanager
def running_actors(
    config: RunConfig, *, workers: int = 0, texts: Path | None = None
) -> Iterator[tuple[list[ray.actor.ActorHandle], Names]]:
    """The run's rollout actors and judges, for the length of a `with`, placed so that so many learners find their places too.

    With `texts` actors read text states there, and load no encoder.
    """
    cluster = config.cluster
    threads = threads_of(config, max(1, cluster.actors), cluster.actor_cpus)
    with ExitStack() as stack:
        with room_for_learners(cluster, workers) as shared:
            judges = stack.enter_context(running_judges(config, holding=shared))
            options = {"threads": threads, "texts": texts, "judges": judges}
            actors = stack.enter_context(killed_at_the_end(start_actors(cluster, RolloutActor, config, **options)))
            if shared:
                with as_written():
                    wait_for([actor.life.remote() for actor in actors], f"{len(actors)} actors", holding=True)
        yield actors, judges


@contextmanager
def drawing_actors(
    config: RunConfig, directory: Path, *, prompts: Iterable[str] | None = None
) -> Iterator[tuple[list[ray.actor.ActorHandle], Path | None]]:
    """Ray, and rollout actors for work that has no learners, for the length of a `with`.

    Args:
        config: of the work, with actors.
        directory: where text states go if they are wanted beforehand, under texts/; it is yielded besides.
        prompts: what will be drawn; by default what the run may draw of its own.

    Raises:
        UserError: the cluster is too small, or the model cannot be opened.
    """
    cluster = config.cluster
    connect()
    check_resources(cluster)
    threads = threads_of(config, cluster.actors, cluster.actor_cpus)
    texts = encode_once(config, directory, threads=threads, prompts=prompts)
    with own_turn(pieces_of(cluster, workers=0)) as turn, running_actors(config, texts=texts) as (actors, _):
        end_once_there(turn, actors)
        yield actors, texts


@contextmanager
def killed_at_the_end(actors: list[ray.actor.ActorHandle]) -> Iterator[list[ray.actor.ActorHandle]]:
    """Actors for the length of a `with`."""
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def is_here(cluster: Cluster, *, placed: bool = False) -> bool:
    """Whether this process does everything: there are no actors, and no cluster is to be joined, or it is `placed` in one."""
    return cluster.alone and (placed or not os.environ.get("RAY_ADDRESS"))


def device_here(cluster: Cluster) -> torch.device:
    """Where this process computes when it does everything.

    Raises:
        UserError: the run asks for a GPU that this machine does not have.
    """
    if not cluster.worker_gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"expected a GPU with CUDA for cluster.worker_gpus={cluster.worker_gpus:g}, this machine has none: set it to 0, or join a "
            "cluster"
        )
    return torch.device("cuda")


@contextmanager
def drawing(
    model: FoundModel, directory: Path, texts: Sequence[str], *, placed: bool = False
) -> Iterator[tuple[Policy, Collector]]:
    """A model, and who draws these texts with its weights, for the length of a `with`: rollout actors, or this process where its run
    has none and no cluster is to be joined.

    Args:
        model: that draws.
        directory: where text states go if they are wanted beforehand; they are removed.
        texts: what will be drawn.
        placed: whether a process that does everything is meant to do it here, in a cluster that was joined.

    Raises:
        UserError: the cluster is too small, or there is no GPU.
    """
    config, device = model.config, torch.device("cpu")
    with ExitStack() as stack:
        actors: list[Any] = []
        if is_here(config.cluster, placed=placed):
            device = device_here(config.cluster)
            threads = threads_of(config, 1, config.cluster.worker_cpus)
            torch.set_num_threads(threads)
            encoded = encode_once(config, directory, threads=threads, prompts=texts, here=True)
        else:
            config = config.with_actors()
            actors, encoded = stack.enter_context(drawing_actors(config, directory, prompts=texts))
        policy = open_policy(config, device, texts=encoded)
        model.load(policy)
        judges = stack.enter_context(closing(Judges({})))
        collector = RayCollector.of(config, actors) if actors else LocalCollector(policy, config, ask=judges.ask)
        yield policy, collector
    shutil.rmtree(directory / "texts", ignore_errors=True)
