"""Trajectory-level DPO with discounting: weights, estimators, limits, and its bridge to Diffusion-DPO."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raysuite.errors import UserError
from raysuite.kernel import transition
from raysuite.kernel.credit import discount_weights
from raysuite.kernel.objectives.trajectory_dpo import TrajectoryDpo, plackett_luce
from raysuite.kernel.schedule import Schedule, add_noise, variance_preserving_schedule
from raysuite.types import Loss, Preferences, Queries

STEPS, RANKINGS, SHAPE, DIMENSIONS = 5, 3, (2, 2), 4


def make(**changes: Any) -> TrajectoryDpo:
    return TrajectoryDpo(**{"strength": 2.0, "discount": 0.8, **changes})


def sampler(**changes: Any) -> Schedule:
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    options: dict[str, Any] = {"steps": STEPS, "spacing": "leading", "offset": 1, "prediction": "epsilon"}
    return variance_preserving_schedule(torch.cumprod(1 - betas, 0), **{**options, **changes})


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(members: int = 2, seed: int = 0, steps: int = STEPS) -> Preferences:
    latents = randn(RANKINGS, members, steps + 1, *SHAPE, seed=seed)
    return Preferences(latents_RMK=latents, prompts_R=("a", "a", "b"))


def asked(objective: TrajectoryDpo, members: int = 2, seed: int = 0, **options: Any) -> tuple[Queries, Tensor, Tensor]:
    """Queries of a random batch, a policy's predictions and a reference's."""
    queries = objective.queries(batch(members, **options), sampler(), torch.Generator().manual_seed(seed))
    shape = queries.x_UM.shape
    return queries, randn(*shape, seed=7), randn(*shape, seed=8)


def loss(objective: TrajectoryDpo, queries: Queries, prediction: Tensor, reference: Tensor) -> Loss:
    return objective.loss(queries, sampler(), prediction, reference)


def log_ratios(
    queries: Queries, prediction: Tensor, reference: Tensor, members: int = 2, schedule: Schedule | None = None
) -> Tensor:
    """Every point's log-ratio in nats, (U, M, S), one density minus the other."""
    schedule, units = schedule or sampler(), len(queries)
    k = queries.extra["k"].repeat(1, members).flatten()
    after = queries.extra["next"].reshape(-1, *SHAPE)
    means = [transition.mean(schedule, k, queries.x_UM.flatten(0, 1), p.flatten(0, 1)) for p in (prediction, reference)]
    own, other = (transition.log_density(schedule, k, mean, after) for mean in means)
    return (own - other).reshape(units, members, -1)


# weights and points


def test_r3_weights_by_arithmetic() -> None:
    """T = 50, gamma = 0.9: the weights' sum is 9.9485, and the first 5, 10, 25 steps hold .4116, .6547, .9330 of it."""
    weights = discount_weights(50, gamma=0.9)
    assert 1 / (weights[0] / weights.sum()) == pytest.approx(9.9485, abs=5e-5)
    share = weights.cumsum() / weights.sum()
    assert [share[n - 1] for n in (5, 10, 25)] == pytest.approx([0.4116, 0.6547, 0.9330], abs=5e-5)


def test_every_point_is_where_it_belongs() -> None:
    """Latents that say their ranking, member and step: 100 r + 10 m + k."""
    r, m, k = (torch.arange(n, dtype=torch.float64) for n in (RANKINGS, 3, STEPS + 1))
    numbers = 100 * r[:, None, None] + 10 * m[None, :, None] + k
    tagged = Preferences(latents_RMK=numbers[..., None].expand(-1, -1, -1, 2), prompts_R=("a", "b", "c"))
    schedule = sampler()
    for steps in (None, 4):
        queries = make(steps=steps).queries(tagged, schedule, torch.Generator().manual_seed(0))
        count = STEPS if steps is None else steps
        chosen = queries.extra["k"]
        assert queries.x_UM.shape == (RANKINGS, 3 * count, 2) and chosen.shape == (RANKINGS, count)
        assert queries.prompts_U == ("a", "b", "c") and queries.guided
        for unit in range(RANKINGS):
            for member in range(3):
                for place in range(count):
                    step, point = int(chosen[unit, place]), member * count + place
                    assert queries.x_UM[unit, point, 0] == 100 * unit + 10 * member + step
                    assert queries.extra["next"][unit, member, place, 0] == 100 * unit + 10 * member + step + 1
                    assert queries.t_UM[unit, point] == schedule.timesteps_K[step]
    assert len({tuple(row) for row in chosen.tolist()}) > 1, "each ranking draws its own steps"


