"""Objectives on re-noised pictures: values by arithmetic, gradients at the reference, the limits they must have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.toy import open_toy
from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.kernel.objectives.cal_dpo import CalDpo
from raysuite.kernel.objectives.diffusion_dpo import DiffusionDpo
from raysuite.kernel.objectives.dmpo import Dmpo
from raysuite.kernel.objectives.dspo import Dspo
from raysuite.kernel.objectives.pairs import Judged, PairObjective, linked, protect_winner
from raysuite.kernel.objectives.sft import Sft, min_snr_weight
from raysuite.kernel.schedule import Schedule, denoised, variance_preserving_schedule
from raysuite.types import Preferences, Queries

UNITS, SHAPE, DIMENSIONS = 3, (2, 2), 4
BETA = 20.0

PAIRS: dict[str, PairObjective] = {
    "diffusion_dpo": DiffusionDpo(beta=BETA),
    "ipo": DiffusionDpo(beta=BETA, link="ipo"),
    "smoothed": DiffusionDpo(beta=BETA, label_smoothing=0.1),
    "dspo": Dspo(beta=0.7),
    "dspo, frozen": Dspo(beta=0.7, frozen_weight=True),
    "dmpo": Dmpo(beta=BETA, doubt=0.1),
    "dmpo, safeguarded": Dmpo(beta=BETA, winner_margin=0.9),
    "cal_dpo": CalDpo(beta=BETA, share=0.2, weight=0.3),
    "safeguarded": DiffusionDpo(beta=BETA, winner_margin=0.5),
}
each_pair = pytest.mark.parametrize("objective", PAIRS.values(), ids=PAIRS)


def sampler(prediction: Any = "epsilon") -> Schedule:
    if prediction == "velocity":
        return open_toy(Sampler(steps=5), dtype=torch.float64, flow=True).schedule
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    return variance_preserving_schedule(
        torch.cumprod(1 - betas, 0), steps=5, spacing="leading", offset=1, prediction=prediction
    )


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed: int = 0, members: int = 2) -> tuple[Queries, Tensor, Tensor]:
    """Queries with a random target, a policy's predictions, and other ones of a reference."""
    target = randn(UNITS, 1, *SHAPE, seed=seed).expand(-1, members, -1, -1)
    queries = Queries(
        x_UM=randn(UNITS, members, *SHAPE, seed=seed + 1),
        t_UM=torch.full((UNITS, members), 500),
        prompts_U=("a",) * UNITS,
        together=UNITS,
        guided=False,
        extra={"target": target},
    )
    prediction = target + 0.5 * randn(UNITS, members, *SHAPE, seed=seed + 2)
    return queries, prediction, target + 0.5 * randn(UNITS, members, *SHAPE, seed=seed + 3)


def terms(objective: PairObjective | Sft, queries: Queries, prediction: Tensor, reference: Tensor) -> Tensor:
    return objective.loss(queries, sampler(), prediction, reference).terms_U


def slope(objective: PairObjective | Sft, queries: Queries, prediction: Tensor, reference: Tensor) -> Tensor:
    """Gradient of the summed terms in the predictions."""
    leaf = prediction.clone().requires_grad_()
    (found,) = torch.autograd.grad(terms(objective, queries, leaf, reference).sum(), leaf)
    return found


def error(prediction: Tensor, queries: Queries) -> Tensor:
    return (prediction - queries.extra["target"]).square().flatten(2).mean(2)


def logit(queries: Queries, prediction: Tensor, reference: Tensor, beta: float = BETA) -> Tensor:
    """The issue's u, written out: -beta / 2 ((m_w - m_l) - (m_w_ref - m_l_ref))."""
    m, m_ref = error(prediction, queries), error(reference, queries)
    return -0.5 * beta * ((m[:, 0] - m[:, 1]) - (m_ref[:, 0] - m_ref[:, 1]))


