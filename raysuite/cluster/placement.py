"""Whether there is room for what is to run, and where learners, actors and judges go when they share GPUs."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import placement_group, remove_placement_group

from raysuite.config import Cluster
from raysuite.errors import UserError

LOOKS_EVERY = 1.0
"""Seconds from one look at a cluster that is to grow to the next."""


def check_room(*, cpus: float, gpus: float, remedy: str, patience: float = Cluster().patience) -> None:
    """Refuse what would wait forever. A cluster that was joined is asked to grow, and given so many seconds for it.

    Args:
        cpus: of all processes together.
        gpus: the same.
        remedy: how to want less.
        patience: seconds.

    Raises:
        UserError: there is too little.
    """
    joined, until = os.environ.get("RAY_ADDRESS"), time.monotonic() + patience
    lacks = _lacking(cpus, gpus)
    if lacks and not joined:
        raise UserError(f"expected no more than this machine has, the run wants {lacks}: {remedy}, or join a cluster")
    if not lacks:
        return
    logging.getLogger("raysuite").warning(
        "WARNING: the run wants %s of the cluster at %s: it waits up to %g seconds for more. Ctrl-C ends the waiting.",
        lacks,
        joined,
        patience,
    )
    with _asked_for(cpus, gpus, str(joined)):
        while lacks := _lacking(cpus, gpus):
            if time.monotonic() > until:
                raise UserError(
                    f"expected the cluster at {joined} to grow within {patience:g} seconds (cluster.patience), the run wants {lacks}: "
                    f"add machines, or {remedy}"
                )
            time.sleep(LOOKS_EVERY)


def _lacking(cpus: float, gpus: float) -> str:
    """What the cluster has too little of, in words."""
    total = ray.cluster_resources()
    wanted = {"CPU": cpus, "GPU": gpus}
    return " and ".join(
        f"{n:g} {kind}s where there are {total.get(kind, 0):g}" for kind, n in wanted.items() if n > total.get(kind, 0)
    )


@contextmanager
def _asked_for(cpus: float, gpus: float, address: str) -> Iterator[None]:
    """For the length of a `with`, a cluster that can grow knows what is wanted: nothing that waits in Ray tells it yet."""
    if address.startswith("ray://"):  # a client has no way to ask
        yield
        return
    request_resources(num_cpus=math.ceil(cpus), bundles=[{"GPU": 1.0}] * math.ceil(gpus))
    try:
        yield
    finally:
        request_resources(num_cpus=0)


@contextmanager
def room_for_learners(cluster: Cluster, workers: int) -> Iterator[bool]:
    """Where learners share GPUs with others, keep the learners' shares free until the others have theirs.

    Ray fills one GPU with shares before it begins the next: others that come first would leave the learners one GPU, or
    pieces too small. Yields whether there is anything to share.
    """
    beside = cluster.actors * (cluster.actor_gpus > 0)
    beside += sum(judge.actors for judge in cluster.judges.values() if judge.gpus)
    if not (workers and 0 < cluster.worker_gpus < 1 and beside) or workers + beside == 2:
        yield False
        return
    places = placement_group([worker_resources(cluster)] * workers, strategy="PACK")
    try:
        ray.get(places.ready())
        yield True
    finally:
        remove_placement_group(places)


def worker_resources(cluster: Cluster) -> dict[str, float]:
    """What each learner asks Ray for."""
    return {"CPU": cluster.worker_cpus} | ({"GPU": cluster.worker_gpus} if cluster.worker_gpus else {})


def drawing_device(cluster: Cluster) -> torch.device:
    """Of a process that draws."""
    return torch.device("cuda" if cluster.with_actors().actor_gpus > 0 else "cpu")
