"""AdamW with moments of 32 bits and of 8: what is remembered goes into files as plain tensors, and comes back as it was."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from raysuite.config import Learn, load
from raysuite.errors import UserError
from raysuite.stages.checkpoint import Snapshot, restore_moments
from raysuite.stages.optimizer import check_optimizer, in_float32, optimizer_of, put_together, set_rate

CPU = torch.device("cpu")
EIGHT = pytest.param(
    8,
    marks=[
        pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed"),
        pytest.mark.filterwarnings("ignore"),
        pytest.mark.exhaustive,  # its step is compiled
    ],
)


def parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((64, 128), (16,))]


def steps(optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter], *seeds: int) -> list[torch.Tensor]:
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        for parameter in trained:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        set_rate(optimizer, 0.1 / seed)
        optimizer.step()
    return [parameter.detach().clone() for parameter in trained]


def test_adamw_has_the_settings_of_the_run() -> None:
    learn = Learn(learning_rate=0.5, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.1)
    (group,) = optimizer_of(learn, parameters()).param_groups
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 0.5,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
    }


@pytest.mark.parametrize("bits", [32, EIGHT])
def test_an_optimiser_goes_on_from_what_another_remembered(bits: int) -> None:
    learn, trained = Learn(moment_bits=bits), parameters()
    optimizer = optimizer_of(learn, trained)
    steps(optimizer, trained, 1, 2)
    told = {
        index: {key: value.clone() for key, value in entry.items()}
        for index, entry in Snapshot(optimizer).take().items()
    }
    assert all(type(value) is torch.Tensor for entry in told.values() for value in entry.values())
    kept = [torch.nn.Parameter(parameter.detach().clone()) for parameter in trained]
    expected = steps(optimizer, trained, 3, 4)
    again = optimizer_of(learn, kept)
    restore_moments(again, told)
    for ours, theirs in zip(steps(again, kept, 3, 4), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [EIGHT])
def test_8_bits_are_nearly_32(bits: int) -> None:
    """A moment is off by less than a hundredth of its block's largest, or less than that of its own; and so are steps."""
    ends, moments = [], []
    for each in (bits, 32):
        trained = parameters()
        optimizer = optimizer_of(Learn(moment_bits=each), trained)
        ends.append(steps(optimizer, trained, 1, 2, 3)[0])
        moments.append(in_float32(put_together(Snapshot(optimizer).take()[0])["exp_avg"]))
    assert float((moments[0] - moments[1]).abs().max() / moments[1].abs().max()) < 0.02
    assert float((ends[0] - ends[1]).norm() / (ends[1] - parameters()[0]).norm()) < 0.1


def test_the_rate_is_the_one_that_was_set() -> None:
    """AdamW's first step is the learning rate in every coordinate, whatever the gradient."""
    trained = parameters()
    before = [parameter.detach().clone() for parameter in trained]
    after = steps(optimizer_of(Learn(weight_decay=0.0), trained), trained, 2)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close((new - old).abs(), torch.full_like(old, 0.05), rtol=1e-3, atol=1e-6)


def test_torchao_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"torchao for learn.moment_bits=8, found none: pip install 'raysuite\[torchao\]'"
    ):
        check_optimizer(Learn(moment_bits=8), CPU)
    check_optimizer(Learn(), CPU)


def test_8_bits_are_not_fused() -> None:
    with pytest.raises(UserError, match=r"no learn.fused and no cluster.shard with learn.moment_bits=8"):
        load("scenes-ddpo", {"learn.moment_bits": "8", "learn.fused": "true", "cluster.worker_gpus": "1"})