# the forward process


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "velocity"])
@pytest.mark.parametrize("shared", [True, False])
def test_noised_pictures_and_targets_belong_together(prediction: Any, shared: bool) -> None:
    """Where the network says the target, the clean latent comes back."""
    schedule, clean = sampler(prediction), randn(4, 2, *SHAPE, seed=0)
    queries = Sft(draws=3).renoise(
        clean,
        tuple("abcd"),
        schedule,
        torch.Generator().manual_seed(1),
        shared_noise=shared,
        extra={"row": torch.arange(4)},
    )
    assert queries.x_UM.shape == (12, 2, *SHAPE) and not queries.guided and queries.together == 12
    assert queries.prompts_U == tuple("aaabbbcccddd")
    assert queries.extra["row"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(queries.t_UM[:, 0], queries.t_UM[:, 1]), "a pair shares its timestep"
    level_U = schedule.training.nearest(queries.t_UM[:, 0])
    alpha, sigma = schedule.training.alpha_T[level_U], schedule.training.sigma_T[level_U]
    back, noise = [], []
    for member in range(2):
        x0, eps = denoised(
            schedule.prediction, queries.extra["target"][:, member], queries.x_UM[:, member], alpha, sigma
        )
        back.append(x0)
        noise.append(eps)
    torch.testing.assert_close(torch.stack(back, 1), clean.repeat_interleave(3, 0), rtol=1e-9, atol=1e-9)
    assert torch.allclose(noise[0], noise[1]) is shared


def test_timesteps_are_uniform_over_their_range() -> None:
    """20,000 draws of a range: its ends are met, and each tenth has a tenth within 5 standard errors."""
    for low, high in ((0.0, 1.0), (0.5, 0.9)):
        queries = Sft(draws=200, noise_range=(low, high)).renoise(
            randn(100, 1, 1, seed=0), ("",) * 100, sampler(), torch.Generator().manual_seed(0)
        )
        share = (queries.t_UM.flatten() / 1000 - low) / (high - low)
        counts = torch.histc(share.float(), 10, 0, 1)
        assert (queries.t_UM.min().item(), queries.t_UM.max().item()) == (1000 * low, 1000 * high - 1)
        assert (counts - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)


@pytest.mark.parametrize("noise_range", [(0.5, 0.5004), (0.9999, 1.0)])
def test_a_range_without_a_timestep_is_refused(noise_range: tuple[float, float]) -> None:
    """Shares that ascend, and yet round to the same of 1000 timesteps."""
    batch = Preferences(latents_RMK=randn(1, 2, 1, *SHAPE, seed=0), prompts_R=("a",))
    for objective in (DiffusionDpo(beta=1.0, noise_range=noise_range), Sft(noise_range=noise_range)):
        with pytest.raises(UserError, match=r"expected objective\.noise_range with a timestep of 1000 in it"):
            objective.queries(batch, sampler(), torch.Generator())


def test_prompts_are_dropped_at_their_rate() -> None:
    """Drawn from the generator too, whatever drew from PyTorch's own before."""
    batch = Preferences(latents_RMK=randn(2000, 2, 1, 1, seed=0), prompts_R=("a",) * 2000)
    for objective in (DiffusionDpo(beta=1.0, prompt_dropout=0.2), Sft(prompt_dropout=0.2)):
        first, again = (objective.queries(batch, sampler(), torch.Generator().manual_seed(0)) for _ in range(2))
        assert set(first.prompts_U) == {"a", ""}
        assert abs(first.prompts_U.count("") - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8)
        assert first.prompts_U == again.prompts_U
        assert torch.equal(
            first.x_UM,
            dataclasses.replace(objective, prompt_dropout=0.0)
            .queries(batch, sampler(), torch.Generator().manual_seed(0))
            .x_UM,
        ), "the pictures do not depend on it"


@each_pair
def test_queries_are_a_function_of_the_generator(objective: PairObjective) -> None:
    batch = Preferences(latents_RMK=randn(3, 2, 4, *SHAPE, seed=0), prompts_R=("a", "b", "c"))
    first, again, other = (objective.queries(batch, sampler(), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first.x_UM, again.x_UM) and torch.equal(first.t_UM, again.t_UM)
    assert not torch.equal(first.x_UM, other.x_UM)
    only_last = Preferences(latents_RMK=batch.latents_RMK[:, :, -1:], prompts_R=batch.prompts_R)
    assert torch.equal(objective.queries(only_last, sampler(), torch.Generator().manual_seed(0)).x_UM, first.x_UM)


@each_pair
def test_rankings_of_three_are_refused(objective: PairObjective) -> None:
    batch = Preferences(latents_RMK=randn(3, 3, 1, *SHAPE, seed=0), prompts_R=("a", "b", "c"))
    with pytest.raises(UserError, match="expected pairs, got rankings of 3"):
        objective.queries(batch, sampler(), torch.Generator())


@each_pair
def test_settings_reach_the_queries(objective: PairObjective) -> None:
    """Noise of its own for each member, draws, and the range of timesteps."""
    batch = Preferences(latents_RMK=randn(3, 2, 1, *SHAPE, seed=0), prompts_R=("a", "b", "c"))
    batch = dataclasses.replace(batch, latents_RMK=batch.latents_RMK[:, :1].expand(-1, 2, -1, -1, -1))
    for shared in (True, False):
        changed = dataclasses.replace(objective, shared_noise=shared, draws=20, noise_range=(0.25, 0.26))
        queries = changed.queries(batch, sampler(), torch.Generator().manual_seed(0))
        assert queries.prompts_U == ("a",) * 20 + ("b",) * 20 + ("c",) * 20
        assert set(queries.t_UM.flatten().tolist()) <= set(range(250, 260)) and not queries.guided
        assert torch.equal(queries.x_UM[:, 0], queries.x_UM[:, 1]) is shared


# Diffusion-DPO


def test_logit_by_arithmetic() -> None:
    """Errors 4 and 1, reference 9 and 1: u = -beta / 2 ((4 - 1) - (9 - 1)) = 2.5 beta."""
    zero = torch.zeros(1, 2, 1, dtype=torch.float64)
    queries = Queries(
        x_UM=zero, t_UM=torch.zeros(1, 2, dtype=torch.int64), prompts_U=("a",), together=1, extra={"target": zero}
    )
    prediction, reference = (torch.tensor([[[p], [r]]], dtype=torch.float64) for p, r in ((2.0, 1.0), (3.0, -1.0)))
    found = DiffusionDpo(beta=0.4).loss(queries, sampler(), prediction, reference)
    assert found.terms_U.item() == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert found.metrics["reward_margin"].item() == pytest.approx(1.0)
    assert found.metrics["reward_accuracy"].item() == 1
    assert (found.metrics["preferred_error"].item(), found.metrics["rejected_error"].item()) == (-5, 0)
    turned = DiffusionDpo(beta=0.4).loss(queries, sampler(), prediction.flip(1), reference.flip(1))
    assert turned.terms_U.item() == pytest.approx(math.log(1 + math.exp(1.0)))
    assert (turned.metrics["reward_margin"].item(), turned.metrics["reward_accuracy"].item()) == (-1, 0)


def test_dpo_is_minus_log_sigma_of_the_logit() -> None:
    queries, prediction, reference = points()
    found = terms(DiffusionDpo(beta=BETA), queries, prediction, reference)
    torch.testing.assert_close(found, -logsigmoid(logit(queries, prediction, reference)))


def test_p1_p2_at_the_reference() -> None:
    """Log 2, and beta / 4 times the gradient of m_w - m_l."""
    queries, prediction, _ = points()
    assert terms(DiffusionDpo(beta=BETA), queries, prediction, prediction).tolist() == pytest.approx([math.log(2)] * 3)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    expected = BETA / 4 * sign * 2 / DIMENSIONS * (prediction - queries.extra["target"])
    torch.testing.assert_close(slope(DiffusionDpo(beta=BETA), queries, prediction, prediction), expected)


def test_p3_swapping_the_members() -> None:
    """sigma(-u) = 1 - sigma(u)."""
    queries, prediction, reference = points()
    forth, back = (
        terms(DiffusionDpo(beta=BETA), queries, p, r)
        for p, r in ((prediction, reference), (prediction.flip(1), reference.flip(1)))
    )
    torch.testing.assert_close((-forth).exp() + (-back).exp(), torch.ones(UNITS, dtype=torch.float64))


def test_p4_p5_p6_what_the_errors_do() -> None:
    """The same constant on both members changes nothing; beta on means is beta / D on sums; the loss grows with m_w."""
    objective = DiffusionDpo(beta=BETA)
    h, m = randn(UNITS, 2, seed=0), randn(UNITS, 2, seed=1)
    nothing = torch.zeros(UNITS, *SHAPE, dtype=torch.float64)

    def of(rewards: Tensor) -> Tensor:
        return objective.terms(
            Judged(
                reward_UM=rewards,
                reference_error_UM=m,
                prediction_U=nothing,
                reference_prediction_U=nothing,
                target_U=nothing,
            )
        )

    torch.testing.assert_close(of(h), of(h + 3))
    queries, prediction, reference = points()
    summed = ((prediction - queries.extra["target"]) ** 2).flatten(2).sum(2)
    summed_ref = ((reference - queries.extra["target"]) ** 2).flatten(2).sum(2)
    u = -0.5 * BETA / DIMENSIONS * ((summed - summed_ref)[:, 0] - (summed - summed_ref)[:, 1])
    torch.testing.assert_close(terms(objective, queries, prediction, reference), -logsigmoid(u))
    assert (of(h + torch.tensor([0.1, 0.0])) < of(h)).all() and (of(h + torch.tensor([0.0, 0.1])) > of(h)).all()


@pytest.mark.parametrize("u", [-2.0, 0.0, 0.7, 3.0])
def test_p7_links(u: float) -> None:
    """Values and slopes: -log sigma, max(0, 1 - u), (u - 1/2)^2; smoothing mixes in the other label."""
    sigma = 1 / (1 + math.exp(-u))
    wanted: dict[Any, tuple[float, float]] = {
        "logistic": (-math.log(sigma), -(1 - sigma)),
        "hinge": (max(0.0, 1 - u), -1.0 if u < 1 else 0.0),
        "ipo": ((u - 0.5) ** 2, 2 * (u - 0.5)),
    }
    for link, (value, derivative) in wanted.items():
        leaf = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        found = linked(leaf, link=link, smoothing=0.0)
        found.backward()
        assert found.item() == pytest.approx(value) and leaf.grad is not None
        assert leaf.grad.item() == pytest.approx(derivative)
        one, other = (linked(torch.tensor(s * u, dtype=torch.float64), link=link, smoothing=0.0) for s in (1, -1))
        smoothed = linked(torch.tensor(u, dtype=torch.float64), link=link, smoothing=0.2)
        torch.testing.assert_close(smoothed, 0.8 * one + 0.2 * other)


# DSPO


def test_dspo_by_arithmetic() -> None:
    queries, prediction, reference = points()
    weight = 1 - torch.sigmoid(logit(queries, prediction, reference, beta=0.7))
    e, e_ref, target = prediction[:, 0], reference[:, 0], queries.extra["target"][:, 0]
    residual = (e - target) - 0.7 * weight[:, None, None] * (e - e_ref)
    torch.testing.assert_close(terms(Dspo(beta=0.7), queries, prediction, reference), residual.square().mean((1, 2)))


@pytest.mark.parametrize("beta", [0.001, 0.7, 2.0, 3.0])
def test_q1_at_the_reference_it_is_a_share_of_fine_tuning(beta: float) -> None:
    """(1 - beta / 2) times the gradient of denoising the preferred picture: none at beta = 2, the other way beyond."""
    queries, prediction, _ = points()
    winner = dataclasses.replace(queries, extra={"target": queries.extra["target"][:, :1]})
    tuned = slope(Sft(), winner, prediction[:, :1], prediction[:, :1])
    found = slope(Dspo(beta=beta), queries, prediction, prediction)
    torch.testing.assert_close(found[:, :1], (1 - beta / 2) * tuned, atol=1e-12, rtol=1e-9)
    assert found[:, 1].abs().max() == 0


def test_q2_the_released_sdxl_branches() -> None:
    """Near the reference (1 - sigma)^2, with half of Diffusion-DPO's gradient there; far from it ((1 - sigma)(e - e_ref))^2."""
    queries, prediction, reference = points()
    sdxl = Dspo(beta=BETA, variant="released_sdxl")
    near = slope(sdxl, queries, prediction, prediction)
    torch.testing.assert_close(near, slope(DiffusionDpo(beta=BETA), queries, prediction, prediction) / 2)
    weight = 1 - torch.sigmoid(logit(queries, prediction, reference))
    distance = (prediction - reference)[:, 0].square().mean((1, 2))
    expected = torch.where(distance >= 0.1, weight**2 * distance, weight**2)
    assert (distance >= 0.1).any()
    torch.testing.assert_close(terms(sdxl, queries, prediction, reference), expected)
    for distance, factor in ((0.09, 1.0), (0.11, 0.11)):
        beside = prediction + math.sqrt(distance)  # a mean square of `distance`
        weight = 1 - torch.sigmoid(logit(queries, prediction, beside))
        torch.testing.assert_close(terms(sdxl, queries, prediction, beside), weight**2 * factor)


def test_q3_q4_limits() -> None:
    """u = 0 mixes the outputs evenly; beta = 0 is fine-tuning on the preferred picture, whatever the reference."""
    queries, prediction, reference = points()
    same = torch.stack([prediction[:, 0]] * 2, 1)
    beside = torch.stack([reference[:, 0]] * 2, 1)
    residual = 0.65 * same[:, 0] + 0.35 * beside[:, 0] - queries.extra["target"][:, 0]
    torch.testing.assert_close(terms(Dspo(beta=0.7), queries, same, beside), residual.square().mean((1, 2)))
    winner = dataclasses.replace(queries, extra={"target": queries.extra["target"][:, :1]})
    tuned = terms(Sft(), winner, prediction[:, :1], reference)
    torch.testing.assert_close(terms(Dspo(beta=0.0), queries, prediction, reference), tuned)


def test_q5_the_fixed_point_is_extrapolated_from_the_reference() -> None:
    """With k = beta (1 - sigma) frozen at beta / 2: e = target + k / (1 - k) (target - e_ref) has no residual."""
    queries, _, reference = points()
    reference, k = torch.stack([reference[:, 0]] * 2, 1), 0.35
    target = queries.extra["target"]
    best = target + k / (1 - k) * (target - reference)
    assert terms(Dspo(beta=0.7), queries, best, reference).tolist() == pytest.approx([0.0] * UNITS, abs=1e-20)


def test_q6_a_frozen_weight_stops_the_rejected_members_gradient() -> None:
    queries, prediction, reference = points()
    assert slope(Dspo(beta=0.7, frozen_weight=True), queries, prediction, reference)[:, 1].abs().max() == 0
    assert slope(Dspo(beta=0.7), queries, prediction, reference)[:, 1].abs().max() > 0


# Cal-DPO


def cal_terms(h: Tensor, goal: float, **changes: Any) -> Tensor:
    """Terms of implicit rewards (U, 2) whose goal is `goal`: the reference's error is what puts it there."""
    objective = CalDpo(**{"beta": BETA, "share": 0.2, "weight": 0.3, **changes})
    nothing = torch.zeros(len(h), *SHAPE, dtype=torch.float64)
    m_ref = torch.full((len(h), 2), goal / (0.2 * 0.5 * BETA), dtype=torch.float64)
    return objective.terms(
        Judged(
            reward_UM=h,
            reference_error_UM=m_ref,
            prediction_U=nothing,
            reference_prediction_U=nothing,
            target_U=nothing,
        )
    )


def test_c1_gradients_of_calibrated_rewards() -> None:
    """dL/dh_w = -(1 - sigma(h_w - h_l)) + 2 weight (h_w - M), dL/dh_l = (1 - sigma) + 2 weight (h_l + M)."""
    h = randn(5, 2, seed=0).requires_grad_()
    (slopes,) = torch.autograd.grad(cal_terms(h, 0.7).sum(), h)
    rest = 1 - torch.sigmoid(h[:, 0] - h[:, 1])
    torch.testing.assert_close(slopes[:, 0], -rest + 0.6 * (h[:, 0] - 0.7))
    torch.testing.assert_close(slopes[:, 1], rest + 0.6 * (h[:, 1] + 0.7))


def test_c2_c3_c4_limits() -> None:
    """At the goals only the order is left; weight 0 is Diffusion-DPO; the two squares alone are lowest at h = M."""
    at_goal = torch.tensor([[0.4, -0.4]], dtype=torch.float64)
    torch.testing.assert_close(cal_terms(at_goal, 0.4, weight=100.0), -logsigmoid(at_goal[:, 0] - at_goal[:, 1]))
    queries, prediction, reference = points()
    for options in ({}, {"link": "ipo"}, {"link": "hinge", "label_smoothing": 0.2}):
        plain = terms(CalDpo(beta=BETA, share=0.2, weight=0.0, **options), queries, prediction, reference)  # type: ignore[arg-type]
        dpo = terms(DiffusionDpo(beta=BETA, **options), queries, prediction, reference)  # type: ignore[arg-type]
        torch.testing.assert_close(plain, dpo)
    h = torch.linspace(-1, 1, 201, dtype=torch.float64)
    squares = cal_terms(torch.stack([h, -h], 1), 0.4) + logsigmoid(2 * h)
    assert h[squares.argmin()].item() == pytest.approx(0.4)


def test_the_goal_can_be_reached_at_every_timestep() -> None:
    """An error of 1 - share of the reference's puts the preferred reward on its goal, however small the error was."""
    for scale in (1e-3, 1.0, 30.0):
        queries, _, reference = points()
        target = queries.extra["target"]
        reference = target + scale * (reference - target)
        prediction = target + math.sqrt(0.8) * (reference - target)
        objective = CalDpo(beta=BETA, share=0.2, weight=1.0)
        h = 0.5 * BETA * (error(reference, queries) - error(prediction, queries))
        goal = 0.2 * 0.5 * BETA * error(reference, queries)[:, 0]
        torch.testing.assert_close(h[:, 0], goal)
        order = -logsigmoid(h[:, 0] - h[:, 1])
        expected = order + (h[:, 1] + goal) ** 2
        torch.testing.assert_close(terms(objective, queries, prediction, reference), expected)


# fine-tuning, and the winner-preserving scale


def test_sft_is_the_denoising_error_of_the_preferred_member() -> None:
    batch = Preferences(latents_RMK=randn(3, 2, 1, *SHAPE, seed=0), prompts_R=("a", "b", "c"))
    queries = Sft(draws=2).queries(batch, sampler(), torch.Generator().manual_seed(0))
    assert queries.x_UM.shape == (6, 1, *SHAPE)
    prediction = randn(6, 1, *SHAPE, seed=1)
    expected = (prediction - queries.extra["target"]).square().mean((1, 2, 3))
    torch.testing.assert_close(terms(Sft(), queries, prediction, prediction), expected)
    assert not Sft().needs_reference


def test_min_snr_weights_the_clean_latents_error_alike_whatever_is_predicted() -> None:
    """An error d of the clean latent is worth min(SNR, gamma) d^2: as alpha d / sigma of noise, d / sigma of v or velocity."""
    alpha, sigma = torch.tensor([0.99, 0.6, 0.1]), torch.tensor([(1 - 0.99**2) ** 0.5, 0.8, (1 - 0.01) ** 0.5])
    snr, d = (alpha / sigma) ** 2, 0.3
    assert snr[0] > 5 > snr[1]
    wanted = snr.clamp(max=5) * d**2
    torch.testing.assert_close(min_snr_weight("epsilon", alpha, sigma, gamma=5) * (alpha * d / sigma) ** 2, wanted)
    torch.testing.assert_close(min_snr_weight("v_prediction", alpha, sigma, gamma=5) * (d / sigma) ** 2, wanted)
    torch.testing.assert_close(min_snr_weight("v_prediction", alpha, sigma, gamma=5), snr.clamp(max=5) / (snr + 1))
    flow_sigma = torch.tensor([0.1, 0.5, 0.9])
    flow_snr = ((1 - flow_sigma) / flow_sigma) ** 2
    found = min_snr_weight("velocity", 1 - flow_sigma, flow_sigma, gamma=5) * (d / flow_sigma) ** 2
    torch.testing.assert_close(found, flow_snr.clamp(max=5) * d**2)
    nothing = torch.zeros(1), torch.ones(1)
    assert (
        float(min_snr_weight("epsilon", *nothing, gamma=5)) == 1
        and float(min_snr_weight("v_prediction", *nothing, gamma=5)) == 0
    )


def test_sft_weights_its_terms() -> None:
    batch = Preferences(latents_RMK=randn(3, 1, 1, *SHAPE, seed=0), prompts_R=("a", "b", "c"))
    queries = Sft(draws=2).queries(batch, sampler(), torch.Generator().manual_seed(0))
    prediction = randn(6, 1, *SHAPE, seed=1)
    weight = min_snr_weight(sampler().prediction, queries.extra["alpha"], queries.extra["sigma"], gamma=2.0)
    expected = weight * (prediction - queries.extra["target"]).square().mean((1, 2, 3))
    torch.testing.assert_close(terms(Sft(min_snr=2.0), queries, prediction, prediction), expected)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.9, 1.0])
