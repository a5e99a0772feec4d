"""A suite's evaluation on Ray: its blocks spread over a run's actors, each written as it comes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import torch

from raysuite.cluster import launch, session
from raysuite.cluster.actors import RayCollector
from raysuite.families import open_policy
from raysuite.progress import Counting
from raysuite.stages import checkpoint
from raysuite.suites import evaluation
from raysuite.suites.protocol import Member, Protocol
from raysuite.types import Block


def preflight(protocol: Protocol) -> None:
    """Find what would otherwise be found after a minute of start-up.

    Raises:
        UserError: a model or reward is not there, or does not fit the prompts.
    """
    for group in _alike(protocol):
        launch.check_drawing(group[0].config)
    launch.check_scoring(protocol.config, protocol.prompts, {})


def evaluate(protocol: Protocol, directory: Path, counted: Callable[[str, str], Counting]) -> None:
    """Draw and score what is missing in a directory that was claimed, one member after the other.

    Args:
        protocol: what is asked.
        directory: where to.
        counted: makes what is told of every block.

    Raises:
        UserError: a model cannot be opened, or a reward fails.
    """
    for group in _alike(protocol):
        work = [(member, evaluation.missing(protocol, directory, member)) for member in group]
        if any(blocks for _, blocks in work):
            _evaluate(protocol, directory, work, counted)


def _alike(protocol: Protocol) -> Iterator[list[Member]]:
    """Members that are opened alike: the same processes draw them."""

    def opened(member: Member) -> str:
        return repr(member.opened)

    for _, group in groupby(sorted(protocol.members, key=opened), opened):
        yield list(group)


def _evaluate(
    protocol: Protocol,
    directory: Path,
    work: list[tuple[Member, list[Block]]],
    counted: Callable[[str, str], Counting],
) -> None:
    config, planned = work[0][0].config.with_actors(), protocol.blocks()
    asked = [text for block in planned for text in block.prompts]
    with session.drawing_actors(config, evaluation.of(directory, work[0][0]), prompts=asked) as (actors, texts):
        policy = open_policy(config, torch.device("cpu"), texts=texts)
        collector, began = RayCollector.of(config, actors), policy.weights()
        for version, (member, blocks) in enumerate(work):
            with counted(f"drawing and scoring {member.label}", "blocks") as counting:
                counting.begin(len(planned), done=len(planned) - len(blocks))
                weights = began
                if member.checkpoint is not None:
                    state = checkpoint.load(member.checkpoint, policy)
                    weights = state.ema if member.ema and state.ema is not None else policy.weights()
                for done in collector.start(blocks, weights, version):
                    evaluation.write(protocol, directory, member, done)
                    counting.advance()
    if texts is not None:
        shutil.rmtree(texts, ignore_errors=True)  # on NFS what is still open stays: the next evaluation makes it whole
