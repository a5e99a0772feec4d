"""Draws from a distribution of prompts, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raysuite.kernel.soft_prompts import Distribution, Draw, orthogonality


def normal(*shape: int, label: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(label))


def two() -> Distribution:
    """Of two soft prompts: one state of two positions, which they share at the first, and one of a single number."""
    return Distribution((torch.tensor([[1.0, 0.0], [1.0, 4.0]]), torch.tensor([[3.0], [5.0]])))


def test_mean_and_deviation_are_of_each_position() -> None:
    (first, second), (s_first, s_second) = two().mean, two().deviation
    assert first.tolist() == [[1.0, 2.0]] and second.tolist() == [[4.0]]
    torch.testing.assert_close(s_first, torch.tensor([[0.0, math.sqrt(8)]]))
    torch.testing.assert_close(s_second, torch.tensor([[math.sqrt(2)]]))
    assert float(two().spread()) == pytest.approx((math.sqrt(8) + math.sqrt(2)) / 3)


def test_an_independent_draw_has_a_number_for_every_position() -> None:
    first, second = two().draw(7, kind="independent", spread=0.5)
    generator = torch.Generator().manual_seed(7)
    e, f = torch.randn(1, 2, generator=generator), torch.randn(1, 1, generator=generator)
    torch.testing.assert_close(first, torch.tensor([[1.0, 2.0]]) + 0.5 * torch.tensor([[0.0, math.sqrt(8)]]) * e)
    torch.testing.assert_close(second, torch.tensor([[4.0]]) + 0.5 * math.sqrt(2) * f)


def test_a_correlated_draw_mixes_all_states_alike() -> None:
    unit = Distribution((torch.eye(5), 2 * torch.eye(5)))
    first, second = unit.draw(3, kind="correlated", spread=1.0)
    w = normal(5, label=3) / 2  # variance 1 / (K - 1)
    torch.testing.assert_close(first[0], 1 / 5 + w - w.mean())  # the weight of each state: they sum to 1
    torch.testing.assert_close(second, 2 * first)


def test_correlated_draws_have_the_covariance_of_the_states() -> None:
    states_K = normal(4, 3, label=0)
    draws = torch.cat([Distribution((states_K,)).draw(n, kind="correlated", spread=1.0)[0] for n in range(20_000)])
    wanted = torch.cov(states_K.T)
    assert (torch.cov(draws.T) - wanted).abs().max() < 0.04 * wanted.diagonal().max()
    torch.testing.assert_close(draws.mean(0), states_K.mean(0), atol=0.03, rtol=0)


def test_independent_draws_have_their_spread_and_no_covariance() -> None:
    states_K = normal(4, 3, label=0)
    draws = torch.cat([Distribution((states_K,)).draw(n, kind="independent", spread=2.0)[0] for n in range(20_000)])
    torch.testing.assert_close(torch.cov(draws.T), torch.diag(4 * states_K.var(0)), atol=0.2, rtol=0)


def test_a_member_is_one_of_the_states_and_all_are_drawn_alike() -> None:
    found = [two().draw(n, kind="member", spread=1.0) for n in range(400)]
    assert {tuple(second[0].tolist()) for _, second in found} == {(3.0,), (5.0,)}
    assert all(first[0, 1] == {3.0: 0.0, 5.0: 4.0}[float(second)] for first, second in found)
    share = sum(float(second) == 3.0 for _, second in found) / len(found)
    assert abs(share - 0.5) < 0.1


@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_without_spread_or_label_it_is_the_mean(kind: Draw) -> None:
    for drawn in (
        two().draw(1, kind=kind, spread=0.0),
        two().draw(None, kind=kind, spread=1.0),
        two().draw(1, kind="mean", spread=1.0),
    ):
        assert torch.equal(drawn[0], torch.tensor([[1.0, 2.0]])) and torch.equal(drawn[1], torch.tensor([[4.0]]))


@pytest.mark.parametrize("kind", ["independent", "correlated", "member"])
def test_a_label_decides(kind: Draw) -> None:
    many = Distribution((normal(50, 6, label=1),))
    one, same, other = (many.draw(label, kind=kind, spread=1.0)[0] for label in (2**62 + 1, 2**62 + 1, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["independent", "correlated", "member"])
def test_a_draw_does_not_depend_on_the_default_type(kind: Draw) -> None:
    """Which a reward in the same process may have changed: numbers of another type are others, not the same ones rounded."""
    many = Distribution((normal(50, 6, label=1),))
    expected = many.draw(3, kind=kind, spread=1.0)[0]
    torch.set_default_dtype(torch.float64)
    try:
        drawn = many.draw(3, kind=kind, spread=1.0)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn, expected)


def test_gradients_reach_every_soft_prompt() -> None:
    """With g the loss's gradient in the draw: g / K + g e (E_k - mu) / ((K - 1) s), and (1 / K + w_k - mean w) g."""
    g = normal(1, 6, label=9)
    for kind in ("independent", "correlated"):
        states_K = normal(4, 6, label=1).requires_grad_()
        drawn = Distribution((states_K,)).draw(11, kind=kind, spread=1.0)[0]  # type: ignore[arg-type]
        (drawn * g).sum().backward()
        with torch.no_grad():
            if kind == "independent":
                e, mu, s = normal(1, 6, label=11), states_K.mean(0), states_K.std(0)
                wanted = g / 4 + g * e * (states_K - mu) / (3 * s)
            else:
                w = normal(4, label=11) / 3**0.5
                wanted = (1 / 4 + w - w.mean())[:, None] * g
        torch.testing.assert_close(states_K.grad, wanted)


