"""Whether there is room for what is to run, and where learners, actors and judges go when they share GPUs."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import placement_group, remove_placement_group

from raysuite.config import Cluster
from raysuite.errors import UserError

LOOKS_EVERY = 1.0
"""Seconds from one look at a cluster that is to grow to the next."""
HELD_SECONDS = 3600.0
"""How long places may be kept for learners while others look for theirs and open their models."""
ROUNDING = 1e-6
"""Shares are sums of decimals."""


class Piece(NamedTuple):
    """What one process takes, of one machine."""

    who: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.who} ({self.cpus:g} CPUs" + (f", {self.gpus:g} GPUs)" if self.gpus else ")")


def pieces_of(cluster: Cluster, *, workers: int) -> list[Piece]:
    """Of so many learners, the actors and the judges."""
    return [
        *[Piece("a learner", cluster.worker_cpus, cluster.worker_gpus)] * workers,
        *[Piece("an actor", cluster.actor_cpus, cluster.actor_gpus)] * cluster.actors,
        *(Piece(f"a judge of {name}", j.cpus, j.gpus) for name, j in cluster.judges.items() for _ in range(j.actors)),
    ]


def bundles_of(pieces: Sequence[Piece]) -> list[dict[str, float]]:
    """What Ray is asked for: a bundle for every piece that takes something."""
    bundles = [{kind: n for kind, n in (("CPU", piece.cpus), ("GPU", piece.gpus)) if n} for piece in pieces]
    return [bundle for bundle in bundles if bundle]


def places_beside(cluster: Cluster) -> list[dict[str, float]]:
    """What a run of a sweep has places reserved for beside its learners': Ray has none for a judge that takes nothing."""
    pieces = pieces_of(cluster, workers=0)
    return [{"CPU": piece.cpus, "GPU": piece.gpus} for piece in pieces if piece.cpus or piece.gpus]


def check_room(pieces: Sequence[Piece], *, remedy: str, patience: float = Cluster().patience) -> None:
    """Refuse what would wait forever. A cluster that was joined is asked to grow, and given so many seconds for it; where other work
    holds what it has, that is said, for nothing else would tell why nothing begins.

    Args:
        pieces: of all processes together.
        remedy: how to want less.
        patience: seconds.

    Raises:
        UserError: there is too little, or it lies in pieces too small.
    """
    joined, until = os.environ.get("RAY_ADDRESS"), time.monotonic() + patience
    lacks = _lacking(pieces)
    if lacks and not joined:
        raise UserError(f"expected no more than this machine has, the run wants {lacks}: {remedy}, or join a cluster")
    tell = logging.getLogger("raysuite").warning
    if not lacks:
        if joined and (taken := _taken(pieces)):
            tell(
                "WARNING: other work holds the cluster at %s, the run wants %s: it begins when that ends. Ctrl-C ends the waiting.",
                joined,
                taken,
            )
        return
    tell(
        "WARNING: the run wants %s of the cluster at %s: it waits up to %g seconds for more. Ctrl-C ends the waiting.",
        lacks,
        joined,
        patience,
    )
    try:
        while lacks := _lacking(pieces):
            if time.monotonic() > until:
                raise UserError(
                    f"expected the cluster at {joined} to grow within {patience:g} seconds (cluster.patience), the run wants {lacks}: "
                    f"add machines, or {remedy}"
                )
            _ask_for(pieces, str(joined))  # again and again: what another job asks for takes its place
            time.sleep(LOOKS_EVERY)
    finally:
        _ask_for([], str(joined))


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _taken(pieces: Sequence[Piece]) -> str:
    """What is wanted and not free now, in words; a run of a sweep has its places already."""
    if ray.util.get_current_placement_group():
        return ""
    taken = _more_than(ray.available_resources(), pieces, "%g are free now")
    if taken:  # Ray is told a little later of what this command let go of itself
        time.sleep(LOOKS_EVERY)
        taken = _more_than(ray.available_resources(), pieces, "%g are free now")
    return taken


def _more_than(there: Mapping[str, float], pieces: Sequence[Piece], said: str) -> str:
    """What the pieces come to that is more than there is, in words."""
    wanted = {"CPU": sum(piece.cpus for piece in pieces), "GPU": sum(piece.gpus for piece in pieces)}
    lacks = {kind: n for kind, n in wanted.items() if n > there.get(kind, 0.0) + ROUNDING}
    return " and ".join(f"{n:g} {kind}s where {said % there.get(kind, 0.0)}" for kind, n in lacks.items())


def _lacking(pieces: Sequence[Piece]) -> str:
    """What the cluster has too little of, in words."""
    nodes = _nodes()
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    if lacks := _more_than(total, pieces, "there are %g"):
        return lacks
    left = without_place(pieces, nodes)
    if left is None:
        return ""
    there = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    machines = ", ".join(f"{n} x ({cpus:g} CPUs, {gpus:g} GPUs)" for (cpus, gpus), n in sorted(there.items()))
    return f"a place on one machine for {left} beside the others, where there are {machines}"


