"""checkpoint -> evaluation: fixed prompts, fixed noise, training and held-out prompts apart."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.kernel.diversity import pairwise_distance
from raysuite.kernel.stats import bootstrap_mean, by_prompt
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.stages.files import RunDirectory, write_json
from raysuite.stages.learn import judge
from raysuite.stages.preference_set import PreferenceSet
from raysuite.types import TYPED, Cost, Rollouts

COLUMNS = ("update", "split", "prompt", "sample", "reward", "value")


def record(
    run: RunDirectory, update: int, results: Sequence[tuple[str, Rollouts]], names: Mapping[int, str], *, seed: int
) -> dict[str, float]:
    """Write one evaluation's scores and pictures, and return its metrics.

    Args:
        run: where to.
        update: the number of updates that the policy has had.
        results: every evaluated block with its split, in any order.
        names: what scores are kept under, by prompt number.
        seed: of the KL's bootstrap.
    """
    ordered = sorted(results, key=lambda pair: (pair[0], pair[1].block.first_sample, pair[1].block.index))
    rows: list[tuple[object, ...]] = []
    given: list[str] = []
    rewritten = any(TYPED in known for _, rollouts in ordered for known in rollouts.block.metadata)
    values: dict[str, list[float]] = defaultdict(list)
    drawn: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    metrics: dict[str, float] = {}
    for split, rollouts in ordered:
        block = rollouts.block
        for reward, scores in rollouts.scores.items():
            values[f"evaluation/{split}/{reward}"] += scores.tolist()
            given += block.prompts
            rows += [
                (update, split, names[number], block.first_sample, reward, float(value))
                for number, value in zip(block.prompt_ids, scores, strict=True)
            ]
        if rollouts.kl_N is not None:
            each = np.arange(len(rollouts.kl_N))
            metrics |= _with_limits("evaluation/kl", rollouts.kl_N.astype(float), each, update=update, seed=seed)
        if rollouts.thumbnails_N is not None:
            for number, thumbnail in zip(block.prompt_ids, rollouts.thumbnails_N, strict=True):
                drawn[split, number].append(thumbnail)
    for split in dict.fromkeys(split for split, _ in drawn):
        alike = [np.stack(found) for (of, _), found in drawn.items() if of == split and len(found) > 1]
        if alike:  # with one picture a prompt there is nothing to compare
            metrics[f"evaluation/diversity/{split}"] = float(np.mean([pairwise_distance(found) for found in alike]))
    columns: dict[str, Sequence[object]] = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    if rewritten:
        columns["rewrite"] = given
    run.write_scores(update, columns)
    _write_pictures(run, update, ordered, names)
    return {**{name: float(np.mean(numbers)) for name, numbers in values.items()}, **metrics}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the objective says of some rankings of which nothing is learned."""

    block: int
    prompts_R: tuple[str, ...]
    metrics: Mapping[str, np.ndarray]
    """(R,) each."""
    cost: Cost


def judged_rankings(config: RunConfig, size: int) -> list[list[int]]:
    """Which rankings of a set of `size` every evaluation judges, by block: drawn once, by the evaluation's seed."""
    rng = numpy_generator(seed=config.evaluation.seed, stage=Stage.EVALUATION_PREFERENCES)
    chosen = sorted(rng.permutation(size)[: config.evaluation.rankings].tolist())
    width = config.rollouts.prompts_per_block
    return [chosen[start : start + width] for start in range(0, len(chosen), width)]


def judge_rankings(
    config: RunConfig, policy: Policy, held: PreferenceSet, block: int, rows: Sequence[int], check: Callable[[], None]
) -> Judged:
    """Judge a block of rankings, with the same noise every time."""
    batch = held.rows(rows)
    if not policy.draws_prompts:
        policy.remember(held.texts(rows))
    generator = torch_generator(seed=config.evaluation.seed, stage=Stage.EVALUATION_PREFERENCES, prompt=block)
    metrics, cost = judge(
        config.built_objective, policy, batch, generator, microbatch=config.learn.microbatch, check=check
    )
    return Judged(block=block, prompts_R=batch.prompts_R, metrics=metrics, cost=cost)


def judged_metrics(judged: Sequence[Judged], *, update: int, seed: int) -> dict[str, float]:
    """Means over all rankings, with intervals over their prompts.

    Args:
        judged: blocks in any order.
        update: the number of updates that the policy has had.
        seed: of the bootstrap.
    """
    ordered = sorted(judged, key=lambda of: of.block)
    prompts = by_prompt(np.array([prompt for of in ordered for prompt in of.prompts_R]))
    metrics: dict[str, float] = {}
    for name in ordered[0].metrics:
        values = np.concatenate([of.metrics[name] for of in ordered])
        metrics |= _with_limits(f"evaluation/preferences/{name}", values, prompts, update=update, seed=seed)
    return metrics


def _with_limits(name: str, values_N: np.ndarray, groups_N: np.ndarray, *, update: int, seed: int) -> dict[str, float]:
    """A mean, and the limits of its interval where there are any: not of one group, nor of what is not finite, which a guard tells."""
    if not np.isfinite(values_N).all():
        return {name: float(np.mean(values_N))}
    mean = bootstrap_mean(values_N, groups_N, numpy_generator(seed=seed, stage=Stage.BOOTSTRAP, update=update))
    limits = {f"{name}_low": mean.low, f"{name}_high": mean.high} if np.isfinite(mean.low) else {}
    return {name: mean.estimate, **limits}


def _write_pictures(
    run: RunDirectory, update: int, ordered: Sequence[tuple[str, Rollouts]], names: Mapping[int, str]
) -> None:
    file = run.path / "images" / "prompts.json"
    # of earlier evaluations, too: not every one has every split
    prompts: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    # of the next prompt of each split, whose pictures may fill several blocks
    numbers: dict[str, int] = defaultdict(int)
    for split, rollouts in ordered:
        if rollouts.pictures is not None:
            for number, picture in zip(rollouts.block.number_of_N, rollouts.pictures, strict=False):  # the first ones
                run.write_image(update, f"{split}-{numbers[split]}-0", picture)
                prompts[f"{split}-{numbers[split]}"] = names[number]
                numbers[split] += 1
    write_json(file, prompts)
