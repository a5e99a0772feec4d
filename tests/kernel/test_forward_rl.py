"""Reinforcement on the forward process: value by arithmetic, and its gradient where policy and old policy agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.toy import open_toy
from raysuite.kernel.objectives.forward_rl import ForwardRl
from raysuite.kernel.schedule import Schedule, network_output, variance_preserving_schedule
from raysuite.types import Queries, Transitions

SHAPE, DIMENSIONS = (2, 2), 4


def sampler(prediction: Any = "epsilon") -> Schedule:
    if prediction == "velocity":
        return open_toy(Sampler(steps=5), dtype=torch.float64, flow=True).schedule
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    return variance_preserving_schedule(
        torch.cumprod(1 - betas, 0), steps=5, level=0.0, spacing="leading", offset=1, prediction=prediction
    )


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(advantages: list[float]) -> Transitions:
    """Short trajectories, of which the last latent is the clean one, with advantages that differ over steps around the mean."""
    advantage_N = torch.tensor(advantages, dtype=torch.float64)
    return Transitions(
        latents_NK=randn(len(advantages), 3, *SHAPE, seed=0),
        logp_NK=torch.zeros(len(advantages), 5),
        advantage_NK=advantage_N[:, None] + torch.tensor([-0.2, 0.2, 0.0, 0.1, -0.1], dtype=torch.float64),
        prompts_N=("a",) * len(advantages),
    )


def asked(advantages: list[float], prediction: Any = "epsilon", **changes: Any) -> tuple[ForwardRl, Queries, Schedule]:
    objective = ForwardRl(**{"contrast": 0.5, "advantage_limit": 2.0, **changes})
    schedule = sampler(prediction)
    return objective, objective.queries(batch(advantages), schedule, torch.Generator().manual_seed(1)), schedule


def saying(queries: Queries, schedule: Schedule, x0: Tensor) -> Tensor:
    """The network's output (U, 1, ...) that predicts these clean latents (U, ...)."""
    alpha, sigma = queries.extra["alpha"], queries.extra["sigma"]
    wide = alpha[:, None, None], sigma[:, None, None]
    eps = (queries.x_UM[:, 0] - wide[0] * x0) / wide[1]
    return network_output(schedule.prediction, x0, eps, alpha, sigma)[:, None]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "velocity"])
def test_value_by_arithmetic(prediction: Any) -> None:
    """The same in either parametrisation, since everything is about clean latents."""
    objective, queries, schedule = asked([1.0, -0.5, 0.0], prediction)
    x0, old, new = queries.extra["clean"][:, 0], randn(3, *SHAPE, seed=2), randn(3, *SHAPE, seed=3)
    found = objective.loss(queries, schedule, saying(queries, schedule, new), saying(queries, schedule, old)).terms_U
    r = torch.tensor([0.75, 0.375, 0.5], dtype=torch.float64)
    positive, negative = 0.5 * old + 0.5 * new - x0, 1.5 * old - 0.5 * new - x0
    expected = (
        r * positive.square().mean((1, 2)) / positive.abs().mean((1, 2))
        + (1 - r) * negative.square().mean((1, 2)) / negative.abs().mean((1, 2))
    ) / 0.5
    torch.testing.assert_close(found, expected)


def test_advantages_become_chances() -> None:
    """1/2 + A / (2 limit), limited to [0, 1]; A is the mean over the steps."""
    _, queries, _ = asked([0.0, 1.0, 2.0, 50.0, -2.0, -9.0], draws=2)
    expected = torch.tensor([0.5, 0.75, 1.0, 1.0, 0.0, 0.0]).repeat_interleave(2)
    torch.testing.assert_close(queries.extra["goodness"].float(), expected)
    assert len(queries) == 12 and not queries.guided


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "velocity"])
def test_the_clean_latent_is_noised_anew(prediction: Any) -> None:
    """Within the range of timesteps; predicting the target is predicting the trajectory's last latent."""
    _, queries, schedule = asked([0.0, 1.0], prediction, draws=30, noise_range=(0.5, 0.51))
    clean = batch([0.0, 1.0]).latents_NK[:, -1].repeat_interleave(30, 0)
    assert torch.equal(queries.extra["clean"][:, 0], clean)
    assert set(schedule.training.nearest(queries.t_UM).flatten().tolist()) <= set(range(500, 510))
    torch.testing.assert_close(saying(queries, schedule, clean), queries.extra["target"])