def test_deterministic_steps_are_left_out() -> None:
    """Without an offset the last step goes nowhere and has no density; the weights of the others are scaled to sum to 1."""
    schedule = sampler(offset=0)
    queries = make().queries(batch(), schedule, torch.Generator())
    assert queries.extra["k"].tolist() == [[0, 1, 2, 3]] * RANKINGS
    assert queries.extra["weight"].sum(1).tolist() == pytest.approx([1.0] * RANKINGS)


@pytest.mark.parametrize("steps", [None, 500])
def test_steps_keep_their_discount_wherever_noise_is_missing(steps: int | None) -> None:
    """A schedule whose steps 0 and 2 add no noise: 1, 3 and 4 are weighted 0.8, 0.8^3 and 0.8^4."""
    schedule = sampler()
    schedule = dataclasses.replace(schedule, noise_K=schedule.noise_K * torch.tensor([0, 1, 0, 1, 1]))
    queries = make(steps=steps).queries(batch(), schedule, torch.Generator().manual_seed(0))
    expected = torch.tensor([0.8, 0.512, 0.4096], dtype=torch.float64) / (0.8 + 0.512 + 0.4096)
    assert set(queries.extra["k"].flatten().tolist()) == {1, 3, 4}
    if steps is None:
        torch.testing.assert_close(queries.extra["weight"], expected.expand(RANKINGS, -1))
    else:
        drawn = torch.bincount(queries.extra["k"].flatten(), minlength=STEPS)[[1, 3, 4]]
        assert ((drawn - 1500 * expected).abs() < 5 * (1500 * expected).sqrt()).all()


# values


@pytest.mark.parametrize("per_dimension", [True, False])
def test_value_by_arithmetic(per_dimension: bool) -> None:
    objective = make(per_dimension=per_dimension)
    queries, prediction, reference = asked(objective)
    weights = torch.tensor([0.8**k for k in range(STEPS)], dtype=torch.float64)
    ratios = log_ratios(queries, prediction, reference) / (DIMENSIONS if per_dimension else 1)
    score = 2.0 * (ratios * weights / weights.sum()).sum(2)
    found = loss(objective, queries, prediction, reference)
    torch.testing.assert_close(found.terms_U, -logsigmoid(score[:, 0] - score[:, 1]))
    torch.testing.assert_close(found.metrics["reward_margin"], score[:, 0] - score[:, 1])
    torch.testing.assert_close(found.metrics["preferred_log_ratio"], ratios[:, 0].mean(1))


def test_r1_r2_the_discounts_limits() -> None:
    """gamma = 1 is the plain mean over steps; gamma near 0 is the first step alone."""
    for discount, weights in ((1.0, [1 / STEPS] * STEPS), (1e-12, [1.0] + [0.0] * (STEPS - 1))):
        queries, _, _ = asked(make(discount=discount))
        assert queries.extra["weight"][0].tolist() == pytest.approx(weights, abs=1e-11)


def test_r4_both_estimators_have_the_same_mean() -> None:
    """Steps drawn 400,000 times in all: the mean score is the exact sum, within 5 standard errors."""
    exact, _, _ = asked(make())
    value_K = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0], dtype=torch.float64)
    expected = (exact.extra["weight"][0] * value_K).sum()
    many = Preferences(latents_RMK=torch.zeros(100_000, 2, STEPS + 1, 1), prompts_R=("a",) * 100_000)
    drawn = make(steps=4).queries(many, sampler(), torch.Generator().manual_seed(0))
    scores = (drawn.extra["weight"] * value_K[drawn.extra["k"]]).sum(1)
    assert abs(scores.mean() - expected) < 5 * scores.std() / math.sqrt(len(scores))
    assert scores.std() > 0.5, "the estimator does draw"
    p = exact.extra["weight"][0]
    counts = torch.bincount(drawn.extra["k"].flatten(), minlength=STEPS)
    assert (counts - 400_000 * p).abs().max() < 5 * math.sqrt(400_000 * 0.25)
    again = make(steps=4).queries(many, sampler(), torch.Generator().manual_seed(0))
    assert torch.equal(drawn.extra["k"], again.extra["k"])


