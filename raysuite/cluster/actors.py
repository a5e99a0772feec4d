"""Rollout actors: each owns a policy and the reward, takes coordinates and returns trajectories."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch

from raysuite.config import Cluster, RunConfig
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.stages.collect import Collector
from raysuite.stages.rollout import sample, score
from raysuite.types import Block, Rollouts

IN_FLIGHT = 2
"""Blocks an actor holds at once: one is scored while the next is drawn."""


class RolloutActor:
    """Draws and scores blocks. Made remote by `start_actors`; runs `IN_FLIGHT` calls in threads."""

    def __init__(self, config: RunConfig, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config = config
        self._policy = open_policy(config, torch.device("cuda" if config.cluster.actor_gpus > 0 else "cpu"))
        self._version = -1
        self._drawing, self._scoring = threading.Lock(), threading.Lock()

    def ready(self) -> bool:
        """Whether the model is loaded (an error of the constructor arrives here)."""
        return True

    def rollout(self, block: Block, weights: list[ray.ObjectRef], version: int) -> Rollouts:
        """Draw and score a block with the given version of the weights.

        The request carries the weights' reference, so that an actor that was restarted and lost its state answers
        with the right policy.
        """
        with self._drawing:
            if version != self._version:
                self._policy.set_weights(ray.get(weights[0]))
                self._version = version
            drawn = sample(self._policy, block, self._config, version=version)
        with self._scoring:
            return score(drawn, self._config)


def start_actors(
    cluster: Cluster, actor: type[RolloutActor], *arguments: object, **options: object
) -> list[ray.actor.ActorHandle]:
    """A run's actors, each made with these arguments; calls in flight when one dies are repeated on its successor."""
    remote: Any = ray.remote(actor).options(
        num_cpus=cluster.actor_cpus,
        num_gpus=cluster.actor_gpus,
        max_concurrency=IN_FLIGHT,
        max_restarts=-1,
        max_task_retries=2,
        # a run of a sweep has reserved room for its actors
        scheduling_strategy=None if ray.util.get_current_placement_group() else "SPREAD",
    )
    return [remote.remote(*arguments, **options) for _ in range(cluster.actors)]


class RayCollector(Collector):
    """Deals blocks to actors as they become free."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle]) -> None:
        self._actors = list(actors)

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Begin at once, in a thread; the iterator yields blocks in the order in which they are done."""
        results: queue.SimpleQueue[Rollouts | BaseException] = queue.SimpleQueue()
        reference = ray.put(weights)
        threading.Thread(target=self._deal, args=(list(blocks), reference, version, results), daemon=True).start()

        def iterate() -> Iterator[Rollouts]:
            for _ in blocks:
                done = results.get()
                if isinstance(done, BaseException):
                    raise done
                yield done

        return iterate()

    def _deal(
        self,
        blocks: list[Block],
        weights: ray.ObjectRef,
        version: int,
        results: queue.SimpleQueue[Rollouts | BaseException],
    ) -> None:
        free = self._actors * IN_FLIGHT
        flying: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
        try:
            while blocks or flying:
                while blocks and free:
                    actor = free.pop(0)
                    flying[actor.rollout.remote(blocks.pop(0), [weights], version)] = actor
                (done,), _ = ray.wait(list(flying), num_returns=1)
                free.append(flying.pop(done))
                results.put(ray.get(done))
        except ray.exceptions.RayTaskError as error:
            # a sentence for the user crosses processes as it was written
            results.put(error.cause if isinstance(error.cause, UserError) else error)
        except ray.exceptions.RayError as error:
            results.put(error)
