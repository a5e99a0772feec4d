"""Samplers as pairs of noise and direction: against the formulas as their authors publish them, written here from the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.distributions import MultivariateNormal

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.schedule import Levels, Schedule, noisy_schedule

STEPS = 10


def sd3_sigmas(steps: int = STEPS) -> Tensor:
    """The table of Stable Diffusion 3's scheduler, shifted twice: 1, .960, ..., .278, .0089, 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.double()


def flow(sigma_K1: Tensor | None = None, **options: Any) -> Schedule:
    sigma_K1 = sd3_sigmas() if sigma_K1 is None else sigma_K1
    every = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    return noisy_schedule(
        timesteps_K=(1000 * sigma_K1[:-1]).float(),
        alpha_K1=1 - sigma_K1,
        sigma_K1=sigma_K1,
        training=Levels.flow(1000 * every, every),
        prediction="velocity",
        **options,
    )


def points(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A latent and a velocity at every step."""
    drawn = torch.randn(2, STEPS, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn[0], drawn[1]


def taken(schedule: Schedule, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every step."""
    return transition.mean(schedule, torch.arange(schedule.steps), x, v), schedule.noise_K


# the published steps


def test_without_noise_every_kind_is_the_scheduler_s_euler_step() -> None:
    sigma = sd3_sigmas()
    x, v = points()
    euler = x + (sigma.diff())[:, None] * v
    for kind in ("ddim", "cps", "flow_sde", "dance"):
        mean, noise = taken(flow(kind=kind, level=0.0), x, v)
        torch.testing.assert_close(mean, euler, atol=1e-12, rtol=0)
        assert (noise == 0).all()


@pytest.mark.parametrize("first", [1 - 1e-6, 0.99967])  # of UniPC's tables, and of DPM-Solver's
def test_a_table_that_begins_next_to_1_has_the_noise_of_one_that_begins_there(first: float) -> None:
    """1 - sigma of such a step, taken as it is, made its noise 131 times what it is for Wan."""
    sigma = sd3_sigmas()
    beside = torch.cat([torch.tensor([first], dtype=sigma.dtype), sigma[1:]])
    exact, found = (flow(s, kind="flow_sde", level=0.7) for s in (sigma, beside))
    torch.testing.assert_close(found.noise_K, exact.noise_K, rtol=5e-3, atol=0)
    torch.testing.assert_close(found.direction_K, exact.direction_K, rtol=5e-3, atol=0)


def test_flow_sde_is_flow_grpo_s_step() -> None:
    """Its equation 9 with dt = sigma' - sigma < 0 and sigma_t = a sqrt(t / (1 - t)); at t = 1 the code's 1 - t takes the next t."""
    sigma, a = sd3_sigmas(), 0.7
    x, v = points()
    mean, noise = taken(flow(kind="flow_sde", level=a, floor=0.0), x, v)
    for k in range(STEPS - 1):
        t, dt = float(sigma[k]), float(sigma[k + 1] - sigma[k])
        spread = a * math.sqrt(t / (1 - (t if t < 1 else float(sigma[1]))))
        drift = v[k] + spread**2 / (2 * t) * (x[k] + (1 - t) * v[k])
        torch.testing.assert_close(mean[k], x[k] + drift * dt, atol=1e-12, rtol=0)
        assert float(noise[k]) == pytest.approx(spread * math.sqrt(-dt), abs=1e-12)


def test_dance_is_dancegrpo_s_step() -> None:
    """Drift of the ODE plus half eta^2 times the score, -(x - (1 - t) x0) / t^2, and noise eta sqrt(-dt)."""
    sigma, eta = sd3_sigmas(), 0.3
    x, v = points(1)
    mean, noise = taken(flow(kind="dance", level=eta, floor=0.0), x, v)
    for k in range(STEPS - 1):
        t, dt = float(sigma[k]), float(sigma[k + 1] - sigma[k])
        score = -(x[k] - (1 - t) * (x[k] - t * v[k])) / t**2
        torch.testing.assert_close(mean[k], x[k] + (v[k] - 0.5 * eta**2 * score) * dt, atol=1e-12, rtol=0)
        assert float(noise[k]) == pytest.approx(eta * math.sqrt(-dt), abs=1e-12)


def test_cps_is_flow_cps_s_step() -> None:
    """x0 times 1 - t', noise split between the predicted one and a fresh one as cosine and sine of level pi / 2."""
    sigma, level = sd3_sigmas(), 0.8
    x, v = points(2)
    mean, noise = taken(flow(kind="cps", level=level, floor=0.0), x, v)
    for k in range(STEPS):
        t, after = float(sigma[k]), float(sigma[k + 1])
        x0, x1 = x[k] - t * v[k], x[k] + (1 - t) * v[k]
        fresh = after * math.sin(level * math.pi / 2)
        expected = (1 - after) * x0 + math.sqrt(after**2 - fresh**2) * x1
        torch.testing.assert_close(mean[k], expected, atol=1e-12, rtol=0)
        assert float(noise[k]) == pytest.approx(fresh, abs=1e-12)


def test_ddim_is_song_s_step_where_variance_is_preserved() -> None:
    """Equation 16 of the paper in its alpha, which is the squared signal level."""
    alpha_bar = DDIMScheduler().alphas_cumprod.double()
    at = torch.tensor([981, 781, 581, 381, 181, 1])
    level = alpha_bar[at]
    schedule = noisy_schedule(
        timesteps_K=at[:-1],
        alpha_K1=level.sqrt(),
        sigma_K1=(1 - level).sqrt(),
        training=Levels.variance_preserving(alpha_bar),
        prediction="epsilon",
        level=0.6,
    )
    song = 0.6 * ((1 - level[1:]) / (1 - level[:-1])).sqrt() * (1 - level[:-1] / level[1:]).sqrt()
    torch.testing.assert_close(schedule.noise_K, song, atol=1e-12, rtol=0)
    torch.testing.assert_close(schedule.direction_K, (1 - level[1:] - song**2).sqrt(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("kind", "level"), [("ddim", 1.0), ("ddim", 0.4), ("cps", 0.8), ("flow_sde", 0.7), ("dance", 0.3)]
)
def test_what_kinds_leave_of_the_noise_level(kind: Any, level: float) -> None:
    """ddim and cps keep it exactly; the SDEs end with more, by as much as their drift is right to first order only."""
    schedule = flow(kind=kind, level=level, floor=0.0)
    excess = (schedule.direction_K**2 + schedule.noise_K**2).sqrt() - schedule.sigma_K1[1:]
    if kind in ("ddim", "cps"):
        torch.testing.assert_close(excess, torch.zeros_like(excess), atol=1e-12, rtol=0)
    else:
        assert (excess[:-1] > 0).all()


def test_slopes_of_the_mean() -> None:
    """D mean / d v: sigma' - sigma for the ODE; (1 + a^2 / 2) times that for flow_sde, but where its denominator is another's."""
    step = sd3_sigmas().diff()
    torch.testing.assert_close(transition.output_slope(flow(level=0.0)), step, atol=1e-12, rtol=0)
    slopes = transition.output_slope(flow(kind="flow_sde", level=0.7, floor=0.0))
    torch.testing.assert_close(slopes[1:-1], step[1:-1] * (1 + 0.7**2 / 2), atol=1e-12, rtol=0)


# a network that is told the truth

GAUSSIAN = {  # target variance .25 after K steps of Stable Diffusion 3's table, by sampler
    ("ddim", 0.0): {10: 0.129, 50: 0.222, 1000: 0.2485},
    ("flow_sde", 0.7): {10: 0.177, 50: 0.234, 1000: 0.2497},
    ("flow_sde", 2**0.5): {10: 0.261, 50: 0.244, 1000: 0.2496},
    ("dance", 0.3): {10: 0.142, 50: 0.225, 1000: 0.2486},
    ("dance", 1.0): {10: 0.286, 50: 0.248, 1000: 0.2498},
    ("ddim", 0.5): {10: 0.124, 50: 0.217, 1000: 0.2480},
    ("ddim", 1.0): {10: 0.102, 50: 0.195, 1000: 0.2461},
    ("cps", 0.7): {10: 0.102, 50: 0.157, 1000: 0.179},
    ("cps", 0.9): {10: 0.086, 50: 0.124, 1000: 0.142},
}


def gaussian_variance(schedule: Schedule, spread: float) -> float:
    """Variance of the samples where pictures are N(0, spread^2) and the velocity is exact: each step is linear in x."""
    variance = 1.0
    for k in range(schedule.steps):
        a, s = float(schedule.alpha_K1[k]), float(schedule.sigma_K1[k])
        x0 = a * spread**2 / (a**2 * spread**2 + s**2)  # E[x0 | x = 1]
        eps = s / (a**2 * spread**2 + s**2)
        gain = float(schedule.alpha_K1[k + 1]) * x0 + float(schedule.direction_K[k]) * eps
        variance = gain**2 * variance + float(schedule.noise_K[k]) ** 2
    return variance


@pytest.mark.parametrize(("kind", "level"), GAUSSIAN)
def test_variance_of_an_exact_gaussian(kind: Any, level: float) -> None:
    """All samplers find it as steps grow, but cps: its noise per step does not shrink with the step."""
    for steps, expected in GAUSSIAN[kind, level].items():
        found = gaussian_variance(flow(sd3_sigmas(steps), kind=kind, level=level, floor=0.0), 0.5)
        assert found == pytest.approx(expected, abs=1.2e-3), steps
    assert (abs(found - 0.25) < 0.005) == (kind != "cps")


def test_flow_sde_becomes_ddim_as_steps_grow() -> None:
    """Level a against a / sqrt 2: noise and direction of the same step, from a fine table."""
    sigma = torch.linspace(1, 0, 4001, dtype=torch.float64)
    sde, ddim = flow(sigma, kind="flow_sde", level=0.7), flow(sigma, kind="ddim", level=0.7 / 2**0.5)
    inside = slice(400, 3600)
    torch.testing.assert_close(sde.noise_K[inside], ddim.noise_K[inside], rtol=4e-3, atol=0)
    torch.testing.assert_close(sde.direction_K[inside], ddim.direction_K[inside], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "level"), [("ddim", 1.0), ("cps", 0.8), ("flow_sde", 0.7), ("dance", 0.3)])
def test_density_of_a_trajectory(kind: Any, level: float) -> None:
    """Where every step is linear, a trajectory is one draw of a Gaussian over all its latents, whose covariance is known."""
    schedule, spread = flow(kind=kind, level=level), 0.5
    steps = int(schedule.stochastic_K.sum())
    assert schedule.stochastic_K[:steps].all()

    def velocity(x: Tensor, k: int) -> Tensor:
        a, s = schedule.alpha_K1[k], schedule.sigma_K1[k]
        return (s - a * spread**2) / (a**2 * spread**2 + s**2) * x

    start = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)
    latents, found = [start], torch.zeros(2, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        k = torch.tensor(step)
        mean = transition.mean(schedule, k, latents[-1], velocity(latents[-1], step))
        latents.append(transition.draw(schedule, k, mean, torch.randn(2, 1, generator=random, dtype=torch.float64)))
        found += transition.log_density(schedule, k, mean, latents[-1])
    # latent j is the product of the gains after it, applied to the start and to every noise before it
    x0 = [float(-schedule.sigma_K1[k] * velocity(torch.tensor(1.0), k) + 1) for k in range(steps)]
    eps = [float(schedule.alpha_K1[k] * velocity(torch.tensor(1.0), k) + 1) for k in range(steps)]
    gains = [float(schedule.alpha_K1[k + 1]) * x0[k] + float(schedule.direction_K[k]) * eps[k] for k in range(steps)]
    reach = torch.zeros(steps, steps, dtype=torch.float64)
    for j in range(steps):
        for i in range(j + 1):
            reach[j, i] = float(schedule.noise_K[i]) * math.prod(gains[i + 1 : j + 1])
    means = start * torch.tensor([math.prod(gains[: j + 1]) for j in range(steps)], dtype=torch.float64)
    closed = MultivariateNormal(means, covariance_matrix=reach @ reach.T).log_prob(torch.cat(latents[1:], 1))
    torch.testing.assert_close(found, closed, rtol=1e-9, atol=1e-9)


# the end of the table


def weights(schedule: Schedule) -> Tensor:
    """What each stochastic step weighs |v - v_ref|^2 with in ratios and KL: slope^2 / (2 noise^2)."""
    noisy = schedule.stochastic_K
    return (transition.output_slope(schedule)[noisy] ** 2 / (2 * schedule.noise_K[noisy] ** 2)).double()


def test_why_there_is_a_floor() -> None:
    """Stable Diffusion 3's last step but one ends at .0089: it alone would decide ratios, or stay in the picture as grain."""
    for kind, level, last in (("ddim", 1.0, 476), ("cps", 0.7, 587)):
        open_ended = weights(flow(kind=kind, level=level, floor=0.0))
        assert float(open_ended[-1]) == pytest.approx(last, rel=0.01)
        assert open_ended[-1] > 10_000 * open_ended.median()
        assert weights(flow(kind=kind, level=level)).max() < 1
    grainy = flow(kind="flow_sde", level=0.7, floor=0.0)
    excess = (grainy.direction_K**2 + grainy.noise_K**2).sqrt() - grainy.sigma_K1[1:]
    assert float(excess[-2]) == pytest.approx(0.231, abs=5e-4)
    assert float(excess[:-2].max()) < 0.064
    clean = flow(kind="flow_sde", level=0.7)
    assert clean.stochastic_K.tolist() == [True] * 8 + [False] * 2
    torch.testing.assert_close(clean.direction_K[-2:], clean.sigma_K1[-2:])


def test_a_floor_of_one_s_own() -> None:
    sigma = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0], dtype=torch.float64)
    assert flow(sigma, floor=0.2).stochastic_K.tolist() == [True, False, False, False]
    assert flow(sigma, floor=0.15).stochastic_K.tolist() == [True, True, False, False]
    assert flow(sigma, floor=0.0).stochastic_K.tolist() == [True, True, True, False]


