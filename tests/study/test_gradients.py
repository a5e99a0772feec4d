"""Per-unit gradients by block and bin are those that training would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raysuite.config import TOYS, RunConfig
from raysuite.families import Policy
from raysuite.kernel.objectives import Objective
from raysuite.kernel.objectives.cal_dpo import CalDpo
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.objectives.diffusion_dpo import DiffusionDpo
from raysuite.kernel.objectives.dmpo import Dmpo
from raysuite.kernel.objectives.dspo import Dspo
from raysuite.kernel.objectives.forward_rl import ForwardRl
from raysuite.kernel.objectives.sft import Sft
from raysuite.kernel.objectives.trajectory_dpo import TrajectoryDpo
from raysuite.kernel.sketch import Sketch, parameter_blocks
from raysuite.stages.learn import Batch, gradient
from raysuite.study.gradients import bin_ranges, sharing, unit_gradients
from raysuite.types import Cost, Preferences, Transitions

Opener = Callable[..., tuple[Policy, RunConfig]]

OBJECTIVES: dict[str, Objective[Any]] = {
    "ddpo": Ddpo(clip=0.1, advantage_clip=5.0),
    "trajectory_dpo": TrajectoryDpo(strength=5.0, discount=0.8),
    "diffusion_dpo": DiffusionDpo(beta=50.0, draws=3),
    "dspo": Dspo(beta=0.5, draws=3),
    "dmpo": Dmpo(beta=50.0, draws=3),
    "cal_dpo": CalDpo(beta=50.0, share=0.1, draws=3),
    "sft": Sft(draws=3),
    "forward_rl": ForwardRl(contrast=1.0, advantage_limit=2.0, draws=3, base_weight=0.5),
}
STEPS, BINS, WIDTH = 4, 5, 1 << 9


def sketch_of(policy: Policy, width: int = 10**9) -> Sketch:
    """By default every coordinate has a place of its own."""
    sizes = {name: p.numel() for name, p in policy.trainable().items()}
    return Sketch(
        sizes, parameter_blocks(list(sizes)), width=width, generator=lambda n: torch.Generator().manual_seed(n)
    )


def measured(
    objectives: dict[str, Objective[Any]],
    policy: Policy,
    batches: dict[str, Batch],
    sketch: Sketch,
    *,
    bins: int = 1,
    microbatch: int = 1000,
) -> tuple[dict[str, Tensor], Cost]:
    """The unit's gradients, (T, size) each."""
    found = {name: torch.zeros(bins, sketch.size) for name in objectives}

    def add(name: str, number: int, gradients: dict[str, Tensor]) -> None:
        found[name][number] += sketch(gradients)

    mine = {name: batches[name] for name in objectives}
    cost = unit_gradients(objectives, policy, mine, add, generator=seeded, bins=bins, microbatch=microbatch)
    return found, cost


def batches_for(policy: Policy, name: str) -> dict[str, Batch]:
    prompts = ("left", "right", "both") if name in TOYS else ("one red circle", "two blue squares", "three red circles")
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 2, STEPS + 1, *policy.latent_shape, generator=draw)
    preferences = Preferences(latents_RMK=latents, prompts_R=prompts)
    transitions = Transitions(
        latents_NK=latents[:, 0],
        logp_NK=torch.zeros(3, STEPS),
        advantage_NK=torch.randn(3, STEPS, generator=draw),
        prompts_N=prompts,
    )
    return {n: preferences if o.consumes == "preferences" else transitions for n, o in OBJECTIVES.items()}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def trained(policy: Policy, name: str, batch: Batch, sketch: Sketch) -> Tensor:
    """The gradient that learning takes, (size,)."""
    for p in policy.trainable().values():
        p.grad = None
    gradient(OBJECTIVES[name], policy, [(batch, seeded())], microbatch=1000)
    found = sketch({n: p.grad for n, p in policy.trainable().items() if p.grad is not None})
    for p in policy.trainable().values():
        p.grad = None
    return found


