"""Where learners and actors go when they share GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raysuite.config import Cluster


@contextmanager
def room_for_learners(cluster: Cluster, workers: int) -> Iterator[bool]:
    """Where learners and actors share GPUs, keep the learners' shares free until the actors have theirs.

    Ray fills one GPU with shares before it begins the next: actors that come first would leave the learners one GPU, or
    pieces too small. Yields whether there is anything to share.
    """
    if not (workers and 0 < cluster.worker_gpus < 1 and cluster.actor_gpus) or (
        workers + cluster.actors == 2 and not any(judge.gpus for judge in cluster.judges.values())
    ):
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
