"""Labels of prompts that are drawn: from each sample's coordinates, through rollouts and files, to every prediction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raysuite.config import RunConfig, validate
from raysuite.errors import UserError
from raysuite.families.toy import ToyPolicy, open_toy
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.stages import stored
from raysuite.stages.learn import ask, gradient, transitions
from raysuite.stages.preferences import compared, rankings
from raysuite.stages.prompts import evaluation_blocks, load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.study.gradients import unit_gradients
from raysuite.types import Preferences, Rollouts
from tests.families.conftest import settings_of

SIZE = 0.3


class DrawingToy(ToyPolicy):
    """Adds noise that a row's label decides to the exact output, so that another label is another policy."""

    draws_prompts = True

    def predict(
        self,
        x_N: Tensor,
        t_N: Tensor,
        prompts_N: Sequence[str],
        *,
        reference: bool = False,
        base: bool = False,
        guided: bool = True,
        draws_N: Tensor | None = None,
    ) -> Tensor:
        assert draws_N is not None and draws_N.dtype == torch.int64 and draws_N.shape == t_N.shape
        drawn = [torch.randn(x_N.shape[1], generator=torch.Generator().manual_seed(n)) for n in draws_N.tolist()]
        plain = super().predict(x_N, t_N, prompts_N, reference=reference, base=base, guided=guided)
        return plain + SIZE * torch.stack(drawn).to(plain)


def config_of(objective: str, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "updates": 1,
        "model": {"path": "toy"},
        "sampler": {"steps": 4},
        "prompts": {"training": "toy", "held_out": "toy"},
        "rewards": [{"name": "redness"}],
        "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 2},
        "objective": {**settings_of(objective), "noise_range": [0.0, 1.0]},
        "evaluation": {"kl": True, "final_samples": 2},
    }
    if OBJECTIVES[objective].process == "reverse":
        del tree["objective"]["noise_range"]
    if OBJECTIVES[objective].reference_is_sampler:
        tree["reference"] = {"refresh": 1}
    return validate({**tree, **changes})


def policy_of(config: RunConfig) -> DrawingToy:
    return DrawingToy(schedule=open_toy(config.sampler).schedule)


def rolled(config: RunConfig) -> Rollouts:
    (block,) = training_blocks(config, load_prompts(config.prompts), 0)
    return score(sample(policy_of(config), block, config, version=0), config)


def batch_of(config: RunConfig, rollouts: Rollouts) -> Any:
    if config.built_objective.consumes == "preferences":
        return compared(rollouts, rankings(config, rollouts.block, rollouts.reward_N)[0])
    shape = (rollouts.block.size, config.sampler.steps)
    return transitions(rollouts, np.random.default_rng(0).normal(size=shape))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_a_label_is_of_its_samples_coordinates() -> None:
    config = config_of("ddpo")
    prompts = load_prompts(config.prompts)
    policy, (block,) = policy_of(config), training_blocks(config, prompts, 0)
    drawn = sample(policy, block, config, version=0).draws_N
    assert drawn is not None and drawn.dtype == np.int64 and (drawn >= 0).all()
    assert len(set(drawn.tolist())) == block.size == 8
    alone = dataclasses.replace(
        block, prompts=block.prompts[1:], prompt_ids=block.prompt_ids[1:], metadata=({},), first_sample=1
    )
    alone = dataclasses.replace(alone, samples_per_prompt=2)
    np.testing.assert_array_equal(sample(policy, alone, config, version=0).draws_N, drawn[5:7])
    later = dataclasses.replace(block, update=1)
    assert not set(sample(policy, later, config, version=0).draws_N) & set(drawn)


def test_samples_that_are_compared_share_their_draw() -> None:
    shared = rolled(config_of("diffusion_dpo")).draws_N
    assert shared is not None and (shared[:4] == shared[0]).all() and (shared[4:] == shared[4]).all()
    assert shared[0] != shared[4]
    config = config_of("diffusion_dpo")  # of the toy, which has no prompts to draw but in this test
    across = config.model_copy(update={"preferences": config.preferences.model_copy(update={"across_draws": True})})
    asked_for = rolled(across).draws_N
    assert asked_for is not None and len(set(asked_for)) == 8


