"""Rollout actors: each owns a policy and the reward, takes coordinates and returns trajectories."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from raysuite.cluster.judges import Judges, Names, blocks_at_once
from raysuite.cluster.lives import PAUSE_SECONDS, REACHED_SECONDS, answer, as_written, life_after, life_of, raised
from raysuite.cluster.placement import drawing_device, strategy_of_actors
from raysuite.config import Cluster, RunConfig
from raysuite.devices import told_if_full
from raysuite.errors import RewardHung, UserError, in_a_line
from raysuite.families import Policy, open_policy
from raysuite.stages.collect import IDLE_SECONDS, Collector
from raysuite.stages.rollout import sample, score
from raysuite.stages.warm import warm_drawing
from raysuite.types import Block, Rollouts

SILENT_SECONDS = 30.0
"""How long no actor may answer before it is looked whether all are there."""
ANSWER_SECONDS = 5.0
"""How long that may take. Whoever is at work does not answer; Ray does for one that has no place."""


class PolicyActor:
    """An actor with a policy. What keeps it from being opened is kept for everybody who asks the actor for something: where a
    constructor raises, Ray tells them only that the process ended.
    """

    def __init__(self, opening: Callable[[], Policy]) -> None:
        self._life = uuid.uuid4().hex
        try:
            with told_if_full():
                self._opened: Policy | Exception = opening()
        except Exception as error:  # noqa: BLE001 (it is raised where the policy is asked for)
            self._opened = error

    @property
    def _policy(self) -> Policy:
        if isinstance(self._opened, Exception):
            raise self._opened
        return self._opened

    def life(self) -> str:
        """Which of the actor's lives this is: another one after a restart.

        Raises:
            Exception: what kept the policy from being opened.
        """
        _ = self._policy
        return self._life


class RolloutActor(PolicyActor):
    """Draws and scores blocks. Made remote by `start_actors`; runs `blocks_at_once` calls in threads."""

    def __init__(
        self, config: RunConfig, *, threads: int, texts: Path | None = None, judges: Names | None = None
    ) -> None:
        """Open the policy.

        Args:
            config: of the run.
            threads: of torch.
            texts: where the run's text states are, if they were encoded before; the actor then has no encoder.
            judges: of rewards that have processes of their own.
        """
        torch.set_num_threads(threads)
        self._config = config
        self._loaded = ""
        self._drawing, self._judges = threading.Lock(), Judges(judges or {})
        super().__init__(lambda: self._open(texts))

    def _open(self, texts: Path | None) -> Policy:
        return open_policy(self._config, drawing_device(self._config.cluster), texts=texts)

    @told_if_full()
    def warm(self, blocks: Sequence[Block]) -> None:
        """Compile for blocks like these."""
        with self._drawing:
            warm_drawing(self._policy, blocks)

    @told_if_full()
    def rollout(self, block: Block, weights: list[ray.ObjectRef], version: int) -> tuple[str, Rollouts]:
        """Draw and score a block with the given version of the weights; says too which of the actor's lives it was.

        The request carries the weights' reference, so that an actor that was restarted and lost its state answers
        with the right policy.
        """
        with self._drawing:
            # not by their version: a learner that was restarted makes its own of the same number, which may round otherwise
            if weights[0].hex() != self._loaded:
                self._policy.set_weights(ray.get(weights[0]))
                self._loaded = weights[0].hex()
            drawn = sample(self._policy, block, self._config, version=version)
        return self._life, score(drawn, self._config, ask=self._judges.ask)


def start_actors(
    cluster: Cluster, actor: type[RolloutActor], *arguments: object, **options: object
) -> list[ray.actor.ActorHandle]:
    """A run's actors, each made with these arguments; calls in flight when one dies are repeated on its successor."""
    remote: Any = ray.remote(actor).options(
        num_cpus=cluster.actor_cpus,
        num_gpus=cluster.actor_gpus,
        max_concurrency=blocks_at_once(cluster),
        max_restarts=-1,
        max_task_retries=2,
        scheduling_strategy=strategy_of_actors(cluster),
    )
    return [remote.remote(*arguments, **options) for _ in range(cluster.actors)]


