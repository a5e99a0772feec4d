"""Prompts encoded once, before anything is drawn: learners and rollout actors then never load a text encoder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from raysuite.cluster.actors import PolicyActor, dealt
from raysuite.cluster.placement import drawing_device, strategy_of_actors
from raysuite.config import TOYS, RunConfig
from raysuite.devices import told_if_full
from raysuite.families import located, open_policy
from raysuite.stages.files import content, write_json
from raysuite.stages.prompts import drawn, run_prompts

PROMPTS_AT_ONCE = 32
"""That an actor is given: what is lost when one dies."""


class TextEncoder(PolicyActor):
    """One actor: opens a pipeline without its denoising network, and writes what its encoders make of prompts."""

    def __init__(self, config: RunConfig, directory: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        device = drawing_device(config.cluster)
        super().__init__(lambda: open_policy(config, device, texts=directory, weights=False))

    @told_if_full()
    def encode(self, prompts: Sequence[str]) -> int:
        """Write the text states of prompts that are not there yet; returns how many prompts these were."""
        return len(self._policy.text_states(prompts))


def encode_once(
    config: RunConfig, directory: Path, *, threads: int, prompts: Iterable[str] | None = None, here: bool = False
) -> Path | None:
    """The directory of text states, all there; None where processes encode for themselves.

    What was encoded before is not encoded again.

    Args:
        config: of the run.
        directory: of the run, or of what is made with its settings: of one model.
        threads: of each process.
        prompts: what will be drawn or learned; by default what the run may draw of its prompts.
        here: encode in this one, and not in actors, which need Ray to run.

    Raises:
        UserError: the model cannot be opened.
    """
    if not config.cluster.encode_once or config.model.path in TOYS:
        return None
    texts = directory / "texts"
    if prompts is None:
        prompts = (prompt.given for prompt in drawn(config, run_prompts(config, directory)))
    wanted = list(dict.fromkeys(["", *prompts]))
    of = {"model": config.canonical()["model"], "content": content(located(config.model).path)}
    asked = {
        "prompts": hashlib.sha256(json.dumps(wanted).encode()).hexdigest(),
        "guided": config.sampler.guidance > 1,
        "negative_prompt": config.sampler.negative_prompt,
    }
    if not _says(texts / "model.json", of):  # states are found by what was asked, whoever answered
        shutil.rmtree(texts, ignore_errors=True)
        write_json(texts / "model.json", of)
    done = texts / "complete.json"
    if _says(done, asked):
        return texts
    if here:
        TextEncoder(config, texts, threads=threads).encode(wanted)
    else:
        _by_actors(config.with_actors(), texts, wanted, threads=threads)
    write_json(done, asked)
    return texts


def _says(file: Path, what: Mapping[str, Any]) -> bool:
    return file.exists() and json.loads(file.read_text()) == what


def _by_actors(config: RunConfig, texts: Path, prompts: Sequence[str], *, threads: int) -> None:
    remote: Any = ray.remote(TextEncoder).options(
        num_cpus=config.cluster.actor_cpus,
        num_gpus=config.cluster.actor_gpus,
        max_restarts=2,
        max_task_retries=2,
        scheduling_strategy=strategy_of_actors(config.cluster),
    )
    actors = [remote.remote(config, texts, threads=threads) for _ in range(config.cluster.actors)]
    pieces = [prompts[first : first + PROMPTS_AT_ONCE] for first in range(0, len(prompts), PROMPTS_AT_ONCE)]
    try:
        for _ in dealt(actors, lambda actor, piece: actor.encode.remote(piece), pieces):
            pass
    finally:
        for actor in actors:
            ray.kill(actor)