def test_x3_the_winner_keeps_improving(margin: float) -> None:
    """At first order, in the space of outputs: (-g_w + lambda g_l) . g_w <= -margin |g_w|^2; values do not change."""
    prediction = randn(200, 2, 8, seed=0)
    g = randn(200, 2, 8, seed=1)
    g[:100, 1] = 2 * g[:100, 0] + 0.1 * g[:100, 1]  # losers that would drag their winners along
    leaf = prediction.clone().requires_grad_()
    scaled = protect_winner(leaf, g, margin)
    assert torch.equal(scaled.detach(), prediction)
    (slopes,) = torch.autograd.grad((scaled * torch.ones_like(scaled)).sum(), leaf)
    assert torch.equal(slopes[:, 0], torch.ones_like(slopes[:, 0]))
    scale = slopes[:, 1, 0]
    torch.testing.assert_close(slopes[:, 1], scale[:, None].expand(-1, 8))
    product = (g[:, 0] * g[:, 1]).sum(1)
    assert (scale >= 0).all() and (scale <= 1).all()
    assert torch.equal(scale[product <= 0], torch.ones_like(scale[product <= 0]))
    descent = -g[:, 0].square().sum(1) + scale * product
    assert (descent[product > 0] <= -margin * g[:, 0].square().sum(1)[product > 0] + 1e-12).all()