def without_place(pieces: Sequence[Piece], nodes: Sequence[Mapping[str, float]]) -> Piece | None:
    """A piece that finds no place, each being on one node and each share of a GPU on one GPU; None where all find one.

    Largest first, each goes where it fits first: for what is large in CPUs and in GPUs, and from small nodes and from large ones,
    so that little that could be placed is refused.
    """
    by_gpus = sorted(pieces, key=lambda piece: (piece.gpus, piece.cpus), reverse=True)
    by_cpus = sorted(pieces, key=lambda piece: (piece.cpus, piece.gpus), reverse=True)
    growing = sorted(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    for one_after_another in (by_cpus, by_gpus):
        for among in (growing, growing[::-1]):
            left = _first_fit(one_after_another, among)
            if left is None:
                return None
    return left


def _first_fit(pieces: Sequence[Piece], nodes: Sequence[Mapping[str, float]]) -> Piece | None:
    free = [_Free(node) for node in nodes]
    return next((piece for piece in pieces if not any(node.takes(piece) for node in free)), None)


class _Free:
    """What a node has left."""

    def __init__(self, node: Mapping[str, float]) -> None:
        whole, share = divmod(node.get("GPU", 0.0), 1)
        self._cpus, self._gpus = node.get("CPU", 0.0) + ROUNDING, [1.0] * int(whole) + [share]

    def takes(self, piece: Piece) -> bool:
        """Whether there is a place for it, which it then has."""
        number, each = math.ceil(piece.gpus), min(piece.gpus, 1.0) - ROUNDING
        fitting = sorted((n for n in range(len(self._gpus)) if self._gpus[n] >= each), key=self._gpus.__getitem__)
        if piece.cpus > self._cpus or number > len(fitting):
            return False
        self._cpus -= piece.cpus
        for gpu in fitting[:number]:
            self._gpus[gpu] -= each
        return True


def _ask_for(pieces: Sequence[Piece], address: str) -> None:
    """Tell a cluster that can grow what is wanted: nothing that waits in Ray tells it yet."""
    if address.startswith("ray://"):  # a client has no way to ask
        return
    if not pieces:
        request_resources(num_cpus=0)
        return
    # what is asked to grow adds shares up; between those that do not fill a GPU there are gaps
    shares = [piece for piece in pieces if 0 < piece.gpus < 1]
    least = sum(piece.gpus for piece in shares)
    fits = (
        n for n in count(math.floor(least)) if not without_place([p._replace(cpus=0) for p in shares], [{"GPU": n}])
    )
    gap = next(fits) - least
    gaps = [1.0] * int(gap + ROUNDING) + ([gap % 1] if ROUNDING < gap % 1 < 1 - ROUNDING else [])
    request_resources(bundles=bundles_of(pieces) + [{"GPU": gap} for gap in gaps])


@contextmanager
def room_for_learners(cluster: Cluster, workers: int) -> Iterator[bool]:
    """Keep the learners' places free until the others have theirs, where those could take them.

    On several machines, others that are no larger go where they find room first, and may leave pieces too small on each. On one, Ray
    fills a GPU with shares before it begins the next: others that come first would leave the learners one GPU, or pieces too small.
    Yields whether places are kept.
    """
    beside = pieces_of(cluster, workers=0)
    sharing = sum(piece.gpus > 0 for piece in beside)
    shared = 0 < cluster.worker_gpus < 1 and sharing > 0 and workers + sharing > 2
    smaller = all(piece.cpus <= cluster.worker_cpus and piece.gpus <= cluster.worker_gpus for piece in beside)
    apart = len(_nodes()) > 1 and smaller  # larger ones would find the learners where alone there was room for them
    # a run of a sweep has places for its actors already, and may wait for other runs to end
    if not (workers and beside and (shared or apart)) or ray.util.get_current_placement_group():
        yield False
        return
    places = placement_group([worker_resources(cluster)] * workers, strategy="PACK")
    try:
        ray.get(places.ready())  # as long as other work takes: nothing is held
        yield True
    finally:
        remove_placement_group(places)


def wait_for(asked: Sequence[ray.ObjectRef], what: str, *, holding: bool) -> None:
    """Wait for first answers: for processes that find their places and open their models.

    Args:
        asked: of each.
        what: they are.
        holding: whether learners' places are kept meanwhile; two runs that keep what the other waits for would wait for ever.

    Raises:
        UserError: places were kept for `HELD_SECONDS`.
    """
    try:
        ray.get(list(asked), timeout=HELD_SECONDS if holding else None)
    except ray.exceptions.GetTimeoutError as error:
        raise UserError(
            f"expected {what} within {HELD_SECONDS / 60:g} minutes beside places that are kept for learners, waited in vain: other "
            "work may hold the room, or their models take longer to download; end what holds it, download the models first, or lower "
            "cluster.workers, actors, judges and their cpus and gpus"
        ) from error


def strategy_of_actors(cluster: Cluster) -> str | None:
    """What Ray is told of where a command's actors go: None is the places that a run of a sweep has reserved for them.

    It has none where learners draw for themselves, and actors do something in their places before they begin.
    """
    group = ray.util.get_current_placement_group()
    reserved = [place for place in group.bundle_specs if place.keys() & {"CPU", "GPU"}] if group is not None else []
    return None if group is not None and len(reserved) >= len(places_beside(cluster)) else "SPREAD"


def worker_resources(cluster: Cluster) -> dict[str, float]:
    """What each learner asks Ray for."""
    return {"CPU": cluster.worker_cpus} | ({"GPU": cluster.worker_gpus} if cluster.worker_gpus else {})


def drawing_device(cluster: Cluster) -> torch.device:
    """Of a process that draws."""
    return torch.device("cuda" if cluster.with_actors().actor_gpus > 0 else "cpu")
