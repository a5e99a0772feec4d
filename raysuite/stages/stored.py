"""Rollouts on disk: a run that keeps them, and a run that learns from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from raysuite.config import RunConfig, validate
from raysuite.errors import UserError
from raysuite.places import replacing
from raysuite.stages.collect import Collector
from raysuite.stages.files import RunDirectory, inputs
from raysuite.stages.preferences import refuse_several_draws
from raysuite.types import Block, Cost, Rollouts

ARRAYS = ("latents_NK", "logp_NK", "reward_N", "credit_NK", "draws_N")


def _file(run: Path, update: int, block: int) -> Path:
    return run / "rollouts" / f"{update:06d}" / f"{block:04d}.safetensors"


def keep(run: Path, rollouts: Rollouts) -> None:
    """Write one block's rollouts into a run directory, whole or not at all."""
    found = {name: getattr(rollouts, name) for name in ARRAYS}
    arrays = {name: np.ascontiguousarray(array) for name, array in found.items() if array is not None}
    scores = {f"scores/{name}": values for name, values in rollouts.scores.items()}
    metadata = {"block": json.dumps(dataclasses.asdict(rollouts.block)), "version": str(rollouts.version)}
    with replacing(_file(run, rollouts.block.update, rollouts.block.index)) as temporary:
        safetensors.numpy.save_file({**arrays, **scores}, temporary, metadata=metadata)


def read(run: Path, update: int, block: int) -> Rollouts:
    """Read what `keep` wrote. Drawing them cost this run nothing.

    Raises:
        UserError: the file is not there, or damaged.
    """
    with _opened(_file(run, update, block)) as kept:
        arrays: dict[str, Any] = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - not a mapping
        metadata = kept.metadata()
    found: dict[str, Any] = {name: arrays.get(name) for name in ARRAYS}
    return Rollouts(
        block=_block(metadata),
        version=int(metadata["version"]),
        scores={name.removeprefix("scores/"): a for name, a in arrays.items() if name.startswith("scores/")},
        pictures=None,
        kl_N=None,
        cost=Cost(),
        **found,
    )


def read_block(run: Path, update: int, block: int) -> Block:
    """What a block's rollouts were drawn for: its prompts are those that the source's seed chose.

    Raises:
        UserError: the file is not there, or damaged.
    """
    with _opened(_file(run, update, block)) as kept:
        return _block(kept.metadata())


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as kept:
            yield kept
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"expected kept rollouts at {file}, could not read them ({error}): name a run made with --keep-rollouts that had "
            "at least as many updates"
        ) from error


def _block(metadata: Mapping[str, str]) -> Block:
    coordinates: dict[str, Any] = json.loads(metadata["block"])
    # JSON has lists for tuples
    listed = ("prompts", "prompt_ids", "metadata", *(["window"] if coordinates["window"] else []))
    return Block(**{**coordinates, **{name: tuple(coordinates[name]) for name in listed}})


def check_replay(config: RunConfig) -> None:
    """Refuse to learn from another run's rollouts where they are not what this run's objective takes them for.

    Raises:
        UserError: there are none, too few, or they were drawn with other settings.
    """
    run = Path(str(config.rollouts.replay))
    file = run / "config.json"
    if not file.exists() or not (run / "rollouts").is_dir():
        raise UserError(
            f"expected a run with kept rollouts at rollouts.replay={run}, found none: make one with --keep-rollouts"
        )
    source = validate(json.loads(file.read_text()))
    advantages = config.built_objective.consumes == "advantages"
    read_by = ((config, inputs(config)), (source, RunDirectory(run).inputs()))
    wanted, found = (_identity(each, digests, credit=advantages) for each, digests in read_by)
    differing = sorted(name for name in wanted if wanted[name] != found[name])
    if differing:
        raise UserError(
            f"expected rollouts of this configuration at {run}, they were drawn with another {', '.join(differing)}: "
            "set the same here"
        )
    blocks = range(config.rollouts.blocks)  # they are kept in the order in which they were learned from
    kept = sum(all(_file(run, update, block).exists() for block in blocks) for update in range(config.updates))
    if 0 < kept < config.updates:
        raise UserError(
            f"expected kept rollouts of {config.updates} updates at {run}, found those of {kept}: ask for as many (updates={kept}; in "
            "a study, fewer --units), or name a run that had more"
        )
    *_, last = (read(run, config.updates - 1, block) for block in blocks)
    if not advantages and last.draws_N is not None and not config.preferences.across_draws:
        refuse_several_draws(last.draws_N.reshape(-1, last.block.samples_per_prompt))


def _identity(config: RunConfig, digests: Mapping[str, str], *, credit: bool) -> dict[str, Any]:
    sizes = {name: getattr(config.rollouts, name) for name in ("prompts", "samples", "prompts_per_block")}
    facts: dict[str, Any] = {name: config.identity()[name] for name in ("model", "sampler", "rewards")}
    facts["rollouts"] = sizes
    for name in ("training", "writer"):  # wherever the same files lie
        facts[f"prompts.{name}"] = digests.get(f"prompts.{name}", getattr(config.prompts, name))
    best_of = config.prompts.best_of
    facts["prompts.best_of (or seed, which draws its pictures)"] = (best_of, config.seed if best_of else None)
    drawn = config.parameters.kind == "prompts"
    facts["distribution of prompts (or seed, which draws where it begins)"] = (
        (config.parameters.prompts.model_dump(mode="json"), config.seed) if drawn else None
    )
    facts["parameters.start"] = digests.get("parameters.start", config.parameters.start)
    if credit:
        facts["credit"] = (config.credit.kind, config.credit.previews, config.credit.preview_steps)
    return facts


class ReplayCollector(Collector):
    """Hands out the rollouts that a run kept, by the numbers of the blocks that are asked for."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        """Whatever the weights: the version that drew each block stands in it."""
        return (read(self._run, block.update, block.index) for block in blocks)
