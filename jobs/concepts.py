"""Does a distribution of prompts learn more of a concept than one prompt does? `python jobs/concepts.py --out DIR [--seeds 0 1 2]`.

A concept is four scenes that differ in count and colour (two or three circles, red or purple), known by 20 pictures of them. A
distribution of soft prompts and a single one learn it from the same pictures, with as many network evaluations, every point with
a noise level and a draw of its own. Pictures are then drawn of the `distribution`, of `one` prompt, and of `one + noise`: one
prompt with the distribution's deviation around it, the baseline that the distribution has to beat. The exact reader says which of
the four scenes each picture is, if any. The same command goes on with what is missing; docs/log.md has what was found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.soft_prompts import Share, Values
from raysuite.kernel.stats import Interval, bootstrap_mean
from raysuite.places import replacing
from raysuite.results.numerals import with_interval
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.learn import learn
from raysuite.stages.preferences import rows_of_set
from raysuite.stages.rollout import sample
from raysuite.types import Block, Preferences
from raysuite.worlds.scenes.grammar import SHAPES, Scene, Thing
from raysuite.worlds.scenes.render import render
from raysuite.worlds.scenes.verify import verify

PICTURES_OF_A_SCENE = 5
GUIDANCES = (1.0, 3.0)
ARMS = ("distribution", "one", "one + noise")
ONE = {f"parameters.prompts.{name}": value for name, value in {"count": 1, "draw": "mean", "orthogonality": 0}.items()}
"""Settings of a single prompt."""
BLOCK = 32
"""Pictures that are drawn at once."""
PALETTES = (
    ((2, 3), ("red", "purple")),
    ((1, 3), ("green", "yellow")),
    ((2, 4), ("blue", "black")),
    ((1, 2), ("red", "blue")),
)
"""Counts and colours of the concepts, each with every shape."""


@dataclass(frozen=True)
class Concept:
    """Four scenes of one shape."""

    shape: str
    counts: tuple[int, int]
    colours: tuple[str, str]

    @property
    def name(self) -> str:
        """Such as `23-red-purple-circle`."""
        return f"{self.counts[0]}{self.counts[1]}-{'-'.join(self.colours)}-{self.shape}"

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The four."""
        return tuple(
            Scene((Thing(colour, self.shape),) * count) for count, colour in product(self.counts, self.colours)
        )

    def pictures(self, seed: int) -> np.ndarray:
        """Pictures of each, uint8 (N, H, W, 3)."""
        rng = numpy_generator(seed=seed, stage=Stage.WORLD)
        return np.stack([render(scene, rng) for scene in self.scenes for _ in range(PICTURES_OF_A_SCENE)])

    def cells(self, images_N: np.ndarray) -> list[int]:
        """Which of the four each picture is, and -1 for none."""
        return [
            next((c for c, scene in enumerate(self.scenes) if verify(image, scene).passed), -1) for image in images_N
        ]


CONCEPTS = tuple(
    Concept(SHAPES[(row + turn) % len(SHAPES)], *palette)
    for turn in range(len(SHAPES))
    for row, palette in enumerate(PALETTES)
)
"""Every palette with every shape; the first few are as unlike as can be."""


def settings(seed: int, updates: int, **more: object) -> RunConfig:
    """The recipe of a concept from reference pictures, on pictures that are not on disk."""
    overrides = {"seed": seed, "evaluation.seed": seed, "updates": updates, **more}
    return load("scenes-prompts-sft", {path: str(value) for path, value in overrides.items()})


def opened(config: RunConfig) -> PipelinePolicy:
    """The bundled model with soft prompts before it."""
    policy = open_policy(config, torch.device("cpu"))
    assert isinstance(policy, PipelinePolicy) and policy.soft is not None
    return policy