@pytest.mark.parametrize("contrast", [0.1, 1.0])
def test_x6_the_first_gradient_is_a_share_of_fine_tuning(contrast: float) -> None:
    """Where new = old: 2 (2r - 1) (x0_old - x0) / (D w), w the mean absolute error; none at r = 1/2."""
    objective, queries, schedule = asked([1.0, -1.5, 0.0], contrast=contrast)
    x0, old = queries.extra["clean"][:, 0], randn(3, *SHAPE, seed=2)
    said, leaf = saying(queries, schedule, old), old.clone().requires_grad_()
    objective.loss(queries, schedule, saying(queries, schedule, leaf), said).terms_U.sum().backward()
    share = torch.tensor([0.5, -0.75, 0.0], dtype=torch.float64)[:, None, None]
    w = (old - x0).abs().mean((1, 2), keepdim=True)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2 * share * (old - x0) / (DIMENSIONS * w), atol=1e-8, rtol=1e-6)


def test_distance_to_the_base_model() -> None:
    """Added to the contrast: its weight times the mean square between the network's outputs, whatever they predict."""
    held, queries, schedule = asked([1.0, -0.5, 0.0], "velocity", base_weight=0.3)
    plain = dataclasses.replace(held, base_weight=0.0)
    assert held.needs_base and not plain.needs_base
    new, old, base = (randn(3, 1, *SHAPE, seed=seed) for seed in (2, 3, 4))
    known = queries.knowing(base=base)
    without, found = plain.loss(queries, schedule, new, old), held.loss(known, schedule, new, old)
    distance = (new - base).square().mean((1, 2, 3))
    torch.testing.assert_close(found.terms_U, without.terms_U + 0.3 * distance)
    torch.testing.assert_close(found.metrics["base_distance"], distance)
    assert "base_distance" not in without.metrics


def test_distance_to_the_old_policy() -> None:
    """Mean of |x0_new - x0_old|: exactly 0 where they agree, though the gradient is not."""
    objective, queries, schedule = asked([1.0, -0.5, 0.0])
    old = randn(3, *SHAPE, seed=2)
    said = saying(queries, schedule, old)
    assert objective.loss(queries, schedule, said, said).metrics["old_distance"].tolist() == [0.0, 0.0, 0.0]
    moved = objective.loss(queries, schedule, saying(queries, schedule, old + 0.25), said).metrics["old_distance"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))


def test_good_samples_attract_and_bad_ones_repel() -> None:
    objective, queries, schedule = asked([2.0, -2.0])
    x0, old = queries.extra["clean"][:, 0], randn(2, *SHAPE, seed=2)
    said = saying(queries, schedule, old)

    def term(towards: float) -> Tensor:
        return objective.loss(queries, schedule, saying(queries, schedule, old + towards * (x0 - old)), said).terms_U

    closer, further = term(0.1), term(-0.1)
    assert closer[0] < further[0] and closer[1] > further[1]


def test_gradient_by_finite_differences() -> None:
    """With the weight w held, as it is held for the gradient."""
    objective, queries, schedule = asked([1.0, -0.5])
    x0, old, new = queries.extra["clean"][:, 0], randn(2, *SHAPE, seed=2), randn(2, *SHAPE, seed=3)
    leaf = new.clone().requires_grad_()
    said = saying(queries, schedule, old)
    (found,) = torch.autograd.grad(
        objective.loss(queries, schedule, saying(queries, schedule, leaf), said).terms_U.sum(), leaf
    )
    r = torch.tensor([0.75, 0.375], dtype=torch.float64)[:, None, None]
    positive, negative = 0.5 * old + 0.5 * new - x0, 1.5 * old - 0.5 * new - x0
    w = [side.abs().mean((1, 2), keepdim=True) for side in (positive, negative)]
    expected = 2 / DIMENSIONS * (r * positive / w[0] - (1 - r) * negative / w[1])
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


def test_perfect_predictions_stay_finite() -> None:
    objective, queries, schedule = asked([1.0])
    exact = saying(queries, schedule, queries.extra["clean"][:, 0]).float().requires_grad_()
    found = objective.loss(queries.to(torch.device("cpu")), schedule, exact, exact.detach()).terms_U
    found.sum().backward()
    assert found.isfinite().all() and exact.grad is not None and exact.grad.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [{"contrast": 0.0}, {"advantage_limit": 0.0}, {"draws": 0}, {"noise_range": (1.0, 0.0)}, {"base_weight": -1.0}],
)
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"expected objective.{next(iter(changes))}"):
        ForwardRl(**{"contrast": 1.0, "advantage_limit": 2.0, **changes})