def test_models_that_preserve_variance_have_no_floor() -> None:
    """Stable Diffusion's own last level is .029, and its last step has noise."""
    alpha = torch.tensor([0.1, 0.9, 0.9996], dtype=torch.float64)
    schedule = noisy_schedule(
        timesteps_K=torch.tensor([900, 1]),
        alpha_K1=alpha,
        sigma_K1=(1 - alpha**2).sqrt(),
        training=Levels.variance_preserving(alpha.flip(0) ** 2),
        prediction="epsilon",
    )
    assert float(schedule.sigma_K1[-1]) < 0.03
    assert schedule.stochastic_K.all()


# windows


def test_outside_of_a_window_is_the_ode() -> None:
    whole, plain = flow(kind="flow_sde", level=0.7), flow(level=0.0)
    windowed = whole.windowed((2, 5))
    inside = torch.arange(STEPS).ge(2) & torch.arange(STEPS).lt(5)
    assert windowed.stochastic_K.tolist() == inside.tolist()
    for name in ("noise_K", "direction_K"):
        expected = torch.where(inside, getattr(whole, name), getattr(plain, name))
        assert getattr(windowed, name).equal(expected)
    assert windowed.timesteps_K.equal(whole.timesteps_K)
    assert whole.windowed((0, STEPS)).noise_K.equal(whole.noise_K)
    assert whole.windowed(None) is whole


