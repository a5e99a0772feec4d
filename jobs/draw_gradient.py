"""Two gradients of the same expected reward in a distribution of prompts: `python jobs/draw_gradient.py --out FILE [--units 64]`.

The path's is DDPO's: through every denoising step, at the draw that each picture was made of. The score's takes the draw itself
for the action, and needs no backward pass: one network evaluation a step where the path's needs four. Both are unbiased, and both
are taken here from the same pictures of the bundled model, one prompt a unit. What is asked: do they point the same way, and how
many network evaluations does each need until its signal equals its noise? docs/log.md has what was found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.kernel import directions
from raysuite.places import replacing
from raysuite.results.numerals import with_interval
from raysuite.stages.files import differences
from raysuite.stages.learn import gradient, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.types import Rollouts

EVALUATIONS = {"path": 4, "score": 1}
"""Network evaluations of a step: drawn, and for the path's predicted again and sent back, which counts twice."""


def settings(units: int, samples: int, **more: object) -> RunConfig:
    """The recipe with one prompt a unit and nothing but the reward to follow."""
    overrides: dict[str, object] = {
        "rollouts.prompts": units,
        "rollouts.samples": samples,
        "rollouts.prompts_per_block": 1,
        "learn.minibatches": 1,
        "learn.microbatch": samples,
        "parameters.prompts.orthogonality": 0,
        "objective": "{name: ddpo, clip: null, advantage_clip: 1000, per_dimension: false}",
        **more,
    }
    return load("scenes-prompts-ddpo", {path: str(value) for path, value in overrides.items()})


def advantages(reward_N: np.ndarray) -> np.ndarray:
    """Of each picture against the others of its prompt: what leaves both gradients unbiased."""
    return (reward_N - reward_N.mean()) * len(reward_N) / (len(reward_N) - 1)


def path_gradient(policy: PipelinePolicy, rollouts: Rollouts, config: RunConfig) -> np.ndarray:
    """Mean over pictures of A sum_k grad log p(x_{k+1} | x_k, draw)."""
    steps = config.sampler.steps
    advantage_NK = np.repeat(advantages(rollouts.reward_N)[:, None], steps, axis=1)
    _, _ = gradient(
        config.built_objective,
        policy,
        [(transitions(rollouts, advantage_NK), torch.Generator().manual_seed(0))],
        microbatch=config.learn.microbatch,
    )
    stochastic = int(policy.schedule.stochastic_K.sum())
    return -stochastic * _taken(policy)


def score_gradient(policy: PipelinePolicy, rollouts: Rollouts) -> np.ndarray:
    """Mean over pictures of A grad log q(draw)."""
    assert policy.soft is not None and rollouts.draws_N is not None
    settings = policy.soft.settings
    encoded = policy.soft.encoded(*policy.driver.question(policy.soft.marked(rollouts.block.prompts[0])))
    total = torch.zeros(())
    for advantage, label in zip(advantages(rollouts.reward_N), rollouts.draws_N.tolist(), strict=True):
        drawn = encoded.distribution.draw(label, kind=settings.draw, spread=settings.spread)
        total = total + float(advantage) * encoded.distribution.log_density(drawn, spread=settings.spread)
    (total / len(rollouts.reward_N)).backward()
    return _taken(policy)


def _taken(policy: PipelinePolicy) -> np.ndarray:
    """The gradient that has been added up, flat, which is then forgotten."""
    found = []
    for parameter in policy.trainable().values():
        assert parameter.grad is not None
        found.append(parameter.grad.flatten().numpy().astype(np.float64))
        parameter.grad = None
    return np.concatenate(found)


def measured(config: RunConfig) -> dict[str, np.ndarray]:
    """Both gradients of every unit, (units, D), and mean rewards."""
    policy = open_policy(config, torch.device("cpu"))
    assert isinstance(policy, PipelinePolicy)
    found: dict[str, list] = {"path": [], "score": [], "reward": []}
    for block in training_blocks(config, load_prompts(config.prompts), update=0):
        rollouts = score(sample(policy, block, config, version=0), config)
        found["reward"].append(rollouts.reward_N.mean())
        found["path"].append(path_gradient(policy, rollouts, config))
        found["score"].append(score_gradient(policy, rollouts))
    return {name: np.stack(each) for name, each in found.items()}


def told(found: dict[str, np.ndarray], config: RunConfig) -> list[str]:
    """What the gradients of the units say."""
    grams = {name: directions.Gram.of(found[name], found[name]) for name in EVALUATIONS}
    lines = [
        f"{len(found['path'])} units of {config.rollouts.samples} pictures, mean reward {found['reward'].mean():.3f}"
    ]
    for name, each in EVALUATIONS.items():
        unit = config.rollouts.samples * config.sampler.steps * each
        snr = directions.signal_to_noise(grams[name])
        seen = "a direction" if directions.has_direction(grams[name]) else "no direction that can be told"
        lines.append(f"{name}: {seen}; signal over noise of a unit {with_interval(snr)}")
        if snr.estimate > 0:
            lines.append(f"  {unit:,} network evaluations a unit, {unit / snr.estimate:,.0f} until signal equals noise")
    cosine = directions.expected_cosine(
        grams["path"], grams["score"], directions.Gram.of(found["path"], found["score"])
    )
    lines.append("cosine of the two: " + ("cannot be told" if cosine is None else with_interval(cosine)))
    return lines


def results(out: Path, config: RunConfig) -> dict[str, np.ndarray]:
    """What `measured` says, or what it said where `out` is there.

    Raises:
        UserError: that was of other settings.
    """
    wanted = config.identity()
    if not out.exists():
        found = measured(config)
        with replacing(out) as temporary:
            safetensors.numpy.save_file(found, temporary, metadata={"config": json.dumps(wanted)})
    with safetensors.safe_open(out, framework="numpy") as file:
        kept = json.loads((file.metadata() or {}).get("config", "{}"))
    if other := list(differences(kept, json.loads(json.dumps(wanted)))):
        raise UserError(
            f"expected gradients of these settings in {out}, got others: {'; '.join(other[:3])}; name another --out"
        )
    return safetensors.numpy.load_file(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file of the gradients")
    parser.add_argument("--units", type=int, default=64, help=f"prompts, at least {directions.FEWEST_UNITS}")
    parser.add_argument("--samples", type=int, default=8, help="pictures of each")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting of scenes-prompts-ddpo"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = settings(given.units, given.samples, **dict(each.split("=", 1) for each in given.set))
    print("\n".join(told(results(given.out, config), config)))


if __name__ == "__main__":
    main()