@each_pair
def test_at_the_reference_no_member_is_ahead(objective: PairObjective) -> None:
    """To the bit and in float32: a margin of 0 and half of the pairs right, with the safeguard too."""
    target = randn(500, 2, *SHAPE, seed=0).float()
    queries = Queries(
        x_UM=target,
        t_UM=torch.zeros(500, 2, dtype=torch.int64),
        prompts_U=("a",) * 500,
        together=500,
        extra={"target": target},
    )
    prediction = target + randn(500, 2, *SHAPE, seed=1).float()
    frozen = isinstance(objective, Dspo) and objective.frozen_weight
    for margin in (None,) if frozen else (None, 0.0, 0.9):
        guarded = dataclasses.replace(objective, winner_margin=margin)
        metrics = guarded.loss(queries, sampler(), prediction, prediction).metrics
        assert metrics["reward_margin"].tolist() == [0.0] * 500 and metrics["reward_accuracy"].tolist() == [0.5] * 500


def test_the_safeguard_scales_the_losers_gradient_alone() -> None:
    queries, prediction, reference = points()
    plain, safe = (DiffusionDpo(beta=BETA, winner_margin=m) for m in (None, 0.9))
    torch.testing.assert_close(
        terms(plain, queries, prediction, reference), terms(safe, queries, prediction, reference)
    )
    free, held = slope(plain, queries, prediction, reference), slope(safe, queries, prediction, reference)
    torch.testing.assert_close(free[:, 0], held[:, 0])
    residual = prediction - queries.extra["target"]
    product = (residual[:, 0] * residual[:, 1]).sum((1, 2))
    lam = torch.where(product > 0, (0.1 * residual[:, 0].square().sum((1, 2)) / product).clamp(0, 1), 1.0)
    torch.testing.assert_close(held[:, 1], lam[:, None, None] * free[:, 1])