@pytest.mark.parametrize("name", ["toy", "toy-flow", "epsilon-lora-3", "v_prediction-all-1"])
@pytest.mark.parametrize("microbatch", [4, 1000])
def test_over_bins_they_are_what_training_takes(
    name: str, microbatch: int, policy_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = policy_of(name)
    weights = policy.weights()
    policy.set_weights(weights + 0.02)
    batches, sketch = batches_for(policy, name), sketch_of(policy)
    found, _ = measured(OBJECTIVES, policy, batches, sketch, bins=BINS, microbatch=microbatch)
    predict = policy.predict

    def refreshed(*words: Any, reference: bool = False, **options: Any) -> Tensor:
        """As in training where the reference is refreshed at every update."""
        return predict(*words, **options).detach() if reference else predict(*words, **options)

    for objective in OBJECTIVES:
        if OBJECTIVES[objective].reference_is_sampler:
            monkeypatch.setattr(policy, "predict", refreshed)
        expected = trained(policy, objective, batches[objective], sketch)
        monkeypatch.undo()
        assert found[objective].shape == (BINS, sketch.size)
        assert (found[objective].sum(0) - expected).norm() <= 1e-4 * expected.norm(), objective
        assert expected.norm() > 0
    assert all(p.grad is None for p in policy.trainable().values())


def test_bins_hold_their_own_timesteps(policy_of: Opener) -> None:
    """The toy's perturbation has a slice for each tenth of the timesteps: a bin of a fifth moves its two alone."""
    policy, _ = policy_of("toy")
    found, _ = measured(OBJECTIVES, policy, batches_for(policy, "toy"), sketch_of(policy), bins=BINS, microbatch=7)
    assert bin_ranges(policy, BINS) == [(0, 199), (200, 399), (400, 599), (600, 799), (800, 999)]
    for name, by_bin in found.items():
        slices = by_bin.unflatten(1, (10, -1)).abs().sum(2)
        for number in range(BINS):
            outside = [s for s in range(10) if s // 2 != number]
            assert slices[number, outside].max() == 0, name


def test_bins_of_a_flow_model_are_ranges_of_its_table(policy_of: Opener) -> None:
    """A fifth of the levels, equal in unshifted time: sigma up to .43, .67, .82, .92 and 1, in tenths of which the toy is moved."""
    policy, _ = policy_of("toy-flow")
    batches = batches_for(policy, "toy-flow")
    found, _ = measured(OBJECTIVES, policy, batches, sketch_of(policy), bins=BINS, microbatch=7)
    tenths = [range(5), range(4, 7), range(6, 9), range(8, 10), range(9, 10)]
    for name, by_bin in found.items():
        slices = by_bin.unflatten(1, (10, -1)).abs().sum(2)
        for number, own in enumerate(tenths):
            assert not slices[number, [s for s in range(10) if s not in own]].any(), name
    reached = torch.stack(list(found.values())).abs().sum((0, 2))
    assert (reached > 0).all()


def test_objectives_that_ask_the_same_share_a_pass(policy_of: Opener) -> None:
    policy, _ = policy_of("toy")
    batches = batches_for(policy, "toy")
    asked = {name: o.queries(batches[name], policy.schedule, seeded()) for name, o in OBJECTIVES.items()}
    assert sharing(asked) == [
        ["ddpo"],
        ["trajectory_dpo"],
        ["diffusion_dpo", "dspo", "dmpo", "cal_dpo"],
        ["sft", "forward_rl"],  # the batches' preferred pictures are the transitions' here
    ]
    calls = []
    predict = policy.predict

    def watched(*words: Any, **options: Any) -> Tensor:
        calls.append((options.get("reference", False), torch.is_grad_enabled()))
        return predict(*words, **options)

    policy.predict = watched  # type: ignore[method-assign]
    three = {name: OBJECTIVES[name] for name in ("diffusion_dpo", "dspo", "cal_dpo")}
    _, cost = measured(three, policy, batches, sketch_of(policy))
    del policy.predict
    points = 3 * 3 * 2
    assert len(calls) == 2, "one of the policy and one of the reference"
    assert (cost.forward, cost.backward) == (2 * points, 3 * points)


def test_sketched_inner_products_are_near_the_exact_ones(policy_of: Opener) -> None:
    """Within 5 of the stated standard errors, sqrt(2 / width) of the product of norms."""
    policy, _ = policy_of("v_prediction-all-1")
    batches = batches_for(policy, "v_prediction-all-1")
    exact, sketch = sketch_of(policy), sketch_of(policy, WIDTH)
    assert exact.error == 0 < sketch.error
    whole, _ = measured(OBJECTIVES, policy, batches, exact)
    small, _ = measured(OBJECTIVES, policy, batches, sketch)
    for block in sketch.spans:
        for a in OBJECTIVES:
            for b in OBJECTIVES:
                pairs = [
                    (g[a][0, s.spans[block]], g[b][0, s.spans[block]]) for g, s in ((whole, exact), (small, sketch))
                ]
                truth, found = (float(x @ y) for x, y in pairs)
                size = float(pairs[0][0].norm() * pairs[0][1].norm())
                assert abs(found - truth) <= 5 * sketch.error * size + 1e-12, (block, a, b)


def test_what_differs_in_prompts_draws_or_guidance_shares_no_pass(policy_of: Opener) -> None:
    policy, _ = policy_of("toy")
    asked = OBJECTIVES["sft"].queries(batches_for(policy, "toy")["sft"], policy.schedule, seeded())
    first, second = (replace(asked, draws_UM=torch.full(asked.t_UM.shape, label)) for label in (1, 2))
    others = [
        asked,
        replace(asked, prompts_U=("another",) * len(asked)),
        replace(asked, guided=not asked.guided),
        first,
        second,
    ]
    assert sharing({str(number): queries for number, queries in enumerate(others)}) == [[str(n)] for n in range(5)]
    assert sharing({"one": first, "other": first}) == [["one", "other"]]


def test_a_pass_of_the_model_as_it_came_costs_like_any_other(policy_of: Opener) -> None:
    """Forward RL holds to it; its old policy is who drew, and costs none."""
    policy, _ = policy_of("toy")
    two = {name: OBJECTIVES[name] for name in ("sft", "forward_rl")}
    _, cost = measured(two, policy, batches_for(policy, "toy"), sketch_of(policy))
    assert (cost.forward, cost.backward) == (2 * 3 * 3, 2 * 3 * 3)
