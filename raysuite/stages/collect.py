"""Who draws rollouts: the learner asks a collector for blocks by coordinates, and does not care where they are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult
from typing import final

import numpy as np

from raysuite.config import RunConfig
from raysuite.devices import thread_pool
from raysuite.families.policy import Policy
from raysuite.stages.rollout import Ask, ask_here, sample, score
from raysuite.stages.warm import warm_drawing
from raysuite.types import Block, Rollouts

IDLE_SECONDS = 0.2
"""How long a collector waits for a block before it lets the learner look up."""


class Collector(ABC):
    """Draws and scores blocks with given weights."""

    @abstractmethod
    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Begin, if the collector can work while the caller does; the iterator yields blocks as they are done."""

    def warm(self, blocks: Sequence[Block]) -> Callable[[], None]:
        """Begin to compile for blocks like these, where the model is to be compiled; what is returned waits until that is done."""
        return lambda: None

    @final
    def by_split(
        self, blocks: Sequence[tuple[str, Block]], weights: np.ndarray, version: int
    ) -> Iterator[tuple[str, Rollouts]]:
        """`start` with evaluation blocks, each with the name of its split, which goes with it."""
        splits = {(b.prompt_ids, b.first_sample, b.index): split for split, b in blocks}
        for done in self.start([block for _, block in blocks], weights, version):
            yield splits[done.block.prompt_ids, done.block.first_sample, done.block.index], done


class LocalCollector(Collector):
    """Draws in this process with the learner's own policy, and scores blocks while the next are drawn."""

    def __init__(
        self,
        policy: Policy,
        config: RunConfig,
        *,
        ask: Ask = ask_here,
        ahead: int = 1,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            policy: as it came. It is lent for each block, and keeps its weights and its reference.
            config: of the run.
            ask: for scores.
            ahead: blocks that may be scored while another is drawn.
            check: called before every step and now and then while scores are waited for; what it raises ends the work.
        """
        self._policy, self._config, self._ask, self._ahead, self._check = policy, config, ask, ahead, check
        self._base = policy.weights() if config.reference.refresh else None

    def warm(self, blocks: Sequence[Block]) -> Callable[[], None]:
        """Nothing happens before it is waited for."""
        return lambda: warm_drawing(self._policy, blocks)

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Nothing happens before the iterator is read; then, until its end, the policy must not learn."""
        found = self._policy.weights()
        own = None if np.array_equal(found, weights) else found
        scored: deque[AsyncResult[Rollouts]] = deque()
        with thread_pool(self._ahead) as scoring:
            for block in blocks:
                with self._lent(block, weights, own):
                    drawn = sample(self._policy, block, self._config, version=version, check=self._check)
                scored.append(scoring.apply_async(score, (drawn, self._config), {"ask": self._ask}))
                if len(scored) > self._ahead:
                    yield self._waited_for(scored.popleft())
            while scored:
                yield self._waited_for(scored.popleft())

    @contextmanager
    def _lent(self, block: Block, weights: np.ndarray, own: np.ndarray | None) -> Iterator[None]:
        """The policy with `weights`, unless they are its own, and where a block measures the KL, with the model as it came for its
        reference.
        """
        policy, base = self._policy, self._base if block.measure_kl else None
        reference = policy.reference_weights
        if own is not None:
            policy.set_weights(weights)
        if reference is not None and base is not None:
            policy.set_reference(base)
        try:
            yield
        finally:
            if own is not None:
                policy.set_weights(own)
            if reference is not None and base is not None:
                policy.set_reference(reference)

    def _waited_for(self, scored: AsyncResult[Rollouts]) -> Rollouts:
        while not scored.ready():
            self._check()
            scored.wait(IDLE_SECONDS)
        return scored.get()
