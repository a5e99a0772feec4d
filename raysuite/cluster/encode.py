"""Preference data -> a preference set, with Ray Data: parts of the source go to a pool of actors, each with the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from raysuite.cluster import session
from raysuite.cluster.placement import Piece, check_room
from raysuite.config import Model
from raysuite.datasets.encode import Pairs, changed, check_some, encode_block
from raysuite.datasets.pictures import DECODER
from raysuite.datasets.sources import LAYOUTS, Part, Source, as_items
from raysuite.devices import told_if_full
from raysuite.errors import UserError
from raysuite.families import Policy, encoder_digests, open_model
from raysuite.progress import Counting
from raysuite.stages import preference_set


class Encoder:
    """One actor: opens the model once, then turns parts into blocks on disk.

    Returns their numbers, and of a part that could not be encoded a sentence for the user: Ray Data wraps exceptions in its own.
    """

    def __init__(
        self,
        model: Model,
        layout: str,
        paths: Sequence[str],
        split: str,
        names: Mapping[str, str],
        pairs: Pairs,
        directory: str,
        threads: int,
        device: str,
    ) -> None:
        torch.set_num_threads(threads)
        self._model, self._device, self._pairs, self._directory = model, torch.device(device), pairs, Path(directory)
        self._layout, self._named = layout, (paths, split, names)

    @cached_property
    def _opened(self) -> tuple[Policy, Source]:
        """Opened for the first part, with which a sentence can be returned: this machine may lack what the command's has."""
        session.check_shared(self._directory / preference_set.MANIFEST, "an actor")
        return open_model(self._model, self._device), LAYOUTS[self._layout](*self._named)

    @told_if_full()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch of parts by column."""
        faults = []
        for values in zip(*batch.values(), strict=True):
            fields = {n: v.item() if hasattr(v, "item") else v for n, v in zip(batch, values, strict=True)}
            try:
                policy, source = self._opened
                encode_block(policy, source, Part(**fields), self._directory, pairs=self._pairs)
                faults.append("")
            except UserError as error:
                faults.append(str(error))
        return {"number": batch["number"], "fault": np.array(faults)}


def encode(
    source: Source,
    directory: Path,
    *,
    model: Model,
    pairs: Pairs,
    rows_per_block: int,
    actors: int,
    actor_gpus: float,
    command: Sequence[str],
    counting: Counting,
) -> dict[str, Any]:
    """Encode a source, or go on where it was stopped, and return the set's summary. Finished blocks are not touched.

    Raises:
        UserError: the source or the model cannot be read, nothing in it is usable, the directory holds something else, or not all
            actors write into it.
    """
    preference_set.check_place(directory)
    parts = source.parts(rows_per_block)
    check_some(source, parts)
    policy = open_model(model, torch.device("cpu"))
    identity = {
        "model": model.path,
        "encoders": encoder_digests(model),
        "latent_shape": policy.latent_shape,
        "members": source.members,
        "steps": None,
        "sampler": None,
        "source": {
            **source.identity(),
            "pairs": pairs,
            "decoder": DECODER,
            "rows_per_block": rows_per_block,
            "model": model.model_dump(mode="json", include={"arguments", "precision"}),
        },
    }
    preference_set.claim(directory, identity, command)
    there = preference_set.finished_blocks(directory)
    preference_set.forget(directory, changed(source, [part for part in parts if part.number in there], directory))
    done = preference_set.finished_blocks(directory)
    missing = [part for part in parts if part.number not in done]
    counting.begin(len(parts), done=len(parts) - len(missing))
    if missing:
        with _core_is_quiet():
            session.connect()
        check_room([Piece("an actor", 1, actor_gpus)] * actors, remedy="lower --actors or --actor-gpus")
        for _ in _encoded(source, directory, missing, model, pairs, actors, actor_gpus):
            counting.advance()
    if unseen := {part.number for part in parts} - preference_set.finished_blocks(directory):
        raise UserError(
            f"expected {len(parts)} finished blocks in {directory}, {len(unseen)} that actors wrote are not there: set --out to a "
            "directory on a file system that every machine of the cluster mounts, or where it is one, give the same command again"
        )
    return preference_set.summarise(directory)


@contextmanager
def _core_is_quiet() -> Iterator[None]:
    """For the length of a `with` that starts Ray: its core says only what is fatal, then and later.

    Ray Data keeps actors' arguments in the object store, of which the core warns on every start; and that it is to be quiet it says on
    stderr, too, before it is. What goes wrong meanwhile is raised.
    """
    name = "RAY_BACKEND_LOG_LEVEL"
    before, spoken = os.environ.get(name), os.dup(2)
    try:
        os.environ[name] = before or "fatal"
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(spoken, 2)
        os.close(spoken)
        if before is None:
            del os.environ[name]


def _encoded(
    source: Source,
    directory: Path,
    missing: Sequence[Part],
    model: Model,
    pairs: Pairs,
    actors: int,
    actor_gpus: float,
) -> Iterator[int]:
    """Numbers of blocks as they are finished."""
    # on one machine the actors share its cores; on a cluster each has the one that it asks for
    threads = max(1, int(ray.cluster_resources()["CPU"]) // actors) if len(ray.nodes()) == 1 else 1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    blocks = ray.data.from_items(as_items(missing), override_num_blocks=len(missing)).map_batches(
        Encoder,
        fn_constructor_args=(
            model,
            source.layout,
            source.paths,
            source.split,
            source.names,
            pairs,
            str(directory),
            threads,
            "cuda" if actor_gpus > 0 else "cpu",
        ),
        batch_size=1,
        num_cpus=1,
        num_gpus=actor_gpus,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    for row in blocks.iter_rows():
        if row["fault"]:
            raise UserError(row["fault"])
        yield int(row["number"])