def test_soft_prompts_that_are_one_have_gradients_that_are_numbers() -> None:
    states_K = torch.ones(3, 2, requires_grad=True)
    Distribution((states_K,)).draw(1, kind="independent", spread=1.0)[0].sum().backward()
    assert states_K.grad is not None and states_K.grad.isfinite().all()


def test_orthogonality_is_the_mean_squared_cosine() -> None:
    parallel, across = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    slanted = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])  # 60 degrees
    assert float(orthogonality([parallel])) == pytest.approx(1)
    assert float(orthogonality([across])) == pytest.approx(0)
    assert float(orthogonality([slanted])) == pytest.approx(0.25)
    assert float(orthogonality([slanted, parallel])) == pytest.approx(0.625)
    three = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # of the three pairs one is parallel
    assert float(orthogonality([three])) == pytest.approx(1 / 3)


def test_the_density_of_a_draw_by_hand() -> None:
    """The number that both prompts share is left out, whatever the draw has there."""
    drawn = (torch.tensor([[9.0, 4.0]]), torch.tensor([[5.0]]))
    s, t = 0.5 * math.sqrt(8), 0.5 * math.sqrt(2)
    by_hand = -((4 - 2) ** 2) / (2 * s**2) - math.log(s) - (5 - 4) ** 2 / (2 * t**2) - math.log(t)
    assert float(two().log_density(drawn, spread=0.5)) == pytest.approx(by_hand)


def test_both_gradients_of_the_expected_reward_are_its_own() -> None:
    """A picture x = <a, P> + tau n of a draw P = mu + g s e, and the reward x^2: J = <a, mu>^2 + g^2 sum a^2 s^2 + tau^2.

    The path's gradient goes through the density of the picture at the draw, the score's through that of the draw.
    """
    states_K = normal(3, 2, label=1).requires_grad_()
    a, tau, g, draws = torch.tensor([0.8, -0.5]), 0.7, 0.9, 400_000

    def gradient(of: Tensor) -> Tensor:
        return torch.autograd.grad(of, states_K)[0]

    def parts() -> tuple[Tensor, Tensor]:
        of = Distribution((states_K,))
        return of.mean[0], g * of.deviation[0]

    mu, s = parts()
    wanted = gradient((a @ mu[0]) ** 2 + (a * s[0]).square().sum() + tau**2)
    generator = torch.Generator().manual_seed(0)
    e_N2, n_N = torch.randn(draws, 2, generator=generator), torch.randn(draws, generator=generator)
    mu, s = parts()
    drawn_N2 = mu + s * e_N2
    x_N = (drawn_N2 @ a + tau * n_N).detach()
    advantage_N = x_N**2 - (x_N**2).mean()
    path = gradient((advantage_N * -((x_N - drawn_N2 @ a) ** 2)).mean() / (2 * tau**2))
    mu, s = parts()
    log_q_N = (-(((drawn_N2.detach() - mu) / s) ** 2) / 2 - s.log()).sum(1)
    for number in range(3):  # what `log_density` says of one draw, here for all at once
        one = Distribution((states_K,)).log_density((drawn_N2[number : number + 1],), spread=g)
        torch.testing.assert_close(one, log_q_N[number])
    score = gradient((advantage_N * log_q_N).mean())
    assert wanted.abs().max() > 0.2
    torch.testing.assert_close(path, wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(score, wanted, atol=0.02, rtol=0)