def trained(config: RunConfig, images_N: np.ndarray) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Soft prompts after all updates, and what the last ones told."""
    policy = opened(config)
    latents_RMK = policy.encode(images_N)[:, None, None]
    settings = config.learn
    optimizer = torch.optim.AdamW(
        policy.trainable().values(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    told: dict[str, float] = {}
    spent = 0
    for update in range(config.updates):
        rows = rows_of_set(config, len(images_N), update=update, block=0)
        batch = Preferences(latents_RMK=latents_RMK[rows], prompts_R=("",) * len(rows))
        told, cost = learn(config, policy, optimizer, {0: batch}, update=update, accelerator=Accelerator())
        spent += cost.network_evaluations
    return {name: value.detach() for name, value in policy.trainable().items()}, {**told, "network_evaluations": spent}


def shares(distribution: Values, one: Values) -> dict[str, tuple[Share, ...]]:
    """What is drawn from, by arm: with the same label the noise is the same."""
    count = len(next(iter(distribution.values())))
    single = {name: value.expand(count, -1, -1) for name, value in one.items()}  # count times: no deviation
    drawn, alone = Share(distribution, 1, 1), Share(single, 1, 0)
    less_its_mean = Share(distribution, -1, 0)
    return dict(zip(ARMS, ((drawn,), (alone,), (drawn, less_its_mean, alone)), strict=True))


def measured(concept: Concept, seed: int, *, updates: int, pictures: int) -> dict:
    """One concept, learned and drawn."""
    images_N = concept.pictures(seed)
    config = settings(seed, updates)
    distribution, told = trained(config, images_N)
    one, told_one = trained(settings(seed, updates, **ONE), images_N)
    assert told["network_evaluations"] == told_one["network_evaluations"]
    cells: dict[str, dict[str, list[int]]] = {}
    for guidance in GUIDANCES:
        drawing = settings(seed, updates, **{"sampler.guidance": guidance})
        policy = opened(drawing)
        assert policy.soft is not None
        of = cells.setdefault(f"{guidance:g}", {})
        for arm, policy.soft.mixture in shares(distribution, one).items():
            of[arm] = [
                cell
                for first in range(0, pictures, BLOCK)
                for cell in concept.cells(drawn(policy, drawing, first, pictures))
            ]
    return {"concept": concept.name, "seed": seed, "updates": updates, "learned": told, "one": told_one, "cells": cells}


def drawn(policy: PipelinePolicy, config: RunConfig, first: int, pictures: int) -> np.ndarray:
    """Pictures of no text but the soft prompts, number `first` and the next."""
    block = Block(
        update=0,
        index=0,
        prompts=("",),
        prompt_ids=(0,),
        samples_per_prompt=min(BLOCK, pictures - first),
        metadata=({},),
        first_sample=first,
        evaluation=True,
    )
    return sample(policy, block, config, version=0).previews_JN[-1]


def share(cells: Sequence[int]) -> float:
    """Of pictures that are of the concept."""
    return float(np.mean(np.array(cells) >= 0))


def entropy(cells: Sequence[int]) -> float:
    """Of the four scenes among pictures of the concept, bits: 2 where all are equally frequent, 0 where one is left or none."""
    counts = np.bincount([cell for cell in cells if cell >= 0])
    frequency = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(frequency * np.log2(frequency)).sum())


FEW = 10
"""Below so many concepts percentile intervals are too narrow."""
MEASURES = {"share in the concept": share, "entropy, bits": entropy}


def table(found: Sequence[Mapping]) -> list[str]:
    """Means over concepts and seeds, and differences of the same concept and seed, with 95 % intervals over concepts."""
    concepts = np.array([each["concept"] for each in found])
    few = ": too narrow with so few" if len(set(concepts)) < FEW else ""
    lines = [f"{len(found)} trained pairs, {len(set(concepts))} concepts, 95 % intervals over concepts{few}"]

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, concepts, numpy_generator(seed=0, stage=Stage.BOOTSTRAP))

    for guidance, (measure, of) in product(found[0]["cells"], MEASURES.items()):
        values = {arm: np.array([of(each["cells"][guidance][arm]) for each in found]) for arm in ARMS}
        lines.append(f"guidance {guidance}: {measure}")
        lines += [f"  {arm:34}{with_interval(mean(values[arm]))}" for arm in ARMS]
        lines += [
            f"  {f'distribution - {arm}':34}{with_interval(mean(values['distribution'] - values[arm]), signed=True)}"
            for arm in ARMS[1:]
        ]
    return lines


def results(out: Path, *, seeds: Sequence[int], concepts: int, updates: int, pictures: int) -> list[dict]:
    """What `measured` says of the first concepts with every seed; what lies in `out` already is read.

    Raises:
        UserError: it was found with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed, concept in product(seeds, CONCEPTS[:concepts]):
        file = out / f"{concept.name}-seed{seed}.json"
        if not file.exists():
            result = measured(concept, seed, updates=updates, pictures=pictures)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(result))
        found.append(json.loads(file.read_text()))
        drawn = len(found[-1]["cells"][f"{GUIDANCES[-1]:g}"][ARMS[0]])
        if (found[-1]["updates"], drawn) != (updates, pictures):
            raise UserError(
                f"expected {updates} updates and {pictures} pictures in {file}, got other numbers: name another --out"
            )
        arms = found[-1]["cells"][f"{GUIDANCES[-1]:g}"].items()
        print(file.stem, *(f"{arm}: {share(cells):.2f}/{entropy(cells):.2f}" for arm, cells in arms), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of what is found")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--concepts", type=int, default=len(CONCEPTS), help="how many of them")
    parser.add_argument("--updates", type=int, default=400, help="of 16 points, each one forward and one backward pass")
    parser.add_argument("--pictures", type=int, default=96, help="of each arm and guidance")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    print("\n".join(table(results(**given))))


if __name__ == "__main__":
    main()
