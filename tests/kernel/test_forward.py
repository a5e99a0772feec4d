"""Where objectives of the forward process noise pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.toy import open_toy
from raysuite.kernel.objectives.sft import Sft
from raysuite.kernel.schedule import Schedule, denoised
from raysuite.types import Queries

BOTH = pytest.mark.parametrize("flow", [False, True], ids=["noise", "velocity"])


def table(flow: bool, steps: int = 8) -> Schedule:
    return open_toy(Sampler(steps=steps), dtype=torch.float64, flow=flow).schedule


def noised(schedule: Schedule, *, rows: int = 400, seed: int = 0, **settings: Any) -> Queries:
    clean = torch.randn(rows, 1, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Sft(**settings).renoise(clean, ("",) * rows, schedule, torch.Generator().manual_seed(seed))


def shares(queries: Queries, schedule: Schedule) -> Tensor:
    """Places on the training table, in [0, 1)."""
    return schedule.training.nearest(queries.t_UM[:, 0]) / len(schedule.training)


@BOTH
@pytest.mark.parametrize("levels", ["uniform", "logit_normal", "sampler"])
def test_time_and_levels_belong_together(flow: bool, levels: Any) -> None:
    """What the network is told and what the latent holds: a row of the table each, and the target gives the picture back."""
    schedule = table(flow)
    queries = noised(schedule, levels=levels, draws=4)
    alpha, sigma, t = queries.extra["alpha"], queries.extra["sigma"], queries.t_UM[:, 0]
    if levels == "sampler":
        rows = (t[:, None] == schedule.timesteps_K).double().argmax(1)
        expected = schedule.timesteps_K, schedule.alpha_K1, schedule.sigma_K1
    else:
        rows = schedule.training.nearest(t)
        expected = schedule.training.timesteps_T, schedule.training.alpha_T, schedule.training.sigma_T
    assert all(found.equal(column[rows]) for found, column in zip((t, alpha, sigma), expected, strict=True))
    assert t.dtype == (torch.float64 if flow else torch.int64)
    x0, eps = denoised(schedule.prediction, queries.extra["target"][:, 0], queries.x_UM[:, 0], alpha, sigma)
    torch.testing.assert_close(x0, queries.extra["clean"][:, 0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(alpha[:, None] * x0 + sigma[:, None] * eps, queries.x_UM[:, 0])


@BOTH
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.0, 1.5)])
def test_logit_normal_levels(flow: bool, mean: float, std: float) -> None:
    """The logit of the place on the table is normal, a mean above 0 towards noise, whatever the table's shift."""
    schedule = table(flow)
    place = shares(noised(schedule, levels="logit_normal", logit_mean=mean, logit_std=std, draws=20), schedule)
    inside = (place + 0.5 / len(schedule.training)).logit()
    assert kstest(inside.numpy(), norm(mean, std).cdf).statistic < 1.95 / math.sqrt(8000)  # of 1 in 1000


def test_logit_normal_levels_within_a_range() -> None:
    """The same distribution, cut off: a tenth of the noisy half's draws lies in each of its tenths of probability."""
    schedule = table(True)
    place = shares(noised(schedule, levels="logit_normal", noise_range=(0.5, 0.9), draws=20), schedule)
    assert float(place.min()) >= 0.5 and float(place.max()) < 0.9
    ends = norm.cdf(torch.tensor([0.5, 0.9]).logit().numpy())
    probability = (norm.cdf((place + 0.0005).logit().numpy()) - ends[0]) / (ends[1] - ends[0])
    assert kstest(probability, "uniform").statistic < 1.95 / math.sqrt(8000)


@BOTH
def test_levels_of_the_sampler(flow: bool) -> None:
    """Those that steps begin at, every one alike, and no picture twice at one level."""
    schedule = table(flow)
    queries = noised(schedule, levels="sampler", draws=5)
    by_row = queries.t_UM[:, 0].reshape(400, 5)
    assert all(len(set(row)) == 5 for row in by_row.tolist())
    counts = (by_row.flatten()[:, None] == schedule.timesteps_K).sum(0)
    assert counts.sum() == 2000 and (counts - 250).abs().max() < 5 * math.sqrt(400 * 5 / 8 * 3 / 8)
    every = noised(schedule, levels="sampler", draws=8).t_UM[:, 0].reshape(400, 8)
    assert (every.sort(1, descending=True).values == schedule.timesteps_K).all()
    assert not (every[0] == every[1:]).all(1).all()  # in an order of its own


def test_levels_of_the_sampler_within_a_range() -> None:
    schedule = table(True)  # equal in unshifted time: 1, 7/8, 6/8, ...
    queries = noised(schedule, levels="sampler", draws=3, noise_range=(0.4, 0.8))
    assert set(queries.t_UM.flatten().tolist()) == set(schedule.timesteps_K[2:5].tolist())
    with pytest.raises(
        UserError, match=r"expected objective\.draws of at most the 3 levels of the sampler in noise_range, got 4"
    ):
        noised(schedule, levels="sampler", draws=4, noise_range=(0.4, 0.8))


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        (
            {"logit_mean": 0.5},
            r"objective\.logit_mean and logit_std left out unless levels is logit_normal, got \[0\.5, 1\.0\]",
        ),
        ({"levels": "logit_normal", "logit_std": 0.0}, r"objective\.logit_std above 0"),
        ({"draws": 0}, r"objective\.draws of at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        Sft(**settings)


def test_errors_of_one_parametrisation_in_another() -> None:
    """On a flow table: of the noise (1 - sigma)^2 times that of the velocity, of the clean latent sigma^2 times."""
    x, v, other = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    (x0, eps), (x0_other, eps_other) = (denoised("velocity", said, x, 1 - sigma, sigma) for said in (v, other))
    error = (v - other).square().mean(1)
    torch.testing.assert_close((eps - eps_other).square().mean(1), (1 - sigma) ** 2 * error)
    torch.testing.assert_close((x0 - x0_other).square().mean(1), sigma**2 * error)


def test_every_unit_has_noise_of_its_own() -> None:
    queries = noised(table(flow=True), rows=3, draws=2)
    noise_U = queries.extra["target"][:, 0] + queries.extra["clean"][:, 0]  # the velocity is noise less picture
    assert len({tuple(round(number, 6) for number in row) for row in noise_U.tolist()}) == 6
