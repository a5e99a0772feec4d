"""Noise levels and single denoising steps, against diffusers, against torch's distributions and against arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.stats import kstest
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.schedule import (
    Levels,
    Schedule,
    add_noise,
    denoised,
    network_output,
    spaced_timesteps,
    variance_preserving_schedule,
)

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
PREDICTIONS = ("epsilon", "v_prediction", "velocity")


def table(scheduler: DDIMScheduler, *, steps: int, eta: float = 1.0) -> Schedule:
    return variance_preserving_schedule(
        scheduler.alphas_cumprod.double(),
        steps=steps,
        level=eta,
        spacing=scheduler.config.timestep_spacing,
        offset=scheduler.config.steps_offset,
        prediction=scheduler.config.prediction_type,
    )


def sd(*, steps: int = 50, eta: float = 1.0, **changes: Any) -> Schedule:
    return table(DDIMScheduler(**{**SD, "steps_offset": 1, **changes}), steps=steps, eta=eta)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# levels and conversions


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 4, 2, 2)])
def test_conversions_invert_each_other(prediction: Any, shape: tuple[int, ...]) -> None:
    x0, eps = noise(*shape), noise(*shape, seed=1)
    angle = torch.linspace(0.1, 1.4, 5, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    x = add_noise(x0, eps, alpha, sigma)
    output = network_output(prediction, x0, eps, alpha, sigma)
    back = denoised(prediction, output, x, alpha, sigma)
    torch.testing.assert_close(back, (x0, eps), atol=1e-12, rtol=0)
    torch.testing.assert_close(network_output(prediction, *back, alpha, sigma), output, atol=1e-12, rtol=0)
    torch.testing.assert_close(add_noise(*back, alpha, sigma), x, atol=1e-12, rtol=0)


def test_conversions_by_arithmetic() -> None:
    """alpha = 0.6, sigma = 0.8, x0 = 2, eps = -1: x = 1.2 - 0.8 = 0.4 and v = -0.6 - 1.6 = -2.2."""
    alpha, sigma, x0, eps = (torch.tensor([v], dtype=torch.float64) for v in (0.6, 0.8, 2.0, -1.0))
    assert add_noise(x0, eps, alpha, sigma).item() == pytest.approx(0.4)
    assert network_output("v_prediction", x0, eps, alpha, sigma).item() == pytest.approx(-2.2)
    assert network_output("epsilon", x0, eps, alpha, sigma).item() == -1.0


def test_v_is_finite_without_signal() -> None:
    """At alpha = 0, sigma = 1 the noise is x itself and the clean latent is -v."""
    x, v = noise(3, 2), noise(3, 2, seed=1)
    x0, eps = denoised("v_prediction", v, x, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((x0, eps), (-v, x))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_conversions_agree_with_diffusers(prediction: Any) -> None:
    scheduler = DDIMScheduler(**SD, prediction_type=prediction)
    x0, eps, t = noise(4, 3, 2, 2), noise(4, 3, 2, 2, seed=1), torch.tensor([0, 10, 500, 999])
    alpha, sigma = scheduler.alphas_cumprod.double()[t].sqrt(), (1 - scheduler.alphas_cumprod.double()[t]).sqrt()
    torch.testing.assert_close(add_noise(x0, eps, alpha, sigma), scheduler.add_noise(x0, eps, t), atol=1e-6, rtol=0)
    if prediction == "v_prediction":
        ours = network_output(prediction, x0, eps, alpha, sigma)
        torch.testing.assert_close(ours, scheduler.get_velocity(x0, eps, t), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_those_of_diffusers_wherever_those_are_right(spacing: Any, offset: int) -> None:
    """For every K: exactly K that fall, none below 0; diffusers gives one more than asked for 62 numbers of steps."""
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    mended = []
    for steps in range(1, 1001 if (spacing, offset) != ("leading", 1) else 1000):
        ours = spaced_timesteps(1000, steps, spacing=spacing, offset=offset).tolist()
        assert len(ours) == steps and ours[-1] >= 0 and ours[0] <= 999 and ours == sorted(set(ours), reverse=True)
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        mended += [] if len(theirs) == steps else [steps]
        assert ours == theirs[:steps]
    assert len(mended) == (62 if spacing == "trailing" else 0) and mended[:5] in ([], [61, 103, 121, 122, 201])


@pytest.mark.parametrize("training_steps", [1, 2, 50, 100, 999, 4000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_other_training_schedules(spacing: Any, training_steps: int) -> None:
    for steps in range(1, training_steps + 1):
        ours = spaced_timesteps(training_steps, steps, spacing=spacing)
        assert len(ours) == steps and ours[-1] >= 0 and ours[0] < training_steps and (np.diff(ours) < 0).all()


def test_an_offset_does_not_lead_beyond_the_last_timestep() -> None:
    """With offset 1, a thousand steps would begin at 1000, which no model knows."""
    with pytest.raises(
        UserError, match=r"up to 999, 1000 steps.*offset of 1 begin at 1000: .*sampler\.spacing=trailing"
    ):
        spaced_timesteps(1000, 1000, spacing="leading", offset=1)


def test_timesteps_by_hand() -> None:
    assert spaced_timesteps(1000, 4, spacing="leading", offset=1).tolist() == [751, 501, 251, 1]
    assert spaced_timesteps(1000, 4, spacing="trailing", offset=1).tolist() == [999, 749, 499, 249]
    assert spaced_timesteps(1000, 4, spacing="linspace", offset=1).tolist() == [999, 666, 333, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps(steps: int) -> None:
    with pytest.raises(UserError, match=rf"1 to 1000 sampling steps, got {steps}.*sampler\.steps"):
        spaced_timesteps(1000, steps, spacing="leading")


def test_unknown_spacing_and_eta() -> None:
    with pytest.raises(UserError, match=r"got 'even': set sampler\.spacing"):
        spaced_timesteps(1000, 5, spacing="even")  # type: ignore[arg-type]
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"sampler\.noise\.level between 0 and 1 with ddim"):
            sd(eta=eta)


def test_levels_preserve_variance_and_fall() -> None:
    schedule = sd()
    torch.testing.assert_close(schedule.alpha_K1**2 + schedule.sigma_K1**2, torch.ones(51, dtype=torch.float64))
    assert (schedule.sigma_K1.diff() < 0).all()
    assert schedule.steps == 50


# the numbers of Stable Diffusion 1.5 and the last step


@pytest.mark.parametrize(
    ("k", "timestep", "sigma", "kappa", "weight"),
    [
        (0, 981, 0.4545, -0.2329, 0.1314),
        (10, 781, 0.3908, -0.1711, 0.0959),
        (25, 481, 0.2877, -0.1081, 0.0706),
        (40, 181, 0.1771, -0.0792, 0.1001),
        (48, 21, 0.0395, -0.1293, 5.362),
        (49, 1, 0.0206, -0.0207, 0.503),
    ],
)
def test_numbers_of_stable_diffusion(k: int, timestep: int, sigma: float, kappa: float, weight: float) -> None:
    """Fifty steps, leading, offset 1, eta 1: published code gives these to the digits shown."""
    schedule = sd()
    ours = transition.output_slope(schedule)[k]
    assert int(schedule.timesteps_K[k]) == timestep
    assert float(schedule.noise_K[k]) == pytest.approx(sigma, abs=6e-5)
    assert float(ours) == pytest.approx(kappa, abs=6e-5)
    assert float(ours**2 / (2 * schedule.noise_K[k] ** 2)) == pytest.approx(weight, rel=1e-3)


@pytest.mark.parametrize("steps", [2, 7, 20, 50, 1000])
def test_last_step_of_stable_diffusion_adds_noise(steps: int) -> None:
    schedule = sd(steps=steps, steps_offset=0 if steps == 1000 else 1)
    expected = [True] * steps if steps < 1000 else [True] * 999 + [False]
    assert schedule.stochastic_K.tolist() == expected
    assert schedule.noise_K.isfinite().all()


@pytest.mark.parametrize(
    "changes", [{"timestep_spacing": "linspace"}, {"timestep_spacing": "leading", "steps_offset": 0}]
)
def test_a_last_step_from_timestep_0_is_not_scored(changes: dict[str, Any]) -> None:
    schedule = sd(steps=10, **changes)
    assert schedule.stochastic_K.tolist() == [True] * 9 + [False]
    x, output = noise(3, 4), noise(3, 4, seed=1)
    k = torch.full((3,), 9)
    mean = transition.mean(schedule, k, x, output)
    torch.testing.assert_close(mean, x)  # it goes nowhere
    assert transition.draw(schedule, k, mean, noise(3, 4, seed=2)).equal(mean)
    assert transition.kl(schedule, k, mean, mean).equal(torch.zeros(3, dtype=torch.float64))
    assert not transition.log_density(schedule, k, mean, mean).isfinite().any()
    scored = transition.log_density(schedule, torch.tensor([0, 9, 1]), mean, mean + 1)
    assert scored.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize(("spacing", "offset", "first"), [("leading", 1, 1), ("linspace", 0, 0)])
def test_a_sampler_begins_with_noise(spacing: Any, offset: int, first: int) -> None:
    """One step from timestep 0 or 1 would return the noise as it was drawn; one from 999 is a picture."""
    with pytest.raises(
        UserError, match=rf"more noise than signal, got 1 steps with spacing {spacing} from timestep {first}"
    ):
        sd(steps=1, timestep_spacing=spacing, steps_offset=offset)
    assert sd(steps=1, timestep_spacing="trailing").timesteps_K.tolist() == [999]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timesteps_K": [3, 1, -1]}, r"the last at least 0, got \[3, 1, -1\]: set sampler\.steps"),
        ({"timesteps_K": [3, 3, 1]}, r"fall from step to step.*\[3, 3, 1\]"),
        ({"sigma_K1": [0.9, 0.5, 0.6, 0.1]}, "never above the one before"),
        ({"alpha_K1": [0.1, 0.5, math.nan, 1.0]}, "finite"),
        ({"noise_K": [0.1, -0.1, 0.0]}, "level of noise"),
    ],
)
def test_a_table_that_is_no_sampler_cannot_be_made(changes: dict[str, list[float]], said: str) -> None:
    """The first is what rounding made of `trailing`: a step too many, which led a run to learn from noise."""
    table = {"timesteps_K": [3, 2, 1], "alpha_K1": [0.1, 0.5, 0.8, 1.0], "sigma_K1": [0.9, 0.8, 0.6, 0.0]}
    table |= {"noise_K": [0.1, 0.1, 0.0], "direction_K": [0.5, 0.5, 0.0]}
    tensors: dict[str, Any] = {name: torch.tensor(values) for name, values in {**table, **changes}.items()}
    with pytest.raises(UserError, match=said):
        Schedule(**tensors, training=Levels.variance_preserving(torch.tensor([1.0, 0.5])), prediction="epsilon")


def test_a_table_has_as_many_levels_as_its_steps_need() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([1.0, 0.5])
    columns = {"timesteps_K": one, "alpha_K1": two, "sigma_K1": one, "noise_K": one, "direction_K": one}
    with pytest.raises(ValueError, match=r"K \+ 1 levels"):
        Schedule(**columns, training=Levels.variance_preserving(two), prediction="epsilon")


def test_zero_terminal_signal_needs_v() -> None:
    schedule = table(DDIMScheduler(**ZERO_SNR, prediction_type="v_prediction"), steps=10)
    assert schedule.timesteps_K[0] == 999
    x, output = noise(2, 3), noise(2, 3, seed=1)
    k = torch.zeros(2, dtype=torch.int64)
    mean = transition.mean(schedule, k, x, output)
    # nothing of x is left: the step draws alpha (-v) + sqrt(1 - alpha^2) z
    torch.testing.assert_close(mean, -schedule.alpha_K1[1] * output, atol=1e-4, rtol=0)
    assert float(schedule.noise_K[0]) == pytest.approx(float(schedule.sigma_K1[1]), rel=1e-4)
    assert transition.log_density(schedule, k, mean, mean).isfinite().all()


def test_zero_terminal_signal_with_noise_prediction_raises() -> None:
    abar = torch.linspace(1, 0, 1001, dtype=torch.float64)[1:]
    options: dict[str, Any] = {"steps": 10, "spacing": "trailing", "offset": 0}
    with pytest.raises(UserError, match="zero terminal"):
        variance_preserving_schedule(abar, prediction="epsilon", **options)
    assert variance_preserving_schedule(abar, prediction="v_prediction", **options).alpha_K1[0] == 0


# one step


def test_eta_1_is_the_posterior_of_ddpm() -> None:
    """S1: mean and variance of q(x_p | x_t, x0) from Ho et al., 2020, equations 6 and 7, with beta = 1 - abar_t / abar_p."""
    schedule = sd()
    k = torch.arange(50)
    abar_t, abar_p = schedule.alpha_K1[k] ** 2, schedule.alpha_K1[k + 1] ** 2
    x0, eps = noise(50, 6), noise(50, 6, seed=1)
    x = add_noise(x0, eps, schedule.alpha_K1[k], schedule.sigma_K1[k])
    beta = 1 - abar_t / abar_p
    from_clean = abar_p.sqrt() * beta / (1 - abar_t)
    from_noisy = (1 - beta).sqrt() * (1 - abar_p) / (1 - abar_t)
    torch.testing.assert_close(
        transition.mean(schedule, k, x, eps), from_clean[:, None] * x0 + from_noisy[:, None] * x, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(schedule.noise_K**2, (1 - abar_p) / (1 - abar_t) * beta, atol=1e-14, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_means_are_affine_in_the_noise_prediction(eta: float) -> None:
    """S2."""
    schedule, k = sd(eta=eta), torch.arange(50)
    x, first, second = noise(50, 6), noise(50, 6, seed=1), noise(50, 6, seed=2)
    difference = transition.mean(schedule, k, x, second) - transition.mean(schedule, k, x, first)
    torch.testing.assert_close(
        difference, transition.output_slope(schedule)[:, None] * (second - first), atol=1e-12, rtol=0
    )


def test_score_of_the_noise_prediction() -> None:
    """S3 for sums over dimensions: d log p / d eps = kappa z / sigma at the policy that drew z."""
    schedule, k = sd(), torch.arange(50)
    x, z = noise(50, 6), noise(50, 6, seed=1)
    eps = noise(50, 6, seed=2).requires_grad_()
    mean = transition.mean(schedule, k, x, eps)
    drawn = transition.draw(schedule, k, mean, z).detach()
    transition.log_density(schedule, k, mean, drawn).sum().backward()
    expected = (transition.output_slope(schedule) / schedule.noise_K)[:, None] * z
    torch.testing.assert_close(eps.grad, expected, atol=1e-9, rtol=0)


def test_without_noise_there_is_no_density() -> None:
    """S4."""
    schedule = sd(eta=0.0)
    assert schedule.noise_K.eq(0).all()
    x = noise(2, 3)
    assert not transition.log_density(schedule, torch.tensor([3, 3]), x, x).isfinite().any()


def test_kl_in_terms_of_noise_predictions() -> None:
    """S6, and the general formula of torch.distributions."""
    schedule, k = sd(), torch.arange(50)
    x, first, second = noise(50, 2, 3), noise(50, 2, 3, seed=1), noise(50, 2, 3, seed=2)
    means = [transition.mean(schedule, k, x, eps) for eps in (first, second)]
    ours = transition.kl(schedule, k, *means)
    squared = (second - first).square().sum((1, 2))
    torch.testing.assert_close(ours, transition.output_slope(schedule) ** 2 / (2 * schedule.noise_K**2) * squared)
    scale = schedule.noise_K[:, None, None]
    torch.testing.assert_close(ours, kl_divergence(Normal(means[0], scale), Normal(means[1], scale)).sum((1, 2)))


def test_log_density_is_that_of_torch() -> None:
    """S7: a sum over dimensions."""
    schedule, k = sd(), torch.arange(50)
    mean, drawn = noise(50, 2, 3), noise(50, 2, 3, seed=1)
    ours = transition.log_density(schedule, k, mean, drawn)
    theirs = Normal(mean, schedule.noise_K[:, None, None]).log_prob(drawn)
    torch.testing.assert_close(ours, theirs.sum((1, 2)))
    torch.testing.assert_close(ours / 6, theirs.mean((1, 2)))


def test_log_density_by_arithmetic() -> None:
    """Standard deviation 1/2, two dimensions, half and no standard deviation away: -1/8 - 2 log(1/2) - log(2 pi)."""
    half = torch.tensor([0.5], dtype=torch.float64)
    schedule = Schedule(
        timesteps_K=torch.tensor([1]),
        alpha_K1=torch.ones(2, dtype=torch.float64),
        sigma_K1=torch.ones(2, dtype=torch.float64),
        noise_K=half,
        direction_K=half,
        training=Levels.variance_preserving(half),
        prediction="epsilon",
    )
    mean, drawn = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.25, 0.0]], dtype=torch.float64)
    for k in (torch.tensor(0), torch.tensor([0])):
        ours = transition.log_density(schedule, k, mean, drawn)
        assert ours.item() == pytest.approx(-0.125 + 2 * math.log(2) - math.log(2 * math.pi), rel=1e-14)


def test_one_step_for_all_rows_or_one_each() -> None:
    schedule = sd()
    x, output, drawn = noise(4, 3), noise(4, 3, seed=1), noise(4, 3, seed=2)
    for step in (0, 48):
        each, one = torch.full((4,), step), torch.tensor(step)
        means = [transition.mean(schedule, k, x, output) for k in (each, one)]
        assert means[0].equal(means[1])
        torch.testing.assert_close(
            transition.log_density(schedule, each, means[0], drawn),
            transition.log_density(schedule, one, means[0], drawn),
        )
        assert transition.draw(schedule, each, means[0], drawn).equal(transition.draw(schedule, one, means[0], drawn))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 30), ("trailing", 50)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_are_those_of_diffusers(prediction: Any, spacing: Any, steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(**SD, steps_offset=1, prediction_type=prediction, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    schedule = table(scheduler, steps=steps, eta=eta)
    x, output, z = noise(2, 3), noise(2, 3, seed=1), noise(2, 3, seed=2)
    for step in (0, 1, steps // 2, steps - 2, steps - 1):
        k = torch.full((2,), step)
        ours = transition.draw(schedule, k, transition.mean(schedule, k, x, output), z)
        t = int(schedule.timesteps_K[step])
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=z if eta > 0 else None).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_draws_have_the_distribution_that_is_scored() -> None:
    """Draws in standard units are standard normal (Kolmogorov and Smirnov), with the right moments."""
    schedule, number = sd(), 20_000
    for step in (0, 25, 49):
        k = torch.full((number,), step)
        mean = transition.mean(schedule, k, noise(1, 2).expand(number, 2), noise(1, 2, seed=1).expand(number, 2))
        drawn = transition.draw(schedule, k, mean, noise(number, 2, seed=2 + step))
        standard = (drawn - mean) / schedule.noise_K[step]
        assert kstest(standard.flatten().numpy(), "norm").pvalue > 1e-3
        assert float((drawn - mean).mean()) == pytest.approx(
            0, abs=4 * float(schedule.noise_K[step]) / (2 * number) ** 0.5
        )
        assert float((drawn - mean).std()) == pytest.approx(float(schedule.noise_K[step]), rel=4 / (4 * number) ** 0.5)
        # the mean log-density is minus the entropy of two dimensions: -(1 + log(2 pi)) - 2 log sigma; its spread is 1
        entropy = 1 + math.log(2 * math.pi) + 2 * math.log(float(schedule.noise_K[step]))
        logp = transition.log_density(schedule, k, mean, drawn)
        assert float(logp.mean()) == pytest.approx(-entropy, abs=4 / number**0.5)