def test_evaluations_always_have_the_same_draws() -> None:
    def labels(**changes: Any) -> list[list[int]]:
        config = config_of("diffusion_dpo", **changes)
        blocks = evaluation_blocks(config, load_prompts(config.prompts), changes.get("seed", 0), final=True)["training"]
        found = [sample(policy_of(config), block, config, version=0).draws_N for block in blocks]
        return [[int(label) for label in each] for each in found if each is not None]

    first = labels()
    assert len({label for block in first for label in block}) == 4  # of two prompts and two samples, each its own
    assert labels(seed=7) == first
    assert labels(evaluation={"seed": 1, "final_samples": 2}) != first


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_pictures_are_learned_with_the_draws_that_made_them(objective: str) -> None:
    config = config_of(objective)
    rollouts = rolled(config)
    found = ask(config.built_objective, policy_of(config), batch_of(config, rollouts), seeded())
    assert found.draws_UM is not None and found.draws_UM.shape == found.t_UM.shape
    assert rollouts.draws_N is not None and rollouts.latents_NK is not None
    known = {p: set(rollouts.draws_N[4 * i : 4 * i + 4].tolist()) for i, p in enumerate(rollouts.block.prompts)}
    for prompt, labels in zip(found.prompts_U, found.draws_UM.tolist(), strict=True):
        assert set(labels) <= known[prompt]
    part = found.select(torch.tensor([len(found) - 1]))
    assert part.draws_UM is not None and torch.equal(part.draws_UM, found.draws_UM[-1:])


@pytest.mark.parametrize(
    ("objective", "metric", "value"),
    [
        ("ddpo", "ratio", 1.0),
        ("trajectory_dpo", "loss", math.log(2)),
        ("diffusion_dpo", "loss", math.log(2)),
        ("forward_rl", "old_distance", 0.0),
    ],
)
def test_a_run_begins_at_the_reference(objective: str, metric: str, value: float) -> None:
    config = config_of(objective)
    batch, policy = batch_of(config, rolled(config)), policy_of(config)
    found, _ = gradient(config.built_objective, policy, [(batch, seeded())], microbatch=8)
    assert found[metric] == pytest.approx(value, abs=0 if metric == "ratio" else 1e-6)
    gradients = policy.perturbation.grad
    assert gradients is not None and gradients.abs().sum() > 0
    policy.perturbation.grad = None
    gradient(config.built_objective, policy, [(batch, seeded())], microbatch=2)
    torch.testing.assert_close(policy.perturbation.grad, gradients)


def test_with_labels_of_other_samples_the_ratio_is_not_one() -> None:
    config = config_of("ddpo")
    batch = batch_of(config, rolled(config))
    other = dataclasses.replace(batch, draws_N=batch.draws_N.roll(1))
    found, _ = gradient(config.built_objective, policy_of(config), [(other, seeded())], microbatch=8)
    assert abs(found["ratio"] - 1) > 0.01


@pytest.mark.parametrize("objective", [name for name, cls in OBJECTIVES.items() if cls.process == "forward"])
def test_pictures_of_others_get_a_draw_a_unit_after_all_else_is_drawn(objective: str) -> None:
    config = config_of(objective)
    batch = batch_of(config, rolled(config))
    name = "draws_RM" if isinstance(batch, Preferences) else "draws_N"
    batch = dataclasses.replace(batch, **{name: None})
    fresh = ask(config.built_objective, policy_of(config), batch, seeded())
    plain = ask(config.built_objective, open_toy(config.sampler), batch, seeded())
    assert plain.draws_UM is None and fresh.draws_UM is not None
    assert torch.equal(fresh.x_UM, plain.x_UM) and torch.equal(fresh.t_UM, plain.t_UM)
    assert (fresh.draws_UM == fresh.draws_UM[:, :1]).all()
    assert len(set(fresh.draws_UM[:, 0].tolist())) == len(fresh)


def test_pictures_of_several_draws_are_compared_only_where_that_was_asked_for() -> None:
    rollouts = rolled(config_of("ddpo"))
    indices = np.array([[0, 1], [4, 6]])
    with pytest.raises(
        UserError, match=r"expected pictures that are compared to share the draw of their prompt.*across_draws=true"
    ):
        compared(rollouts, indices)
    labels = compared(rollouts, indices, across_draws=True).draws_RM
    assert labels is not None and rollouts.draws_N is not None
    assert labels.tolist() == rollouts.draws_N[indices].tolist()


def test_labels_come_back_from_disk(tmp_path: Path) -> None:
    rollouts = rolled(config_of("ddpo"))
    stored.keep(tmp_path, rollouts)
    back = stored.read(tmp_path, 0, 0)
    assert back.draws_N is not None
    np.testing.assert_array_equal(back.draws_N, rollouts.draws_N)
    plain = dataclasses.replace(rollouts, draws_N=None)
    stored.keep(tmp_path, plain)
    assert stored.read(tmp_path, 0, 0).draws_N is None


@pytest.mark.parametrize("objective", ["ddpo", "diffusion_dpo"])
def test_a_study_measures_with_the_same_draws(objective: str) -> None:
    config = config_of(objective)
    batch, policy = batch_of(config, rolled(config)), policy_of(config)
    gradient(config.built_objective, policy, [(batch, seeded())], microbatch=100)
    sums = torch.zeros_like(policy.perturbation)

    def add(name: str, number: int, parts: dict[str, Tensor]) -> None:
        sums.add_(parts["perturbation"])

    unit_gradients(
        {objective: config.built_objective}, policy, {objective: batch}, add, generator=seeded, bins=3, microbatch=3
    )
    torch.testing.assert_close(sums, policy.perturbation.grad)