# all of them


@each_pair
def test_gradients_by_finite_differences(objective: PairObjective) -> None:
    """Without what is there to make a gradient differ from that of the value."""
    held = {"winner_margin": None} | ({"frozen_weight": False} if isinstance(objective, Dspo) else {})
    objective = dataclasses.replace(objective, **held)
    queries, prediction, reference = points()
    assert torch.autograd.gradcheck(lambda p: terms(objective, queries, p, reference), prediction.requires_grad_())


@each_pair
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_extreme_inputs_stay_finite(objective: PairObjective, scale: float) -> None:
    queries, prediction, reference = points()
    queries = dataclasses.replace(queries, extra={"target": scale * queries.extra["target"].float()})
    far, near = scale * prediction.float(), scale * reference.float()
    found = terms(objective, queries, far, near)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert slope(objective, queries, far, near).isfinite().all()


@each_pair
def test_units_do_not_see_each_other(objective: PairObjective) -> None:
    queries, prediction, reference = points()
    whole = terms(objective, queries, prediction, reference)
    for unit in range(UNITS):
        alone = terms(objective, queries.rows(unit, unit + 1), prediction[unit : unit + 1], reference[unit : unit + 1])
        torch.testing.assert_close(alone[0], whole[unit])


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if issubclass(o, PairObjective)])
@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"beta": -1.0}, "objective.beta of at least 0"),
        ({"draws": 0}, "objective.draws of at least 1"),
        ({"prompt_dropout": 1.0}, "objective.prompt_dropout"),
        ({"winner_margin": 1.5}, "objective.winner_margin between 0 and 1"),
        ({"noise_range": (0.5, 0.5)}, "objective.noise_range"),
    ],
)
def test_settings_out_of_range(name: str, changes: dict[str, Any], mentions: str) -> None:
    fields: dict[str, Any] = {"beta": 1.0, **({"share": 0.1} if name == "cal_dpo" else {}), **changes}
    cls: type[Objective[Any]] = OBJECTIVES[name]
    with pytest.raises(UserError, match=mentions):
        cls(**fields)