def test_r4_drawn_steps_of_a_schedule_with_a_deterministic_one() -> None:
    """Without an offset the last step is never drawn, and the gap it leaves goes to the others in proportion."""
    many = Preferences(latents_RMK=torch.zeros(20_000, 2, STEPS + 1, 1), prompts_R=("a",) * 20_000)
    drawn = make(steps=2, discount=0.5).queries(many, sampler(offset=0), torch.Generator().manual_seed(0)).extra["k"]
    counts = torch.bincount(drawn.flatten(), minlength=STEPS)
    expected = 40_000 / 15 * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    assert counts[-1] == 0
    assert ((counts - expected).abs() <= 5 * expected.sqrt()).all()


def test_r10_members_share_their_steps() -> None:
    queries, _, _ = asked(make(steps=2), members=3)
    t = queries.t_UM.reshape(RANKINGS, 3, 2)
    assert torch.equal(t[:, 0], t[:, 1]) and torch.equal(t[:, 0], t[:, 2])


def test_r5_plackett_luce_by_arithmetic() -> None:
    """Two members: -log sigma of the difference. Three with weights 3, 2, 1: -log(3/6 x 2/3)."""
    score = randn(6, 2, seed=0)
    torch.testing.assert_close(plackett_luce(score), -logsigmoid(score[:, 0] - score[:, 1]))
    three = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64).log()
    assert plackett_luce(three).item() == pytest.approx(-math.log(1 / 3))
    assert plackett_luce(1e4 * three).isfinite().all() and plackett_luce(three - 1e4).item() == pytest.approx(
        math.log(3)
    )


def test_rankings_are_plackett_luce() -> None:
    objective = make()
    queries, prediction, reference = asked(objective, members=3)
    weights = torch.tensor([0.8**k for k in range(STEPS)], dtype=torch.float64)
    ratios = log_ratios(queries, prediction, reference, members=3) / DIMENSIONS
    score = 2.0 * (ratios * weights / weights.sum()).sum(2)
    found = loss(objective, queries, prediction, reference)
    terms = [
        math.log(sum(map(math.exp, row)) / math.exp(row[0])) + math.log(1 + math.exp(row[2] - row[1]))
        for row in score.tolist()
    ]
    assert found.terms_U.tolist() == pytest.approx(terms)
    torch.testing.assert_close(found.metrics["reward_margin"], score[:, 0] - score[:, 2])
    torch.testing.assert_close(found.metrics["preferred_log_ratio"], ratios[:, 0].mean(1))
    torch.testing.assert_close(found.metrics["rejected_log_ratio"], ratios[:, 2].mean(1))


def test_r6_swapping_the_members() -> None:
    """z changes its sign, and L(z) - L(-z) = -z."""
    objective, schedule = make(), sampler()
    pairs = batch()
    swapped = Preferences(latents_RMK=pairs.latents_RMK.flip(1), prompts_R=pairs.prompts_R)
    prediction, reference = randn(RANKINGS, 2, STEPS, *SHAPE, seed=7), randn(RANKINGS, 2, STEPS, *SHAPE, seed=8)
    found = []
    for data, p, r in ((pairs, prediction, reference), (swapped, prediction.flip(1), reference.flip(1))):
        queries = objective.queries(data, schedule, torch.Generator())
        found.append(objective.loss(queries, schedule, p.flatten(1, 2), r.flatten(1, 2)))
    z = found[0].metrics["reward_margin"]
    torch.testing.assert_close(found[1].metrics["reward_margin"], -z)
    torch.testing.assert_close(found[0].terms_U - found[1].terms_U, -z)


def test_r7_r9_the_clamp_bounds_and_stops() -> None:
    """|z| <= 2 C c, and a step whose log-ratio left the band has no gradient."""
    objective = make(clip=1e-3)
    queries, prediction, reference = asked(objective)
    near = reference + 1e-4 * (prediction - reference)
    mixed = torch.where(torch.arange(2 * STEPS)[:, None, None] % 2 == 0, prediction, near).requires_grad_()
    found = loss(objective, queries, mixed, reference)
    assert (found.metrics["reward_margin"].abs() <= 2 * 2.0 * 1e-3 + 1e-12).all()
    found.terms_U.sum().backward()
    assert mixed.grad is not None
    beyond = (log_ratios(queries, mixed.detach(), reference) / DIMENSIONS).abs().flatten(1) > 1e-3
    assert beyond.any() and not beyond.all()
    assert mixed.grad[beyond].abs().max() == 0 and (mixed.grad[~beyond].abs().amax((1, 2)) > 0).all()
    torch.testing.assert_close(found.metrics["clip_fraction"].mean(), beyond.double().mean().float().to(torch.float32))