# what is refused, and levels


@pytest.mark.parametrize("kind", ["flow_sde", "dance"])
def test_steps_of_flow_models_are_refused_to_others(kind: Any) -> None:
    alpha = torch.tensor([0.1, 0.9, 0.9996], dtype=torch.float64)
    with pytest.raises(
        UserError, match=rf"expected noise of ddim or cps with this model, got {kind}.*sampler\.noise\.kind=ddim"
    ):
        noisy_schedule(
            timesteps_K=torch.tensor([900, 1]),
            alpha_K1=alpha,
            sigma_K1=(1 - alpha**2).sqrt(),
            training=Levels.variance_preserving(alpha.flip(0) ** 2),
            prediction="epsilon",
            kind=kind,
        )


@pytest.mark.parametrize(
    ("kind", "level", "wanted"),
    [
        ("ddim", 1.1, "between 0 and 1"),
        ("cps", -0.1, "between 0 and 1"),
        ("dance", -1.0, "of at least 0"),
        ("flow_sde", math.nan, ""),
    ],
)
def test_levels_out_of_range(kind: Any, level: float, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"expected sampler\.noise\.level {wanted}.* with {kind}"):
        flow(kind=kind, level=level)


def test_sdes_may_be_louder_than_ancestral_sampling() -> None:
    assert flow(kind="flow_sde", level=1.5).stochastic_K.any()


def test_training_levels_of_a_flow_come_in_any_order() -> None:
    """Schedulers list them from noise to picture; here the least noisy is first."""
    levels = Levels.flow(torch.tensor([1000.0, 250.0, 600.0]), torch.tensor([1.0, 0.2, 0.5]))
    assert levels.timesteps_T.tolist() == [250.0, 600.0, 1000.0]
    torch.testing.assert_close(levels.alpha_T, torch.tensor([0.8, 0.5, 0.0]))
    assert len(levels) == 3
    assert levels.nearest(torch.tensor([[0.0, 424.0], [426.0, 5000.0]])).tolist() == [[0, 0], [1, 2]]


def test_a_timestep_of_a_variance_preserving_model_is_its_own_level() -> None:
    levels = Levels.variance_preserving(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64))
    assert levels.nearest(levels.timesteps_T).tolist() == list(range(1000))


def test_cps_of_level_1_forgets_the_predicted_noise_in_single_precision_too() -> None:
    """What is left of two squares that differ by rounding would be 1e-4."""
    sigma = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    assert flow(sigma, kind="cps", level=1.0, dtype=torch.float32).direction_K.abs().max() == 0
