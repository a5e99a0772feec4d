"""The toys against their own densities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.toy import ToyPolicy, open_toy
from raysuite.kernel import transition

PROMPT_WEIGHTS = {"left": (0.8, 0.2), "right": (0.2, 0.8), "both": (0.5, 0.5)}


def score(x: Tensor, weights: tuple[float, float], alpha: float, sigma: float) -> Tensor:
    """Gradient of the noisy density's logarithm, by autograd: two Gaussians of spread .3 at -1 and 1, noised."""
    x = x.detach().requires_grad_()
    variance = (0.3 * alpha) ** 2 + sigma**2
    modes = torch.tensor([[-alpha, 0.0], [alpha, 0.0]], dtype=x.dtype)
    exponents = -(x[:, None] - modes).square().sum(-1) / (2 * variance)
    logarithm = (exponents + torch.tensor(weights, dtype=x.dtype).log()).logsumexp(1)
    return torch.autograd.grad(logarithm.sum(), x)[0]


@pytest.mark.parametrize("prompt", PROMPT_WEIGHTS)
@pytest.mark.parametrize("t", [30.0, 400.5, 990.0])
def test_velocity_of_the_flow_model(prompt: str, t: float) -> None:
    """v = E[eps - x0 | x], with E[eps | x] = -sigma times the score and E[x0 | x] what is left of x."""
    policy = open_toy(Sampler(), dtype=torch.float64, flow=True)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = t / 1000
    eps = -sigma * score(x, PROMPT_WEIGHTS[prompt], 1 - sigma, sigma)
    x0 = (x - sigma * eps) / (1 - sigma)
    found = policy.predict(x, torch.full((8,), t), [prompt] * 8).detach()
    torch.testing.assert_close(found, eps - x0, atol=1e-9, rtol=1e-9)


def test_pure_noise_says_nothing_of_the_picture() -> None:
    """At t = 1000 the clean latent is the prompt's mean, (.2 - .8, 0) for `left`, wherever x is."""
    policy = open_toy(Sampler(), dtype=torch.float64, flow=True)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = policy.predict(x, torch.full((5,), 1000.0), ["left"] * 5).detach()
    torch.testing.assert_close(x - found, torch.tensor([[-0.6, 0.0]], dtype=torch.float64).expand(5, 2))


def test_table_of_the_flow_model() -> None:
    """Equal steps of time, shifted by 3: sigma = 3 s / (1 + 2 s)."""
    schedule = open_toy(Sampler(steps=4), flow=True).schedule
    torch.testing.assert_close(schedule.sigma_K1, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    torch.testing.assert_close(schedule.timesteps_K, torch.tensor([1000.0, 900.0, 750.0, 500.0]))
    assert schedule.timesteps_K.dtype == torch.float32
    assert len(schedule.training) == 1000 and float(schedule.training.sigma_T[-1]) == 1
    with pytest.raises(UserError, match=r"no sampler\.spacing with the toy flow model, got trailing"):
        open_toy(Sampler(spacing="trailing"), flow=True)


@pytest.mark.parametrize("flow", [False, True])
def test_samples_have_the_distribution(flow: bool) -> None:
    """With many steps: the share of each mode, and the spread around it."""
    policy: ToyPolicy = open_toy(Sampler(steps=100), dtype=torch.float64, flow=flow)
    random, number = torch.Generator().manual_seed(0), 4000
    x = torch.randn(number, 2, generator=random, dtype=torch.float64)
    with torch.no_grad():
        for step in range(100):
            k = torch.tensor(step)
            output = policy.predict(x, policy.schedule.timesteps_K[k].expand(number), ["left"] * number)
            mean = transition.mean(policy.schedule, k, x, output)
            x = transition.draw(policy.schedule, k, mean, torch.randn(x.shape, generator=random, dtype=x.dtype))
    assert float((x[:, 0] < 0).double().mean()) == pytest.approx(0.8, abs=0.025)
    assert float(x[:, 1].std()) == pytest.approx(0.3, rel=0.1)