def test_r8_at_the_reference() -> None:
    """Log 2, and -(C / 2) times the weighted gradient of log p_w - log p_l, per dimension."""
    objective = make()
    queries, prediction, _ = asked(objective)
    leaf = prediction.clone().requires_grad_()
    found = loss(objective, queries, leaf, prediction)
    assert found.terms_U.tolist() == pytest.approx([math.log(2)] * RANKINGS)
    assert found.metrics["reward_margin"].abs().max() == 0
    (gradient,) = torch.autograd.grad(found.terms_U.sum(), leaf)
    again = prediction.clone().requires_grad_()
    ratios = log_ratios(queries, again, prediction)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    weighted = (sign * queries.extra["weight"][:, None] * ratios).sum() / DIMENSIONS
    (expected,) = torch.autograd.grad(-2.0 / 2 * weighted, again)
    torch.testing.assert_close(gradient, expected)


def test_r11_with_d3pos_constants() -> None:
    """gamma = 1, C = beta K, sums over dimensions: -log sigma(beta sum_k difference of log-ratios). D3PO's code, a mean over
    steps of -log sigma(beta difference), is another loss whose gradient at the reference is K times smaller."""
    beta = 0.3
    objective = make(discount=1.0, strength=beta * STEPS, per_dimension=False)
    queries, prediction, reference = asked(objective)
    ratios = log_ratios(queries, prediction, reference)
    difference = ratios[:, 0] - ratios[:, 1]
    found = loss(objective, queries, prediction, reference).terms_U
    torch.testing.assert_close(found, -logsigmoid(beta * difference.sum(1)))
    assert not torch.allclose(found, -logsigmoid(beta * difference).mean(1))
    leaf = reference.clone().requires_grad_()
    (whole,) = torch.autograd.grad(loss(objective, queries, leaf, reference).terms_U.sum(), leaf)
    steps = log_ratios(queries, leaf, reference)
    (by_step,) = torch.autograd.grad(-logsigmoid(beta * (steps[:, 0] - steps[:, 1])).mean(1).sum(), leaf)
    torch.testing.assert_close(whole, STEPS * by_step)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_r12_the_bridge_to_diffusion_dpo(prediction: Any) -> None:
    """For x_p from the forward posterior, E log(p_theta / p_ref) = -slope^2 / (2 sigma^2) (|o - o_theta|^2 - |o - o_ref|^2),
    o the true output: trajectory DPO on forward-noised data is Diffusion-DPO with that weight. The mean of x_p is put in
    its place: the log-ratio is linear in it."""
    schedule, k = sampler(prediction=prediction), torch.arange(STEPS)
    x0, noise = randn(STEPS, *SHAPE, seed=0), randn(STEPS, *SHAPE, seed=1)
    alpha, sigma = schedule.alpha_K1[:-1], schedule.sigma_K1[:-1]
    x = add_noise(x0, noise, alpha, sigma)
    truth = noise if prediction == "epsilon" else alpha[:, None, None] * noise - sigma[:, None, None] * x0
    posterior = transition.mean(schedule, k, x, truth)
    outputs = randn(STEPS, *SHAPE, seed=2), randn(STEPS, *SHAPE, seed=3)
    means = [transition.mean(schedule, k, x, output) for output in outputs]
    found = transition.log_ratio(schedule, k, means[0], means[1], posterior)
    errors = [(truth - output).flatten(1).square().sum(1) for output in outputs]
    weight = transition.output_slope(schedule) ** 2 / (2 * schedule.noise_K**2)
    torch.testing.assert_close(found, -weight * (errors[0] - errors[1]))


# what it is made of


