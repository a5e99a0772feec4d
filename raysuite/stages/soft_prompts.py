"""What a trained distribution of prompts draws: pictures, states for plain diffusers, and where their diversity comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from raysuite.config import RunConfig, SoftPrompts
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.soft_prompts import Share
from raysuite.kernel.diversity import Components, Likeness, components, likeness, thumbnails
from raysuite.kernel.stats import Interval, bootstrap_mean
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory
from raysuite.stages.prompts import Prompt, evaluation_block
from raysuite.stages.rollout import sample

BLOCK = 16
"""Pictures that are drawn at once where there may be many."""


@dataclass(frozen=True)
class Distribution:
    """A run's distribution after some updates, in front of its model."""

    config: RunConfig
    policy: Any
    values: tuple[dict[str, torch.Tensor], ...]
    """Embeddings by encoder: of the run itself, then of others that it is mixed with."""

    def mixed(self, weights: Sequence[float], spread: float) -> Distribution:
        """The same, drawing the weighted sum of a draw from each, all with this spread."""
        shares = zip(self.values, weights, strict=True)
        self.policy.soft.mixture = tuple(Share(values, weight, spread) for values, weight in shares)
        return self


def open_distribution(runs: Sequence[Path], *, updates: int | None = None, ema: bool = False) -> Distribution:
    """The distribution of a run, with those of other runs of the same model and shape beside it.

    Args:
        runs: the first one's model and sampler count.
        updates: of the checkpoints; None for the last of each.
        ema: whether the average of each run's weights is meant.

    Raises:
        UserError: there is no such run or checkpoint, it trained something else or has no average, or runs cannot be mixed.
    """
    configs = [RunDirectory(run).config() for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if config.parameters.kind != "prompts":
            raise UserError(
                f"expected a run with parameters.kind=prompts, {run} trained {config.parameters.kind}: name another"
            )
        if config.model != configs[0].model:
            raise UserError(
                f"expected distributions of one model, got {configs[0].model.path} and {config.model.path}: name runs of one"
            )
        own, first = (_drawing(each.parameters.prompts) for each in (config, configs[0]))
        if own != first:
            raise UserError(
                f"expected distributions with one parameters.prompts.placement and draw to mix, got {first} in {runs[0]} and {own} in "
                f"{run}: name runs of one"
            )
        if len(runs) > 1 and config.parameters.prompts.start == "plain":
            raise UserError(f"expected distributions that are not start=plain to mix, {run} is: leave it out")
    policy: Any = open_policy(configs[0], torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    models = []
    for run in runs:
        found = checkpoint.find(run, updates)
        checkpoint.read_state(found)
        models.append(checkpoint.weights(found, ema=ema))
    policy.load(models[0])
    return Distribution(configs[0], policy, tuple(policy.soft.read(model) for model in models))


def spreads(drawn: Distribution, asked: Sequence[float] | None) -> Sequence[float]:
    """Factors on the spread to draw with: those that are asked for, or from none to twice, or 1 where draws have no noise to widen.

    Raises:
        UserError: others are asked for where there is none.
    """
    kind = drawn.config.parameters.prompts.draw
    if kind not in ("member", "mean"):
        return (0, 0.5, 1, 1.5, 2) if asked is None else asked
    if asked is not None and [*asked] != [1]:
        raise UserError(
            f"expected no --spread with parameters.prompts.draw={kind}, which has no noise to widen, got "
            f"{', '.join(f'{g:g}' for g in asked)}: leave it out"
        )
    return (1,)


def pictures(
    drawn: Distribution, prompt: str, *, samples: int, seed: int, number: int = 0, first: int = 0
) -> np.ndarray:
    """Pictures of a prompt, uint8 (N, H, W, 3). Sample n has the same noise and label for any text, spread and mixture.

    Args:
        drawn: the distribution.
        prompt: the text.
        samples: N.
        seed: a coordinate of noise and draws.
        first: number of the first sample.
    """
    block = evaluation_block(drawn.config, [Prompt(prompt, number)], samples=samples, first_sample=first)
    return sample(drawn.policy, block, _seeded(drawn.config, seed), version=0).previews_JN[-1]


def embeddings(drawn: Distribution, prompt: str, *, samples: int, seed: int) -> dict[str, torch.Tensor]:
    """Draws of a prompt's states for `pipe(prompt_embeds=...)`, those of `pictures`, and their mean and standard deviation.

    Returns:
        `prompt_embeds` (N, tokens, width) and, where there is one, `pooled_prompt_embeds` (N, width); of each `<name>.mean` and
        `<name>.std`, (1, ...).
    """
    policy = drawn.policy
    labels = [_label(seed, number) for number in range(samples)]
    question = policy.driver.question(policy.soft.marked(prompt))
    with torch.no_grad():
        encoded = policy.soft.encoded(*question)
        rows = policy.soft.states(*question, encoded, labels)
        means, deviations = policy.soft.moments(*question, encoded)
    named: dict[str, torch.Tensor] = {}
    for mean, deviation, states in zip(means, deviations, zip(*rows, strict=True), strict=True):
        name = "prompt_embeds" if mean.ndim == 3 else "pooled_prompt_embeds"
        named |= {name: torch.cat(states), f"{name}.mean": mean, f"{name}.std": deviation}
    return {name: tensor.cpu().contiguous() for name, tensor in named.items()}


def write_embeddings(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write them, whole or not at all."""
    with replacing(file) as temporary:
        safetensors.torch.save_file(tensors, temporary)


def measured(drawn: Distribution, prompts: Sequence[str], *, draws: int, noises: int, seed: int) -> dict[str, Interval]:
    """Where differences between pictures of a prompt come from: every draw with every noise, intervals over prompts.

    Args:
        drawn: the distribution.
        prompts: whose pictures are compared.
        draws: of each prompt, at least 2.
        noises: of each prompt, at least 2; the same for all draws.
        seed: a coordinate of noise and draws, and of the bootstrap.
    """
    found: list[Components] = []
    config = _seeded(drawn.config, seed)
    for number, prompt in enumerate(prompts):
        labels = torch.tensor([_label(seed, number * draws + draw) for draw in range(draws)])
        columns = []
        for noise in range(noises):  # the same noise for all draws
            block = evaluation_block(config, [Prompt(prompt, number)] * draws, first_sample=noise)
            images = sample(drawn.policy, block, config, version=0, draws_N=labels).previews_JN[-1]
            columns.append(thumbnails(images))
        found.append(components(np.stack(columns, axis=1)))
    rng = numpy_generator(seed=seed, stage=Stage.BOOTSTRAP)
    groups = np.arange(len(found))
    return {
        name: bootstrap_mean(np.array([getattr(each, name) for each in found]), groups, rng)
        for name in ("draw", "noise", "interaction")
    }


def beside_real(
    drawn: Distribution,
    prompts: Sequence[str],
    real_N: np.ndarray,
    features: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int,
    seed: int,
    neighbours: int,
) -> Likeness:
    """Density and coverage of pictures that are drawn beside real ones.

    Args:
        drawn: the distribution.
        prompts: whose pictures are drawn, all of them one set.
        real_N: the real ones, uint8 (N, H, W, 3).
        features: of pictures, (N, D).
        samples: pictures of each prompt, each with a draw of its own.
        seed: a coordinate of noise and draws.
        neighbours: k of the neighbourhoods.

    Raises:
        UserError: there are too few real pictures.
    """
    if not 1 <= neighbours < len(real_N):
        raise UserError(
            f"expected more real pictures than neighbours, got {len(real_N)} and {neighbours}: add pictures, or lower --neighbours"
        )
    images = [
        pictures(drawn, prompt, samples=min(BLOCK, samples - first), seed=seed, number=number, first=first)
        for number, prompt in enumerate(prompts)
        for first in range(0, samples, BLOCK)
    ]
    return likeness(features(real_N), features(np.concatenate(images)), neighbours=neighbours)


def _drawing(settings: SoftPrompts) -> str:
    """What a mixture's shares have in common; each has its spread from the mixture."""
    return f"{settings.placement}, {settings.draw}"


def _seeded(config: RunConfig, seed: int) -> RunConfig:
    """A run whose evaluations draw with another seed."""
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": seed})})


def _label(seed: int, number: int) -> int:
    return torch_generator(seed=seed, stage=Stage.EVALUATION_PROMPT_DRAW, sample=number).initial_seed()
