"""Rewards in processes of their own: pictures go to them as they are drawn, and drawing goes on meanwhile."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import ray
import torch

from raysuite import rewards
from raysuite.cluster.lives import answer, as_written, raised
from raysuite.cluster.placement import wait_for
from raysuite.config import Cluster, Judge, Reward, RunConfig
from raysuite.devices import thread_pool
from raysuite.errors import RewardHung, UserError, in_a_line
from raysuite.stages.rollout import ask_here
from raysuite.types import Block

Names = Mapping[str, Sequence[str]]
"""What Ray knows judges by, under their reward's name. Handles cannot be arguments of an actor that may be restarted: Ray would have
to keep them for it."""


class JudgeActor:
    """One reward in one process. Made remote by `running_judges`; answers one question after the other."""

    def __init__(self, reward: Reward, *, threads: int) -> None:
        """Make ready for a reward, which is made when it is first needed."""
        torch.set_num_threads(threads)
        self._reward, self._life = reward, uuid.uuid4().hex
        self._thread = ThreadPool(1)

    def life(self) -> str:
        """Another one after every restart."""
        return self._life

    def make(self) -> None:
        """Make the reward: weights are loaded.

        Raises:
            UserError: it cannot be made.
        """
        rewards.made(self._reward.name, model=self._reward.model, options=self._reward.options)

    def score(self, images_N: np.ndarray, block: Block) -> tuple[str, np.ndarray, list[UserError]]:
        """The life it was, scores (N,) of a block's pictures, and failures that were followed by another try.

        Raises:
            RewardHung: the reward took longer than its limit.
            UserError: it raised to the end, or gave no scores.
        """
        failures: list[UserError] = []
        scores = ask_here(self._reward, images_N, block, failures.append, thread=self._thread)
        return self._life, scores, failures


class Judges:
    """Who scores what a process draws: judges, which are asked again where one was lost or hangs, and itself for other rewards."""

    def __init__(self, names: Names) -> None:
        self._names = {reward: list(of) for reward, of in names.items()}
        self._lives: dict[str, str] = {}
        self._known, self._here = threading.Lock(), threading.Lock()

    @cached_property
    def _thread(self) -> ThreadPool:
        """Made by who asks first: it computes on the same GPU."""
        return thread_pool(1)

    def close(self) -> None:
        """Nothing is asked any more."""
        if "_thread" in vars(self):
            self._thread.terminate()

    def ask(self, reward: Reward, images_N: np.ndarray, block: Block, told: Callable[[UserError], None]) -> np.ndarray:
        """A block's scores. All its pictures go to one judge: a network's answer depends on its batch, in the last digits.

        Args:
            reward: which.
            images_N: uint8 (N, H, W, 3).
            block: whose pictures they are.
            told: of every failure, or judge that was lost, after which all was asked again.

        Raises:
            RewardHung: the reward took longer than its limit in this process.
            UserError: the reward raised or hung to the end, or its process cannot be kept alive.
        """
        if reward.name not in self._names:
            with self._here:  # one at a time: what waits does not use up its seconds
                return ask_here(reward, images_N, block, told, thread=self._thread)
        names = self._names[reward.name]
        name = names[(block.index + block.first_sample) % len(names)]
        judge: Any = ray.get_actor(name)
        for attempt in range(reward.retries + 1):
            with self._known:
                before = self._lives.get(name)
            try:
                answered = answer(judge, lambda: judge.score.remote(images_N, block))
                break
            except ray.exceptions.RayTaskError as error:
                hung = error.cause
                if not isinstance(hung, RewardHung):
                    raise raised(error) from None
                # nothing else ends a thread; questions that wait there are asked again
                ray.kill(judge, no_restart=False)
                with self._known:
                    self._lives.pop(name, None)
                if attempt == reward.retries:
                    raise UserError(str(hung)) from None
                told(UserError(str(hung)))
            except ray.exceptions.RayActorError as error:
                if attempt == reward.retries:
                    raise _lost(reward.name) from error
                told(UserError(f"a judge of {reward.name} was lost"))
        life, scores, failures = answered
        for failure in failures:
            told(failure)
        if before not in (None, life):  # Ray asked its successor
            told(UserError(f"a judge of {reward.name} was lost"))
        with self._known:
            self._lives[name] = life
        return np.asarray(scores)


def _lost(name: str) -> UserError:
    return UserError(
        f"expected a judge of {name} to go on, its process ended again and again: the reward may leave it (os._exit), crash it, or "
        "need more memory than there is; try the reward alone on a picture"
    )


@contextmanager
def running_judges(config: RunConfig, *, holding: bool = False) -> Iterator[Names]:
    """The judges that `cluster.judges` asks for, all of them there, for the length of a `with`.

    Args:
        config: of the run.
        holding: whether learners' places are kept meanwhile.

    Raises:
        UserError: a reward cannot be made, its environment cannot, or it took too long.
    """
    started = {name: _start(config.reward(name), judge) for name, judge in config.cluster.judges.items()}
    try:
        for name, of in started.items():
            try:
                with as_written():
                    wait_for([judge.make.remote() for judge in of.values()], f"judges of {name}", holding=holding)
            except ray.exceptions.RuntimeEnvSetupError as error:
                raise UserError(
                    f"expected the environment of cluster.judges.{name}, Ray could not make it: {in_a_line(error, 500)}"
                ) from error
            except ray.exceptions.RayActorError as error:
                raise _lost(name) from error
        yield {name: list(of) for name, of in started.items()}
    finally:
        for of in started.values():
            for judge in of.values():
                ray.kill(judge)


def _start(reward: Reward, judge: Judge) -> dict[str, ray.actor.ActorHandle]:
    options: dict[str, Any] = {
        "num_cpus": judge.cpus,
        "num_gpus": judge.gpus,
        "max_restarts": -1,
        "max_task_retries": 2,
        "runtime_env": judge.environment,
        "scheduling_strategy": None if ray.util.get_current_placement_group() else "SPREAD",
    }
    remote: Any = ray.remote(JudgeActor)
    names = [f"judge-{uuid.uuid4().hex}" for _ in range(judge.actors)]
    return {n: remote.options(name=n, **options).remote(reward, threads=max(1, int(judge.cpus))) for n in names}


def blocks_at_once(cluster: Cluster) -> int:
    """Blocks that a drawing process holds: one that it draws, one that it scores, and its share of those at judges."""
    judges = sum(judge.actors for judge in cluster.judges.values())
    return 2 + math.ceil(judges / (cluster.actors or cluster.workers))