def test_dmpo_by_arithmetic() -> None:
    """With a doubt of 1/100: at u = 0 the term is log(50)/2 + log(50/99)/2, its slope -log(99)/4; at u = log 99 both are 0; beyond,
    the pull is back. At u = -30 nothing is pulled: the pair is taken to be labelled wrong."""
    u = torch.tensor([0.0, math.log(99), 8.0, -30.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(4, 1, dtype=torch.float64)
    judged = Judged(
        reward_UM=torch.stack([u, torch.zeros_like(u)], 1),
        reference_error_UM=zero.expand(-1, 2),
        prediction_U=zero,
        reference_prediction_U=zero,
        target_U=zero,
    )
    found = Dmpo(beta=1.0).terms(judged)
    found.sum().backward()
    assert u.grad is not None
    assert found[0].item() == pytest.approx((math.log(50) + math.log(50 / 99)) / 2, rel=1e-12)
    assert found[1].item() == pytest.approx(0.0, abs=1e-12)
    assert u.grad[0].item() == pytest.approx(-math.log(99) / 4, rel=1e-12)
    assert u.grad[1].item() == pytest.approx(0.0, abs=1e-12)
    assert u.grad[2] > 0 and abs(u.grad[3]) < 1e-11


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda: DiffusionDpo(beta=1.0, label_smoothing=0.5), "label_smoothing"),
        (lambda: Dmpo(beta=1.0, doubt=0.5), "doubt above 0 and below 0.5"),
        (lambda: CalDpo(beta=1.0, share=1.0), "share above 0 and below 1"),
        (lambda: CalDpo(beta=1.0, share=0.1, weight=-1.0), "weight of at least 0"),
        (lambda: Dspo(beta=1.0, variant="released_sdxl", frozen_weight=True), "frozen_weight false with variant"),
        (lambda: Dspo(beta=1.0, winner_margin=0.9, frozen_weight=True), "winner_margin null with frozen_weight"),
        (lambda: Sft(draws=0), "draws"),
        (lambda: Sft(prompt_dropout=1.0), "prompt_dropout"),
        (lambda: Sft(noise_range=(0.2, 0.1)), "noise_range"),
    ],
)
def test_own_settings_out_of_range(make: Any, mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        make()
