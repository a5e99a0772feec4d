"""DDPO on hand-made transitions: values by arithmetic, gradients by finite differences, the limits it must have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.schedule import Levels, Schedule, variance_preserving_schedule
from raysuite.types import Loss, Queries, Transitions

STEPS, SAMPLES, SHAPE = 5, 3, (2, 2)
DIMENSIONS = 4


def make(**changes: Any) -> Ddpo:
    return Ddpo(**{"clip": 0.1, "advantage_clip": 5.0, **changes})


def sampler(dtype: torch.dtype = torch.float64, **changes: Any) -> Schedule:
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    options: dict[str, Any] = {"steps": STEPS, "spacing": "leading", "offset": 1, "prediction": "epsilon"}
    return variance_preserving_schedule(torch.cumprod(1 - betas, 0), dtype=dtype, **{**options, **changes})


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trajectories(schedule: Schedule, *, seed: int = 0) -> tuple[Transitions, Tensor]:
    """Trajectories of a policy that predicts random noise, with the predictions (K, N, ...)."""
    dtype = schedule.noise_K.dtype
    outputs = randn(STEPS, SAMPLES, *SHAPE, seed=seed).to(dtype)
    latents, logps = [randn(SAMPLES, *SHAPE, seed=seed + 1).to(dtype)], []
    for step in range(STEPS):
        k = torch.full((SAMPLES,), step)
        mean = transition.mean(schedule, k, latents[-1], outputs[step])
        latents.append(transition.draw(schedule, k, mean, randn(SAMPLES, *SHAPE, seed=seed + 2 + step).to(dtype)))
        scored = schedule.noise_K[step] > 0
        logps.append(
            transition.log_density(schedule, k, mean, latents[-1]) if scored else torch.zeros(SAMPLES, dtype=dtype)
        )
    batch = Transitions(
        latents_NK=torch.stack(latents, 1),
        logp_NK=torch.stack(logps, 1),
        advantage_NK=randn(SAMPLES, STEPS, seed=seed + 50).to(dtype),
        prompts_N=("a", "a", "b"),
    )
    return batch, outputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(schedule: Schedule, objective: Objective | None = None) -> tuple[Queries, Tensor]:
    """The queries of one batch and the predictions (U, 1, ...) that drew it."""
    batch, outputs = trajectories(schedule)
    queries = (objective or make()).queries(batch, schedule, generator())
    rows = queries.extra["k"] * SAMPLES + torch.arange(len(queries)) % SAMPLES
    return queries, outputs.flatten(0, 1)[rows][:, None]


def with_ratio(objective: Ddpo, ratio: float, advantage: float) -> tuple[Loss, Tensor]:
    """The loss of transitions that all have this ratio and advantage, and its gradient in the prediction."""
    schedule = sampler()
    queries, prediction = points(schedule)
    scale = DIMENSIONS if objective.per_dimension else 1
    extra = {
        **queries.extra,
        "logp_old": queries.extra["logp_old"] - scale * math.log(ratio),
        "advantage": torch.full_like(queries.extra["advantage"], advantage),
    }
    prediction = prediction.clone().requires_grad_()
    loss = objective.loss(dataclasses.replace(queries, extra=extra), schedule, prediction, None)
    (grad,) = torch.autograd.grad(loss.terms_U.sum(), prediction)
    return loss, grad


# what it asks for


def test_one_unit_for_every_noisy_step_of_every_sample() -> None:
    schedule = sampler()
    batch, _ = trajectories(schedule)
    queries = make().queries(batch, schedule, generator())
    assert len(queries) == STEPS * SAMPLES
    assert queries.together == SAMPLES
    assert queries.t_UM.shape == (STEPS * SAMPLES, 1)
    for unit in range(len(queries)):
        step, n = divmod(unit, SAMPLES)  # step by step, as they were drawn
        assert queries.t_UM[unit, 0] == schedule.timesteps_K[step]
        assert queries.x_UM[unit, 0].equal(batch.latents_NK[n, step])
        assert queries.extra["next"][unit].equal(batch.latents_NK[n, step + 1])
        assert queries.extra["logp_old"][unit] == batch.logp_NK[n, step]
        assert queries.extra["advantage"][unit] == batch.advantage_NK[n, step]
        assert queries.prompts_U[unit] == batch.prompts_N[n]


def test_steps_without_noise_are_left_out() -> None:
    schedule = sampler(spacing="linspace")
    batch, _ = trajectories(schedule)
    queries = make().queries(batch, schedule, generator())
    assert len(queries) == (STEPS - 1) * SAMPLES
    assert 0 not in queries.t_UM
    with pytest.raises(UserError, match=r"sampler\.noise\.level"):
        make().queries(trajectories(sampler(level=0.0))[0], sampler(level=0.0), generator())


def test_a_share_of_the_steps() -> None:
    schedule = sampler()
    batch, _ = trajectories(schedule)
    half = make(step_fraction=0.4)
    chosen = set()
    for seed in range(30):
        queries = half.queries(batch, schedule, generator(seed))
        steps = queries.extra["k"].unique()
        assert len(steps) == 2 and len(queries) == 2 * SAMPLES  # 0.4 x 5
        assert queries.extra["k"].tolist() == steps.repeat_interleave(SAMPLES).tolist()
        chosen |= set(steps.tolist())
    assert chosen == set(range(STEPS))
    again = [half.queries(batch, schedule, generator(7)).extra["k"] for _ in range(2)]
    assert again[0].equal(again[1])
    assert len(make(step_fraction=0.01).queries(batch, schedule, generator())) == SAMPLES  # never none


# values


def test_value_by_arithmetic() -> None:
    """Two dimensions, noise 1/2, means moved by kappa = -1 per unit of predicted noise, next latent at 0.

    Prediction (-1, 0) puts the mean at (1, 0): log p = -(1 / (1/4)) / 2 - log(1/4) - log(2 pi) = -2 + log 4 - log(2 pi).
    """
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    schedule = Schedule(
        timesteps_K=torch.tensor([7]),
        alpha_K1=torch.stack([one, one]),
        sigma_K1=torch.stack([one, 0.5 * one]),
        noise_K=0.5 * one[None],
        direction_K=0 * one[None],
        training=Levels.variance_preserving(one[None] / 2),
        prediction="epsilon",
    )
    assert transition.output_slope(schedule).item() == -1
    logp = -2 + math.log(4) - math.log(2 * math.pi)

    def units(advantage: float, logp_old: float) -> Queries:
        return Queries(
            x_UM=torch.zeros(1, 1, 2, dtype=torch.float64),
            t_UM=torch.tensor([[7]]),
            prompts_U=("a",),
            together=1,
            extra={
                "k": torch.tensor([0]),
                "next": torch.zeros(1, 2, dtype=torch.float64),
                "logp_old": zero[None] + logp_old,
                "advantage": zero[None] + advantage,
            },
        )

    prediction = torch.tensor([[[-1.0, 0.0]]], dtype=torch.float64)
    reference = torch.tensor([[[-1.0, 3.0]]], dtype=torch.float64)

    def term(objective: Ddpo, advantage: float, logp_old: float) -> float:
        return objective.loss(units(advantage, logp_old), schedule, prediction, reference).terms_U.item()

    old = logp - 0.1
    # score function: -A log p, or half of it per dimension
    assert term(make(clip=None, per_dimension=False), 3.0, old) == pytest.approx(-3 * logp)
    assert term(make(clip=None), 3.0, old) == pytest.approx(-1.5 * logp)
    # importance sampling: ratio exp(0.1), or exp(0.05) per dimension
    assert term(make(clip=0.2, per_dimension=False), 3.0, old) == pytest.approx(-3 * math.exp(0.1))
    assert term(make(clip=0.2), 3.0, old) == pytest.approx(-3 * math.exp(0.05))
    # a ratio of exp(0.1) = 1.105 is clipped at 1.02 where it is rewarded, and not where it is punished
    assert term(make(clip=0.02, per_dimension=False), 3.0, old) == pytest.approx(-3 * 1.02)
    assert term(make(clip=0.02, per_dimension=False), -3.0, old) == pytest.approx(3 * math.exp(0.1))
    # advantages are clipped first
    assert term(make(clip=0.2, per_dimension=False, advantage_clip=2.0), 3.0, old) == pytest.approx(-2 * math.exp(0.1))
    assert term(make(clip=0.2, per_dimension=False, advantage_clip=2.0), -9.0, old) == pytest.approx(2 * math.exp(0.1))
    # KL: the means are 3 apart, 9 / (2 / 4) = 18 nats
    assert term(make(kl_weight=0.5, per_dimension=False), 0.0, old) == pytest.approx(9.0)
    assert term(make(kl_weight=0.5), 0.0, old) == pytest.approx(4.5)
    assert term(make(), 0.0, old) == 0.0


@pytest.mark.parametrize("per_dimension", [True, False])
@pytest.mark.parametrize("clip", [0.1, None])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_gradcheck(clip: float | None, kl_weight: float, per_dimension: bool) -> None:
    schedule = sampler()
    objective = make(clip=clip, kl_weight=kl_weight, per_dimension=per_dimension)
    queries, prediction = points(schedule)
    # near, not at, the policy that drew: both sides of the band occur, and no unit stands on its edge
    prediction = (prediction + 0.05 * randn(*prediction.shape, seed=9)).requires_grad_()
    reference = prediction.detach() + 0.1
    assert torch.autograd.gradcheck(
        lambda p: objective.loss(queries, schedule, p, reference).terms_U, (prediction,), atol=1e-5
    )


# limits


@pytest.mark.parametrize("per_dimension", [True, False])
def test_at_the_sampling_policy(per_dimension: bool) -> None:
    """D1 and D8: every ratio is 1, nothing is clipped, and the gradient is that of the score-function form."""
    schedule = sampler()
    queries, prediction = points(schedule)
    prediction = prediction.clone().requires_grad_()
    gradients = []
    for clip in (1e-4, 0.2, None):
        loss = make(clip=clip, per_dimension=per_dimension).loss(queries, schedule, prediction, None)
        torch.testing.assert_close(
            loss.metrics["ratio"], torch.ones(len(queries), dtype=torch.float64), atol=1e-12, rtol=0
        )
        assert not loss.metrics.get("clip_fraction", torch.zeros(1)).any()
        gradients += torch.autograd.grad(loss.terms_U.sum(), prediction)
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])
    # and that is -A kappa z / sigma, per dimension
    k, advantage = queries.extra["k"], queries.extra["advantage"]
    mean = transition.mean(schedule, k, queries.x_UM[:, 0], prediction.detach()[:, 0])
    z = (queries.extra["next"] - mean) / schedule.noise_K[k][:, None, None]
    weight = (
        -advantage * transition.output_slope(schedule)[k] / schedule.noise_K[k] / (DIMENSIONS if per_dimension else 1)
    )
    torch.testing.assert_close(gradients[2][:, 0], weight[:, None, None] * z)


@pytest.mark.parametrize("clip", [0.1, None])
def test_no_advantage_no_gradient(clip: float | None) -> None:
    """D2."""
    _, grad = with_ratio(make(clip=clip), 1.05, 0.0)
    assert not grad.any()


@pytest.mark.parametrize("per_dimension", [True, False])
@pytest.mark.parametrize(
    ("ratio", "advantage", "open_"),
    [
        (1.05, 1.0, True),
        (0.95, 1.0, True),
        (1.05, -1.0, True),
        (0.95, -1.0, True),
        (1.2, 1.0, False),  # already more likely than the band allows
        (0.8, 1.0, True),  # on the wrong side: pulled back
        (1.2, -1.0, True),
        (0.8, -1.0, False),
    ],
)
def test_the_gate_of_the_clip(ratio: float, advantage: float, open_: bool, per_dimension: bool) -> None:
    """D3: outside the band the gradient vanishes only on the side that the advantage asked for."""
    loss, grad = with_ratio(make(clip=0.1, per_dimension=per_dimension), ratio, advantage)
    assert loss.metrics["ratio"].tolist() == pytest.approx([ratio] * STEPS * SAMPLES)
    assert grad.flatten(1).any(1).tolist() == [open_] * STEPS * SAMPLES
    assert loss.metrics["clip_fraction"].tolist() == [0.0 if open_ else 1.0] * STEPS * SAMPLES


@pytest.mark.parametrize("ratio", [0.5, 0.95, 1.0, 1.05, 2.0])
@pytest.mark.parametrize("advantage", [-2.0, 0.5])
def test_clipping_never_lowers_the_loss(ratio: float, advantage: float) -> None:
    """D4."""
    loss, _ = with_ratio(make(clip=0.1), ratio, advantage)
    assert (loss.terms_U >= -advantage * ratio - 1e-12).all()


@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_a_ratio_that_overflows_is_clipped_like_any_other(advantage: float) -> None:
    """In float32 an infinite ratio times a gradient of 0 was NaN, and ended the run."""
    schedule = sampler(torch.float32)
    queries, prediction = points(schedule)
    queries.extra["logp_old"] = queries.extra["logp_old"] - 200.0
    queries.extra["advantage"] = torch.full_like(queries.extra["advantage"], advantage)
    prediction.requires_grad_()
    loss = make(per_dimension=False).loss(queries, schedule, prediction, None)
    torch.testing.assert_close(loss.terms_U, torch.full_like(loss.terms_U, -advantage * 1.1))
    (gradient,) = torch.autograd.grad(loss.terms_U.sum(), prediction)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("per_dimension", [False, True])
def test_how_far_the_policy_moved(per_dimension: bool) -> None:
    """In nats, whatever the ratio is of: the estimate ratio - 1 - log ratio is 0 at 1 and else positive; at 2 it is 1 - log 2."""
    for ratio, expected in ((1.0, 0.0), (2.0, 1 - math.log(2)), (0.5, math.log(2) - 0.5)):
        objective = make(per_dimension=per_dimension)
        loss, _ = with_ratio(objective, ratio ** (1 / DIMENSIONS if per_dimension else 1), 1.0)
        assert loss.metrics["kl_behaviour"].tolist() == pytest.approx([expected] * STEPS * SAMPLES, abs=1e-12)


def test_how_far_the_policy_moved_is_no_rounding() -> None:
    """In float32, at log ratios as small as clips of 1e-4 leave them: half of their square."""
    schedule = sampler(torch.float32)
    batch, outputs = trajectories(schedule)
    queries = make().queries(batch, schedule, generator())
    k = queries.extra["k"]
    prediction_UM = outputs[k, torch.arange(SAMPLES).repeat(len(k) // SAMPLES)][:, None]
    logp = transition.log_density(
        schedule, k, transition.mean(schedule, k, queries.x_UM[:, 0], prediction_UM[:, 0]), queries.extra["next"]
    )
    queries.extra["logp_old"] = logp - 1e-5
    log_ratio = (logp - queries.extra["logp_old"]).double()
    found = make().loss(queries, schedule, prediction_UM, None).metrics["kl_behaviour"].double()
    torch.testing.assert_close(found, log_ratio**2 / 2, rtol=0.2, atol=0.0)


def test_only_the_kl_term_needs_the_reference() -> None:
    assert not make().needs_reference
    assert make(kl_weight=1e-3).needs_reference


def test_kl_term() -> None:
    """No cost at the reference, and half of kappa^2 / sigma^2 |difference|^2 away from it, weighted."""
    schedule = sampler()
    queries, prediction = points(schedule)
    plain = make().loss(queries, schedule, prediction, None).terms_U
    objective = make(kl_weight=2.0, per_dimension=False)
    plain_sum = make(per_dimension=False).loss(queries, schedule, prediction, None).terms_U
    assert make(kl_weight=2.0).loss(queries, schedule, prediction, prediction).terms_U.equal(plain)
    moved = prediction + 0.1 * randn(*prediction.shape, seed=4)
    loss = objective.loss(queries, schedule, prediction, moved)
    k = queries.extra["k"]
    expected = (transition.output_slope(schedule) ** 2 / schedule.noise_K**2)[k] * (moved - prediction).flatten(
        1
    ).square().sum(1)
    torch.testing.assert_close(loss.terms_U - plain_sum, expected)
    torch.testing.assert_close(loss.metrics["kl_reference"], expected / 2)


def test_units_do_not_see_each_other() -> None:
    schedule = sampler()
    queries, prediction = points(schedule)
    whole = make(kl_weight=0.1).loss(queries, schedule, prediction, 0.9 * prediction)
    parts = [
        make(kl_weight=0.1).loss(queries.rows(i, i + 2), schedule, prediction[i : i + 2], 0.9 * prediction[i : i + 2])
        for i in range(0, len(queries), 2)
    ]
    torch.testing.assert_close(torch.cat([p.terms_U for p in parts]), whole.terms_U)


@pytest.mark.parametrize("clip", [0.1, None])
@pytest.mark.parametrize("size", [1e3, 1e-30])
def test_extreme_inputs_stay_finite(clip: float | None, size: float) -> None:
    """Large predictions and large advantages in float32, as far as a density per dimension can go."""
    schedule = sampler(torch.float32)
    queries, prediction = points(schedule)
    queries = dataclasses.replace(queries, extra={**queries.extra, "advantage": queries.extra["advantage"] * 1e30})
    prediction = (prediction * size).requires_grad_()
    loss = make(clip=clip, kl_weight=0.1).loss(queries, schedule, prediction, prediction.detach() / 2)
    loss.terms_U.sum().backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    for values in (loss.terms_U, *loss.metrics.values()):
        assert values.isfinite().all()
        assert values.shape == (len(queries),)
        assert values.dtype == torch.float32


def test_metrics_carry_no_gradient() -> None:
    schedule = sampler()
    queries, prediction = points(schedule)
    loss = make(kl_weight=0.1).loss(queries, schedule, prediction.requires_grad_(), prediction.detach())
    assert loss.terms_U.requires_grad
    assert not any(values.requires_grad for values in loss.metrics.values())


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"clip": 0.0}, r"objective\.clip"),
        ({"clip": -1.0}, r"objective\.clip"),
        ({"clip": math.nan}, r"objective\.clip"),
        ({"advantage_clip": 0.0}, r"objective\.advantage_clip"),
        ({"kl_weight": -0.1}, r"objective\.kl_weight"),
        ({"kl_weight": math.nan}, r"objective\.kl_weight"),
        ({"step_fraction": 0.0}, r"objective\.step_fraction"),
        ({"step_fraction": 1.5}, r"objective\.step_fraction"),
    ],
)
def test_impossible_settings(changes: dict[str, float], setting: str) -> None:
    with pytest.raises(UserError, match=setting):
        make(**changes)


def test_it_is_registered() -> None:
    assert OBJECTIVES["ddpo"] is Ddpo


@pytest.mark.parametrize("window", [(0, 2), (1, 4), (3, STEPS)])
def test_a_window_s_steps_have_their_own_densities_and_advantages(window: tuple[int, int]) -> None:
    """Of latents only those around the window are kept; of densities and advantages every step's."""
    schedule, (batch, _) = sampler(), trajectories(sampler())
    first, end = window
    columns = [*range(first, end + 1), *([STEPS] if end < STEPS else [])]
    kept = dataclasses.replace(batch, latents_NK=batch.latents_NK[:, columns], window=window)
    queries = make().queries(kept, schedule, generator())
    inside = make().queries(batch, schedule.windowed(window), generator())
    assert len(queries) == (end - first) * SAMPLES
    assert queries.x_UM.equal(inside.x_UM)
    for name in ("k", "next", "logp_old", "advantage"):
        assert queries.extra[name].equal(inside.extra[name])


def test_the_kl_that_is_told_is_in_nats() -> None:
    """Whatever the ratio is divided by."""
    schedule = sampler()
    queries, prediction = points(schedule)
    told = [
        make(kl_weight=2.0, per_dimension=each)
        .loss(queries, schedule, prediction, 1.1 * prediction)
        .metrics["kl_reference"]
        for each in (True, False)
    ]
    assert told[0].equal(told[1]) and told[0].min() > 0