def test_log_ratio_is_a_difference_of_densities() -> None:
    schedule, k = sampler(), torch.arange(STEPS)
    own, other, after = (randn(STEPS, *SHAPE, seed=s) for s in range(3))
    expected = transition.log_density(schedule, k, own, after) - transition.log_density(schedule, k, other, after)
    torch.testing.assert_close(transition.log_ratio(schedule, k, own, other, after), expected)
    assert transition.log_ratio(schedule, k, own, own, after).tolist() == [0.0] * STEPS


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_output_slope(prediction: Any) -> None:
    """How far the mean moves for a unit of the network's output: kappa where it predicts noise."""
    schedule, k = sampler(prediction=prediction), torch.arange(STEPS)
    x, output = randn(STEPS, 1, seed=0), randn(STEPS, 1, seed=1)
    moved = transition.mean(schedule, k, x, output + 1) - transition.mean(schedule, k, x, output)
    torch.testing.assert_close(transition.output_slope(schedule), moved[:, 0])
    if prediction == "epsilon":
        alpha_K1, sigma_K1 = schedule.alpha_K1, schedule.sigma_K1
        kappa_K = schedule.direction_K - alpha_K1[1:] * sigma_K1[:-1] / alpha_K1[:-1]
        torch.testing.assert_close(transition.output_slope(schedule), kappa_K)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("changes", [{}, {"steps": 3}, {"discount": 0.3, "per_dimension": False}], ids=str)
def test_the_safeguard_changes_the_losers_gradient_alone(prediction: Any, changes: dict[str, Any]) -> None:
    """By lambda = (1 - margin) |g_w|^2 / <g_w, g_l>, g the gradients of minus the members' scores."""
    schedule, pairs = sampler(prediction=prediction), batch()
    alike = pairs.latents_RMK[:, :1] + torch.tensor([0.0, 0.3], dtype=torch.float64)[:, None, None, None] * randn(
        RANKINGS, 2, STEPS + 1, *SHAPE, seed=5
    )
    plain, safe = make(**changes), make(**changes, winner_margin=0.9)
    queries = plain.queries(Preferences(latents_RMK=alike, prompts_R=pairs.prompts_R), schedule, torch.Generator())
    output, reference = torch.zeros_like(queries.x_UM), randn(*queries.x_UM.shape, seed=8)

    def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = output.clone().requires_grad_()
        return torch.autograd.grad(of(leaf).sum(), leaf)[0].unflatten(1, (2, -1))

    free, held = (gradient(lambda p, o=o: o.loss(queries, schedule, p, reference).terms_U) for o in (plain, safe))
    weight = queries.extra["weight"][:, None]
    g = -gradient(lambda p: weight * log_ratios(queries, p, reference, schedule=schedule)).flatten(2)
    product = (g[:, 0] * g[:, 1]).sum(1)
    scale = torch.where(product > 0, (0.1 * g[:, 0].square().sum(1) / product).clamp(0, 1), 1.0)
    assert (scale < 1).any(), "some losers are held back"
    torch.testing.assert_close(held[:, 0], free[:, 0])
    torch.testing.assert_close(held[:, 1], scale[:, None, None, None] * free[:, 1])


@pytest.mark.parametrize("margin", [0.0, 0.9])
def test_x3_the_preferred_trajectory_grows_likelier(margin: float) -> None:
    """A small descent step, alike for both members' outputs, raises the preferred one's weighted log-likelihood by `margin` of
    what its own gradient alone would raise it by, or more. Without the safeguard many fall."""
    start = randn(200, 1, STEPS + 1, *SHAPE, seed=0)
    alike = torch.cat([start, start + 0.3 * randn(*start.shape, seed=1)], 1)
    pairs = Preferences(latents_RMK=alike, prompts_R=("a",) * 200)
    rises = {}
    for guard in (None, margin):
        objective = make(winner_margin=guard)
        queries = objective.queries(pairs, sampler(), torch.Generator())
        output = randn(*queries.x_UM.shape, seed=2).requires_grad_()
        reference = output.detach() + 0.05 * randn(*output.shape, seed=3)
        terms = loss(objective, queries, output, reference).terms_U
        step = -torch.autograd.grad(terms.sum(), output)[0].unflatten(1, (2, STEPS))
        likelihood = (queries.extra["weight"] * log_ratios(queries, output, reference)[:, 0]).sum()
        slope = torch.autograd.grad(likelihood, output)[0].unflatten(1, (2, STEPS))[:, 0]
        rises[guard] = (slope * step.sum(1)).flatten(1).sum(1)
        own = (slope * step[:, 0]).flatten(1).sum(1)
    assert (rises[None] < 0).any()
    assert (rises[margin] >= (margin - 1e-9) * own).all()


