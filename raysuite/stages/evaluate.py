"""checkpoint -> evaluation: fixed prompts, fixed noise, training and held-out prompts apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysuite.config import RunConfig
from raysuite.kernel.stats import bootstrap_mean
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.files import RunDirectory, write_json
from raysuite.types import Rollouts


def record(
    run: RunDirectory, config: RunConfig, update: int, results: Sequence[tuple[str, Rollouts]]
) -> dict[str, float]:
    """Write one evaluation's scores and pictures, and return its metrics.

    Args:
        run: where to.
        config: the run's.
        update: the number of updates that the policy has had.
        results: every evaluated block with its split, in any order.
    """
    ordered = sorted(results, key=lambda pair: (pair[0], pair[1].block.first_sample, pair[1].block.index))
    columns: dict[str, list[object]] = {name: [] for name in ("update", "split", "prompt", "sample", "reward", "value")}
    for split, rollouts in ordered:
        for reward, values in rollouts.scores.items():
            for prompt, value in zip(rollouts.block.prompts, values, strict=True):
                row = (update, split, prompt, rollouts.block.first_sample, reward, float(value))
                for column, entry in zip(columns.values(), row, strict=True):
                    column.append(entry)
    run.write_scores(update, columns)
    _write_pictures(run, config, update, ordered)
    metrics = {}
    rng = numpy_generator(seed=config.evaluation.seed, stage=Stage.BOOTSTRAP, update=update)
    for split in dict.fromkeys(split for split, _ in ordered):
        for reward in ordered[0][1].scores:
            rows = [
                i
                for i, (s, r) in enumerate(zip(columns["split"], columns["reward"], strict=True))
                if (s, r) == (split, reward)
            ]
            metrics[f"evaluation/{split}/{reward}"] = float(np.mean([columns["value"][i] for i in rows]))
    for _, rollouts in ordered:
        if rollouts.kl_N is not None:
            kl = bootstrap_mean(rollouts.kl_N.astype(float), np.arange(len(rollouts.kl_N)), rng)
            metrics["evaluation/kl"] = kl.estimate
            if len(rollouts.kl_N) > 1:  # one trajectory has no interval
                metrics |= {"evaluation/kl_low": kl.low, "evaluation/kl_high": kl.high}
    return metrics


def _write_pictures(run: RunDirectory, config: RunConfig, update: int, ordered: Sequence[tuple[str, Rollouts]]) -> None:
    prompts = {}
    for split, rollouts in ordered:
        block = rollouts.block
        if block.first_sample == 0 and block.index == 0 and rollouts.images_N is not None:
            for index in range(min(config.evaluation.pictures, block.size)):
                run.write_image(update, f"{split}-{index}-0", rollouts.images_N[index])
                prompts[f"{split}-{index}"] = block.prompts[index]
    write_json(run.path / "images" / "prompts.json", prompts)
