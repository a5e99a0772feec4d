"""Who draws rollouts: the learner asks a collector for blocks by coordinates, and does not care where they are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.stages.rollout import sample, score
from raysuite.stages.warm import warm_drawing
from raysuite.types import Block, Rollouts


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
        splits = {(b.prompts, b.first_sample, b.index): split for split, b in blocks}
        for done in self.start([block for _, block in blocks], weights, version):
            yield splits[done.block.prompts, done.block.first_sample, done.block.index], done


class LocalCollector(Collector):
    """Draws in this process with the learner's own policy, which is as it came when the collector is made.

    Rewards may take what they take here: one that hangs could only be ended with the process.
    """

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        self._policy = policy
        self._config = config
        self._base = policy.weights()

    def warm(self, blocks: Sequence[Block]) -> Callable[[], None]:
        """Nothing happens before it is waited for."""
        return lambda: warm_drawing(self._policy, blocks)

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Nothing happens before the iterator is read."""
        for block in blocks:
            own, reference = self._policy.weights(), self._policy.reference_weights
            self._policy.set_weights(weights)
            if reference is not None:  # the learner's; what a rollout measures is the KL from the model as it came
                self._policy.set_reference(self._base)
            drawn = sample(self._policy, block, self._config, version=version)
            self._policy.set_weights(own)
            if reference is not None:
                self._policy.set_reference(reference)
            yield score(drawn, self._config)