@pytest.mark.parametrize(
    "changes", [{}, {"link": "ipo"}, {"label_smoothing": 0.1}, {"steps": 3}, {"members": 3}], ids=str
)
def test_gradients_by_finite_differences(changes: dict[str, Any]) -> None:
    members = changes.pop("members", 2)
    objective = make(**changes)
    queries, prediction, reference = asked(objective, members=members)
    small = reference + 0.1 * (prediction - reference)
    assert torch.autograd.gradcheck(lambda p: loss(objective, queries, p, reference).terms_U, small.requires_grad_())


@pytest.mark.parametrize(("link", "smoothing"), [("ipo", 0.0), ("hinge", 0.0), ("logistic", 0.2), ("ipo", 0.2)])
def test_other_links_of_the_same_margin(link: Any, smoothing: float) -> None:
    queries, prediction, reference = asked(make())
    z = loss(make(), queries, prediction, reference).metrics["reward_margin"].tolist()
    of: dict[str, Callable[[float], float]] = {
        "logistic": lambda u: math.log(1 + math.exp(-u)),
        "ipo": lambda u: (u - 0.5) ** 2,
        "hinge": lambda u: max(0.0, 1 - u),
    }
    found = loss(make(link=link, label_smoothing=smoothing), queries, prediction, reference).terms_U
    assert found.tolist() == pytest.approx([(1 - smoothing) * of[link](u) + smoothing * of[link](-u) for u in z])


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_stay_finite(scale: float) -> None:
    for members in (2, 3):
        queries, prediction, reference = asked(make(), members=members)
        leaf = (scale * prediction).float().requires_grad_()
        found = loss(make(), queries, leaf, reference.float()).terms_U
        found.sum().backward()
        assert found.isfinite().all() and leaf.grad is not None and leaf.grad.isfinite().all()


# what is refused


@pytest.mark.parametrize(
    ("objective", "data", "options", "mentions"),
    [
        (make(), batch(steps=3), {}, "expected trajectories of 5 steps, got 3"),
        (make(), batch(), {"level": 0.0}, r"sampler\.noise\.level above 0"),
        (make(link="ipo"), batch(members=3), {}, "expected pairs with objective.link"),
        (make(label_smoothing=0.1), batch(members=3), {}, "expected pairs with objective.link"),
        (make(winner_margin=0.5), batch(members=3), {}, "expected pairs with objective.link"),
    ],
)
def test_batches_that_do_not_fit(objective: TrajectoryDpo, data: Preferences, options: Any, mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        objective.queries(data, sampler(**options), torch.Generator())


@pytest.mark.parametrize(
    "changes",
    [
        {"strength": 0.0},
        {"discount": 0.0},
        {"discount": 1.1},
        {"steps": 0},
        {"clip": 0.0},
        {"label_smoothing": 0.5},
        {"winner_margin": -1.0},
        {"winner_margin": 0.5, "clip": 0.1},
    ],
    ids=str,
)
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"expected objective.{next(iter(changes))}"):
        make(**changes)


@pytest.mark.parametrize("window", [(0, 2), (1, 4), (3, STEPS)])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_window_s_latents_are_enough(window: tuple[int, int], steps: int | None) -> None:
    """The same queries as from whole trajectories of a sampler that adds noise there alone."""
    first, end = window
    whole = batch()
    columns = [*range(first, end + 1), *([STEPS] if end < STEPS else [])]
    kept = dataclasses.replace(whole, latents_RMK=whole.latents_RMK[:, :, columns], window=window)
    found = make(steps=steps).queries(kept, sampler(), torch.Generator().manual_seed(0))
    expected = make(steps=steps).queries(whole, sampler().windowed(window), torch.Generator().manual_seed(0))
    assert found.x_UM.equal(expected.x_UM) and found.t_UM.equal(expected.t_UM)
    assert all(found.extra[name].equal(expected.extra[name]) for name in expected.extra)
    assert set(found.extra["k"].flatten().tolist()) <= set(range(first, end))
    with pytest.raises(UserError, match="expected trajectories of 5 steps"):
        make().queries(dataclasses.replace(whole, window=(1, 3)), sampler(), torch.Generator())