def dealt(
    actors: Sequence[ray.actor.ActorHandle], ask: Callable[[Any, Any], ray.ObjectRef], work: Iterable[Any]
) -> Iterator[Any]:
    """What actors answer to pieces of work, each given to whoever is free, in the order in which they are done.

    Raises:
        UserError: one of them raised it, or could not be kept alive.
    """
    left, free = list(work), list(actors)
    flying: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, Any]] = {}
    while left or flying:
        while left and free:
            actor, piece = free.pop(), left.pop(0)
            flying[ask(actor, piece)] = actor, piece
        (done,), _ = ray.wait(list(flying), num_returns=1)
        actor, piece = flying.pop(done)
        try:
            with as_written():
                result = answer(actor, partial(ask, actor, piece), done)
        except ray.exceptions.RayActorError as error:
            raise UserError(
                "expected an actor to go on, its process ended again and again: what it computes may need more memory than there is "
                f"({in_a_line(error, 300)}); the same command goes on with what is left"
            ) from error
        free.append(actor)
        yield result


class RayCollector(Collector):
    """Deals blocks to actors as they become free."""

    def __init__(
        self,
        actors: Sequence[ray.actor.ActorHandle],
        *,
        idle: Callable[[], None] = lambda: None,
        rewards: Sequence[str] = (),
        at_once: int = 2,
    ) -> None:
        self._actors, self._at_once = list(actors), at_once
        self._rewards = rewards
        """What they score with: user code, which may end their process."""
        self._idle = idle
        """Called now and then while there is nothing to hand out; what it raises ends the waiting."""
        self._lives: dict[ray.actor.ActorHandle, str] = {}

    @classmethod
    def of(
        cls, config: RunConfig, actors: Sequence[ray.actor.ActorHandle], *, idle: Callable[[], None] = lambda: None
    ) -> RayCollector:
        """That of a run's actors."""
        return cls(actors, idle=idle, rewards=config.reward_names, at_once=blocks_at_once(config.cluster))

    def warm(self, blocks: Sequence[Block]) -> Callable[[], None]:
        """All actors begin at once."""
        compiling = [actor.warm.remote(list(blocks)) for actor in self._actors]

        def wait() -> None:
            left: list[Any] = list(compiling)
            while left:
                _, left = ray.wait(left, num_returns=len(left), timeout=IDLE_SECONDS)
                self._idle()
            with as_written():
                ray.get(compiling)

        return wait

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Begin at once, in a thread; the iterator yields blocks in the order in which they are done."""
        deal = _Deal(self._actors, self._lives, blocks, ray.put(weights), version, self._rewards, self._at_once)
        threading.Thread(target=deal.run, daemon=True).start()

        def iterate() -> Iterator[Rollouts]:
            for _ in blocks:
                while (done := deal.next(IDLE_SECONDS)) is None:
                    self._idle()
                yield done

        return iterate()


class _Deal:
    """Some blocks with one version of the weights, on their way to actors and back."""

    def __init__(
        self,
        actors: Sequence[ray.actor.ActorHandle],
        lives: dict[ray.actor.ActorHandle, str],
        blocks: Sequence[Block],
        weights: ray.ObjectRef,
        version: int,
        rewards: Sequence[str],
        at_once: int,
    ) -> None:
        self._actors, self._lives, self._rewards = actors, lives, rewards
        self._blocks, self._weights, self._version = list(enumerate(blocks)), weights, version
        self._free, self._at_once = list(actors) * at_once, at_once
        self._flying: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, int, Block, str | None]] = {}
        self._replaced: Counter[int] = Counter()
        """Times that a block's actor was given a fresh process."""
        self._moved: Counter[int] = Counter()
        """Times that a block was taken from an actor that had lost its place."""
        self._away: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, float]] = {}
        """Those actors, by what they answer once they have another, and since when."""
        self._unreached: set[int] = set()
        self._results: queue.SimpleQueue[Rollouts | BaseException] = queue.SimpleQueue()

    def next(self, seconds: float) -> Rollouts | None:
        """The next block that is done, or None if there is none within so many seconds."""
        try:
            done = self._results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(done, BaseException):
            raise done
        return done

    def run(self) -> None:
        """Deal until everything is done or something is beyond repair."""
        try:
            unknown = [actor for actor in self._actors if actor not in self._lives]
            self._lives.update((actor, life_of(actor)) for actor in unknown)
            while self._blocks or self._flying:
                while self._blocks and self._free:
                    actor = self._free.pop(0)
                    self._submit(actor, *self._blocks.pop(0), self._lives.get(actor))
                done, _ = ray.wait([*self._flying, *self._away], num_returns=1, timeout=SILENT_SECONDS)
                if not done:
                    self._hand_on()
                elif done[0] in self._away:
                    self._back(done[0])
                else:
                    self._take(done[0])
        except ray.exceptions.RayTaskError as error:
            self._results.put(raised(error))
        except ray.exceptions.RayActorError as error:
            lost = self._lost(error)
            lost.__cause__ = error
            self._results.put(lost)
        except Exception as error:  # noqa: BLE001 (it is handed on: who waits for blocks would wait for ever)
            self._results.put(error)

    def _lost(self, error: ray.exceptions.RayActorError) -> UserError:
        """A sentence about an actor that could not be kept alive."""
        asked = f" (with {', '.join(self._rewards)})" if self._rewards else ""
        return UserError(
            f"expected an actor that draws pictures and scores them{asked} to go on, its process ended again and again: a reward may "
            f"leave it (os._exit), crash it, or need more memory than there is ({in_a_line(error, 300)}); try the reward alone on a "
            "picture"
        )

    def _submit(self, actor: ray.actor.ActorHandle, number: int, block: Block, life: str | None) -> None:
        self._flying[actor.rollout.remote(block, [self._weights], self._version)] = (actor, number, block, life)

    def _hand_on(self) -> None:
        """Give blocks of actors that lost their place, where no machine has room for them, to those who have nothing to do."""
        at_work = {actor for actor, *_ in self._flying.values()}
        if not set(self._free) - at_work:
            return
        asked: dict[Any, ray.actor.ActorHandle] = {
            actor.life.options(max_task_retries=0).remote(): actor for actor in at_work
        }
        for answered in ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)[0]:
            try:
                ray.get(answered)
            except ray.exceptions.ActorUnavailableError:
                self._leave(asked[answered])

    def _leave(self, actor: ray.actor.ActorHandle) -> None:
        """Do without an actor until it is there again."""
        for ref, (whose, number, block, _) in list(self._flying.items()):
            if whose == actor:
                del self._flying[ref]
                ray.cancel(ref)
                self._put_back(number, block)
        self._free = [free for free in self._free if free != actor]
        self._away[actor.life.remote()] = actor, time.monotonic()

    def _put_back(self, number: int, block: Block) -> None:
        self._moved[number] += 1
        self._blocks.insert(0, (number, block))

    def _back(self, answered: ray.ObjectRef) -> None:
        """An actor is there again, or cannot be reached yet: then it is asked again, for some time where nobody else is there."""
        actor, since = self._away.pop(answered)
        try:
            self._lives[actor] = ray.get(answered)
        except ray.exceptions.ActorUnavailableError:
            if not (self._free or self._flying) and time.monotonic() - since > REACHED_SECONDS:
                raise
            time.sleep(PAUSE_SECONDS)
            self._away[actor.life.remote()] = actor, since
        else:
            self._free += [actor] * self._at_once

    def _take(self, done: ray.ObjectRef) -> None:
        """An answer. A block of an actor that could not be reached is dealt once more. An actor in which a reward hangs gets a fresh
        process, and so does one that raises what is no sentence, once a block: after a fault of its GPU a process computes nothing
        any more. The fresh one is waited for, since the old one fails whatever reaches it before it is gone.
        """
        actor, number, block, life_before = self._flying.pop(done)
        try:
            life, rollouts = ray.get(done)
        except ray.exceptions.ActorUnavailableError:
            if number in self._unreached:
                raise
            self._unreached.add(number)
            self._put_back(number, block)
            self._leave(actor)
            return
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            most = cause.retries if isinstance(cause, RewardHung) else int(not isinstance(cause, UserError))
            if self._replaced[number] >= most:
                raise
            self._replaced[number] += 1
            if life_before == self._lives.get(actor):  # else another block's failure has replaced it already
                ray.kill(actor, no_restart=False)
                self._lives[actor] = life_after(actor, life_before)
            self._free.append(actor)
            self._blocks.insert(0, (number, block))
            return
        self._free.append(actor)
        self._lives[actor] = life
        repeated = life_before not in (None, life)  # by Ray, which repeats what an actor had when it died
        times = self._replaced[number] + self._moved[number] + repeated
        redone = sum([rollouts.cost] * times, rollouts.redone)
        self._results.put(dataclasses.replace(rollouts, redone=redone))
