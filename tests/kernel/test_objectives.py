"""What every registered objective keeps to, whatever its formula: a new one is tested here without an edit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.kernel.schedule import Schedule, variance_preserving_schedule
from raysuite.types import Preferences, Queries, Transitions

STEPS, ROWS, SHAPE = 3, 3, (2, 2)

each = pytest.mark.parametrize("name", OBJECTIVES)
learns_from_preferences = pytest.mark.parametrize(
    "name", [name for name, cls in OBJECTIVES.items() if cls.consumes == "preferences"]
)


def made(name: str) -> Objective[Any]:
    """The objective with one half for every setting that has no default."""
    fields = dataclasses.fields(OBJECTIVES[name])  # type: ignore[arg-type]
    return OBJECTIVES[name](**{f.name: 0.5 for f in fields if f.default is dataclasses.MISSING})


def sampler(dtype: torch.dtype = torch.float64) -> Schedule:
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    return variance_preserving_schedule(
        torch.cumprod(1 - betas, 0), steps=STEPS, spacing="leading", offset=1, prediction="epsilon", dtype=dtype
    )


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_for(objective: Objective[Any], dtype: torch.dtype = torch.float64) -> Any:
    """Random trajectories, each alone or two of a prompt in order of preference."""
    latents = randn(ROWS, 2, STEPS + 1, *SHAPE, seed=0).to(dtype)
    if objective.consumes == "preferences":
        return Preferences(latents_RMK=latents, prompts_R=("a", "b", "c"))
    return Transitions(
        latents_NK=latents[:, 0],
        logp_NK=randn(ROWS, STEPS, seed=1).to(dtype) - 5,
        advantage_NK=randn(ROWS, STEPS, seed=2).to(dtype),
        prompts_N=("a", "b", "c"),
    )


def points(
    objective: Objective[Any], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Queries, Tensor, Tensor | None]:
    """Queries, a policy's random predictions, and a reference's near them where it is wanted."""
    queries = objective.queries(batch_for(objective, dtype), sampler(dtype), torch.Generator().manual_seed(seed))
    prediction = randn(*queries.x_UM.shape, seed=3).to(dtype)
    reference = prediction + 0.3 * randn(*queries.x_UM.shape, seed=4).to(dtype)
    return queries, prediction, reference if objective.needs_reference else None


@each
def test_queries_are_whole_and_a_function_of_the_generator(name: str) -> None:
    objective = made(name)
    queries, again, other = (points(objective, seed=seed)[0] for seed in (0, 0, 1))
    assert len(queries) % queries.together == 0
    for found in (queries, again, other):
        assert found.x_UM.shape[:2] == found.t_UM.shape and len(found.prompts_U) == len(found)
        assert all(len(tensor) == len(found) for tensor in found.extra.values())
        assert found.t_UM.dtype == torch.int64
    assert torch.equal(queries.x_UM, again.x_UM) and torch.equal(queries.t_UM, again.t_UM)
    assert all(torch.equal(tensor, again.extra[key]) for key, tensor in queries.extra.items())
    assert torch.equal(queries.x_UM, other.x_UM) is (objective.process == "reverse")  # all steps, or new noise


@each
def test_terms_and_metrics_are_one_a_unit_in_float32(name: str) -> None:
    objective = made(name)
    queries, prediction, reference = points(objective, torch.float32)
    loss = objective.loss(queries, sampler(torch.float32), prediction.requires_grad_(), reference)
    assert loss.terms_U.requires_grad
    for values in (loss.terms_U, *loss.metrics.values()):
        assert values.shape == (len(queries),) and values.dtype == torch.float32
    assert not any(values.requires_grad for values in loss.metrics.values())


@each
def test_units_do_not_see_each_other(name: str) -> None:
    objective = made(name)
    queries, prediction, reference = points(objective)
    whole = objective.loss(queries, sampler(), prediction, reference)
    for unit in range(len(queries)):
        row = slice(unit, unit + 1)
        chunk = queries.rows(unit, unit + 1)
        alone = objective.loss(chunk, sampler(), prediction[row], None if reference is None else reference[row])
        torch.testing.assert_close(alone.terms_U, whole.terms_U[row])
        assert alone.metrics.keys() == whole.metrics.keys()
        for key, values in alone.metrics.items():
            torch.testing.assert_close(values, whole.metrics[key][row])


@each
def test_a_reference_is_asked_for_where_it_matters(name: str) -> None:
    objective = made(name)
    queries, prediction, _ = points(objective)
    near, far = (
        objective.loss(queries, sampler(), prediction, prediction + shift * randn(*prediction.shape, seed=9)).terms_U
        for shift in (0.0, 1.0)
    )
    assert torch.allclose(near, far) is not objective.needs_reference


@each
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e3])
def test_extreme_predictions_stay_finite(name: str, size: float) -> None:
    """In float32, value and gradient; ratios of densities per dimension go no further than 1e3."""
    objective = made(name)
    queries, prediction, reference = points(objective, torch.float32)
    leaf = (size * prediction).requires_grad_()
    loss = objective.loss(queries, sampler(torch.float32), leaf, reference)
    loss.terms_U.sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert all(values.isfinite().all() for values in (loss.terms_U, *loss.metrics.values()))


@learns_from_preferences
def test_gradients_by_finite_differences(name: str) -> None:
    objective = made(name)
    queries, prediction, reference = points(objective)
    assert torch.autograd.gradcheck(
        lambda p: objective.loss(queries, sampler(), p, reference).terms_U, prediction.requires_grad_()
    )


@learns_from_preferences
def test_swapping_the_members_turns_the_margin_round(name: str) -> None:
    """Each member keeps its own predictions. Where there is no reference there is no margin: the rejected one is not seen."""
    objective = made(name)
    batch = batch_for(objective)
    swapped = dataclasses.replace(batch, latents_RMK=batch.latents_RMK.flip(1))
    queries, other = (objective.queries(b, sampler(), torch.Generator().manual_seed(0)) for b in (batch, swapped))
    _, prediction, reference = points(objective)
    if reference is None:
        alone = dataclasses.replace(batch, latents_RMK=batch.latents_RMK[:, :1])
        seen = objective.queries(alone, sampler(), torch.Generator().manual_seed(0))
        assert torch.equal(seen.x_UM, queries.x_UM) and not torch.equal(other.x_UM, queries.x_UM)
        return
    points_of_member = queries.x_UM.shape[1] // 2

    def turned(output: Tensor) -> Tensor:
        return output.roll(points_of_member, 1)

    assert torch.equal(turned(queries.x_UM), other.x_UM)
    there = objective.loss(queries, sampler(), prediction, reference).metrics
    back = objective.loss(other, sampler(), turned(prediction), turned(reference)).metrics
    assert (there["reward_margin"] != 0).all()
    torch.testing.assert_close(back["reward_margin"], -there["reward_margin"])
    torch.testing.assert_close(back["reward_accuracy"], 1 - there["reward_accuracy"])
