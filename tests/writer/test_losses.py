"""Losses of rewrites by arithmetic, and what is told of them before they are trained with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raysuite.errors import UserError
from raysuite.writer.losses import LOG_2, PairLoss, cal_dpo, summary, warnings


def zeros(*count: int) -> torch.Tensor:
    return torch.zeros(*count or (3,), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("beta", "targets", "wanted"),
    [
        (0.5, "plain", (1.0, -1.0)),
        (0.001, "plain", (500.0, -500.0)),
        # log cosh 1 = 0.43378
        (0.5, "normalised", (1 - 0.43378, -1 - 0.43378)),
        # log cosh M approaches M - log 2, beyond what cosh can hold too
        (0.0005, "normalised", (LOG_2, LOG_2 - 2000)),
    ],
)
def test_targets(beta: float, targets: str, wanted: tuple[float, float]) -> None:
    assert PairLoss("cal_dpo", beta, targets).target == pytest.approx(wanted, abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("beta", "weight"), [(1.0, 1.0), (0.5, 0.3)])
def test_at_the_reference(beta: float, weight: float) -> None:
    """log 2 + 2 weight M^2, and slopes of -+(1/2 + 2 weight M), with M = 1 / (2 beta); the mean is over three pairs."""
    h_w, h_l, half = zeros(), zeros(), 1 / (2 * beta)
    loss = cal_dpo(PairLoss("cal_dpo", beta, weight=weight), h_w, h_l)
    assert loss.item() == pytest.approx(LOG_2 + 2 * weight * half**2)
    loss.backward()
    slope = 1 / 2 + 2 * weight * half
    assert h_w.grad is not None and h_l.grad is not None
    assert (3 * h_w.grad).tolist() == pytest.approx([-slope] * 3)
    assert (3 * h_l.grad).tolist() == pytest.approx([slope] * 3)


def test_a_value_by_hand() -> None:
    """h 1 and -1, M = 1/4: -log sigma(2) = 0.126928, and 0.75^2 twice."""
    loss = cal_dpo(PairLoss("cal_dpo", 2.0, weight=2.0), torch.tensor([1.0]), torch.tensor([-1.0]))
    assert loss.item() == pytest.approx(0.126928 + 2 * (0.5625 + 0.5625), abs=1e-5)


def minimiser(loss: PairLoss) -> tuple[float, float]:
    """h of winners and losers that minimises the loss over distributions of 8 outcomes of which 4 win; the reference is uniform."""
    logits = zeros(8)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def h() -> torch.Tensor:
        return logits.log_softmax(0) + math.log(8)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        won, lost = torch.meshgrid(h()[:4], h()[4:], indexing="ij")
        value = cal_dpo(loss, won.flatten(), lost.flatten())
        value.backward()
        return value

    optimizer.step(closure)
    return h()[0].item(), h()[7].item()


@pytest.mark.parametrize(
    ("half", "wanted"),
    [(0.25, (0.311, -0.454)), (0.5, (0.407, -0.697)), (1.0, (0.526, -1.177)), (5.0, (0.690, -5.016))],
)
def test_however_far_the_target_winners_gain_log_2_at_most(half: float, wanted: tuple[float, float]) -> None:
    assert minimiser(PairLoss("cal_dpo", 1 / (2 * half))) == pytest.approx(wanted, abs=2e-3)


def test_normalised_targets_can_be_reached() -> None:
    """A distribution has them: exp h averages to 1 over winners and losers."""
    for half in (0.25, 1.0, 3.0):
        h_w, h_l = PairLoss("cal_dpo", 1 / (2 * half), "normalised").target
        assert (math.exp(h_w) + math.exp(h_l)) / 2 == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "logp", "told"),
    [
        (
            PairLoss("cal_dpo", 0.001),
            [-3.0, -4.0, -2.0],
            ["500 nats, and half of them have at most 3", "log 2 = 0.693"],
        ),
        (PairLoss("cal_dpo", 0.25), [-3.0, -4.0, -2.0], ["log 2 = 0.693"]),  # 2 nats: in reach, and beyond the mean
        (PairLoss("cal_dpo", 1.0), [-3.0, -4.0, -2.0], []),
        (PairLoss("cal_dpo", 1.0), [-0.1, -0.2], ["0.5 nats, and half of them have at most 0.2"]),
        (PairLoss("cal_dpo", 0.25, "normalised"), [-3.0, -4.0], []),  # 2 - log cosh 2 = 0.675
        (PairLoss("sigmoid", 0.001), [-0.1], []),
    ],
)
def test_warnings(loss: PairLoss, logp: list[float], told: list[str]) -> None:
    found = warnings(loss, torch.tensor(logp))
    assert len(found) == len(told)
    assert all(part in line for part, line in zip(told, found, strict=True))


@pytest.mark.parametrize("options", [{"targets": "normalised"}, {"weight": 2.0}])
def test_what_only_cal_dpo_reads_is_refused_elsewhere(options: dict[str, Any]) -> None:
    PairLoss("cal_dpo", 0.1, **options)
    with pytest.raises(
        UserError, match="expected --targets and --weight with --loss cal_dpo alone, got them with sigmoid"
    ):
        PairLoss("sigmoid", 0.1, **options)


@pytest.mark.parametrize("room", [0.012, 0.11, 0.379, 0.5, 0.6931, 2.1])
def test_what_a_warning_advises_silences_it(room: float) -> None:
    (told, *more) = warnings(PairLoss("cal_dpo", 0.01), torch.tensor([-room]))
    wanted = float(told.partition("Raise --beta to ")[2].partition(" or more.")[0])
    assert not [line for line in warnings(PairLoss("cal_dpo", wanted), torch.tensor([-room])) if "Raise" in line]
    assert wanted < 1.1 / (2 * room)
    enough = float(more[0].partition("so does --beta ")[2].partition(" or more.")[0])
    assert warnings(PairLoss("cal_dpo", enough), torch.tensor([-9.0])) == []


def test_what_training_did() -> None:
    h_w, h_l = torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, -1.0, -1.0])
    assert summary(h_w, h_l, torch.tensor([-1.0, -2.0, -3.0, -4.0])) == {
        "h_preferred": 0.5,
        "h_rejected": -0.25,
        "preferred_above_0": 0.5,
        "accuracy": 0.75,
        "logp_preferred": -2.5,
    }


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"kind": "dpo"}, "expected --loss of sigmoid, cal_dpo"),
        ({"targets": "soft"}, "expected --targets of plain, normalised"),
        ({"beta": 0.0}, "expected --beta above 0"),
        ({"kind": "cal_dpo", "weight": -1.0}, "--weight of at least 0"),
    ],
)
def test_refusals(settings: dict[str, object], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        PairLoss(**settings)  # type: ignore[arg-type]


def test_beta_means_nothing_to_fine_tuning() -> None:
    with pytest.raises(UserError, match="expected no --beta with --loss sft, which compares with no reference, got 7"):
        PairLoss("sft", 7.0)


def test_just_beyond_log_2_is_told() -> None:
    assert len(warnings(PairLoss("cal_dpo", 0.7), torch.tensor([-3.0]))) == 1  # 0.714 nats
    assert not warnings(PairLoss("cal_dpo", 0.73), torch.tensor([-3.0]))  # 0.685


def test_what_is_as_likely_is_not_preferred() -> None:
    nought = torch.zeros(3)
    assert summary(nought, nought, nought)["accuracy"] == summary(nought, nought, nought)["preferred_above_0"] == 0


def test_no_beta_is_advised_to_targets_of_another_form() -> None:
    """1 / (2 beta) is the plain target; the normalised one is log 2 at most, whatever beta."""
    (told,) = warnings(PairLoss("cal_dpo", 0.1, "normalised"), torch.tensor([-0.1]))
    assert told.endswith("Raise --beta.")


def test_without_calibration_cal_dpo_is_the_sigmoid_at_beta_1() -> None:
    h_w, h_l = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    found = cal_dpo(PairLoss("cal_dpo", 1.0, weight=0.0), h_w, h_l)
    torch.testing.assert_close(found, torch.log1p(torch.exp(h_l - h_w)).mean())
