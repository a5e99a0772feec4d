"""The gradient of an objective through every family: ratios of 1, any split, and the expected reward's own slope."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from raysuite.config import Noise, RunConfig, Sampler
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.families.toy import ToyPolicy, open_toy
from raysuite.kernel import transition
from raysuite.kernel.credit import preview_credit, returns_to_go, terminal_credit
from raysuite.kernel.objectives import Objective
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.schedule import Schedule
from raysuite.stages.learn import gradient, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.types import Block, Loss, Queries, Rollouts, Transitions

Opener = Callable[..., tuple[Policy, RunConfig]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Objective[Transitions]):
    """Passes everything on to `inner`, and notes the ratio of every unit."""

    inner: Ddpo
    ratios: list[Tensor] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)

    @property
    def needs_reference(self) -> bool:
        return self.inner.needs_reference

    def queries(self, batch: Transitions, schedule: Schedule, generator: torch.Generator) -> Queries:
        return self.inner.queries(batch, schedule, generator)

    def loss(
        self, queries: Queries, schedule: Schedule, prediction_UM: Tensor, reference_prediction_UM: Tensor | None
    ) -> Loss:
        loss = self.inner.loss(queries, schedule, prediction_UM, reference_prediction_UM)
        self.ratios.append(loss.metrics["ratio"])
        self.sizes.append(len(queries))
        return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduced(Watched):
    """Averages what it should leave to the caller, or says a metric once for all."""

    of: str

    def loss(self, *about: Any) -> Loss:
        loss = super().loss(*about)
        if self.of == "terms_U":
            return dataclasses.replace(loss, terms_U=loss.terms_U.mean())
        return dataclasses.replace(loss, metrics={**loss.metrics, self.of: loss.metrics[self.of].mean()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misspelt(Watched):
    """Raises where it is asked, or where it answers."""

    where: str

    def queries(self, *about: Any) -> Queries:
        if self.where == "queries":
            raise KeyError("quieries")
        return super().queries(*about)

    def loss(self, *about: Any) -> Loss:
        raise KeyError("weigth")


def ddpo(**changes: Any) -> Ddpo:
    return Ddpo(**{"clip": 0.1, "advantage_clip": 5.0, **changes})


def rolled(policy: Policy, config: RunConfig) -> Rollouts:
    (block,) = training_blocks(config, load_prompts(config.prompts), update=0)
    return score(sample(policy, block, config, version=0), config)


def batch_of(policy: Policy, config: RunConfig) -> Transitions:
    rollouts = rolled(policy, config)
    shape = (rollouts.block.size, config.sampler.steps)
    return transitions(rollouts, np.random.default_rng(0).normal(size=shape))


def stochastic(policy: Policy) -> int:
    """Steps that have a density: all four, but for the flow model, whose last step ends free of noise."""
    steps = int(policy.schedule.stochastic_K.sum())
    assert steps == (3 if policy.schedule.prediction == "velocity" else 4)
    return steps


def nudge(policy: Policy, size: float = 0.05, seed: int = 3) -> None:
    """Move all trained parameters, so that adapters act and the policy is not its reference."""
    flat = policy.weights()
    policy.set_weights(flat + size * np.random.default_rng(seed).normal(size=flat.shape).astype(np.float32))


def gradient_of(objective: Objective, policy: Policy, batches: list[Transitions], **options: Any) -> np.ndarray:
    for p in policy.trainable().values():
        p.grad = None
    gradient(objective, policy, [(batch, torch.Generator().manual_seed(0)) for batch in batches], **options)
    return np.concatenate(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).double().numpy().ravel()
            for p in policy.trainable().values()
        ]
    )


# the ratio before the first update


@pytest.mark.parametrize("nudged", [False, True])
def test_the_first_ratio_is_exactly_1(policy_name: str, nudged: bool, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    if nudged:
        nudge(policy)
    batch = batch_of(policy, config)
    for per_dimension in (True, False):
        watched = Watched(inner=ddpo(per_dimension=per_dimension))
        gradient_of(watched, policy, [batch], microbatch=6)
        assert watched.sizes == [6] * stochastic(policy)
        assert torch.cat(watched.ratios).tolist() == [1.0] * 6 * stochastic(policy)


@pytest.mark.parametrize("name", ["toy-flow", "epsilon-all-3"])
@pytest.mark.parametrize("window", [(0, 2), (1, 3)])
def test_of_a_window_s_steps_the_first_ratio_is_exactly_1(
    name: str, window: tuple[int, int], policy_of: Opener
) -> None:
    policy, config = policy_of(name)
    nudge(policy)
    (block,) = training_blocks(config, load_prompts(config.prompts), update=0)
    rollouts = score(sample(policy, dataclasses.replace(block, window=window), config, version=0), config)
    watched = Watched(inner=ddpo())
    gradient_of(watched, policy, [transitions(rollouts, np.ones((6, 4)))], microbatch=6)
    assert watched.sizes == [6, 6]
    assert torch.cat(watched.ratios).tolist() == [1.0] * 12


@pytest.mark.parametrize("microbatch", [1, 4, 5])
def test_in_other_batches_the_first_ratio_is_nearly_1(policy_name: str, microbatch: int, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    nudge(policy)
    watched = Watched(inner=ddpo())
    gradient_of(watched, policy, [batch_of(policy, config)], microbatch=microbatch)
    ratios = torch.cat(watched.ratios)
    assert len(ratios) == 6 * stochastic(policy)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), atol=1e-5, rtol=0)


def test_ratios_leave_1_when_weights_move(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    nudge(policy)
    batch = batch_of(policy, config)
    nudge(policy, size=0.02, seed=4)
    watched = Watched(inner=ddpo())
    gradient_of(watched, policy, [batch], microbatch=6)
    assert (torch.cat(watched.ratios) - 1).abs().max() > 1e-3


# any split gives the same gradient


def test_any_microbatch_gives_the_same_gradient(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    nudge(policy)
    batch = batch_of(policy, config)
    nudge(policy, size=0.01, seed=4)  # off the policy that drew, where ratios differ
    objective = ddpo(clip=0.5, kl_weight=0.2)
    whole = gradient_of(objective, policy, [batch], microbatch=100)
    assert np.abs(whole).max() > 0
    for microbatch in (1, 4):
        split = gradient_of(objective, policy, [batch], microbatch=microbatch)
        assert np.linalg.norm(split - whole) <= 1e-4 * np.linalg.norm(whole)


@pytest.mark.parametrize("name", ["toy", "epsilon-lora-3"])
def test_workers_shares_add_up(name: str, policy_of: Opener) -> None:
    """Two blocks at once, and one each on two workers."""
    policy, config = policy_of(name, rollouts={"prompts": 2, "samples": 3, "prompts_per_block": 1})
    prompts = load_prompts(config.prompts)
    blocks = [score(sample(policy, b, config, version=0), config) for b in training_blocks(config, prompts, update=0)]
    batches = [transitions(r, np.random.default_rng(i).normal(size=(3, 4))) for i, r in enumerate(blocks)]
    whole = gradient_of(ddpo(), policy, batches, microbatch=3)
    shares = sum(gradient_of(ddpo(), policy, [batch], microbatch=3, total=lambda units: 2 * units) for batch in batches)
    assert np.linalg.norm(shares - whole) <= 1e-5 * np.linalg.norm(whole)


def test_gradients_cost_what_they_cost(policy_name: str, policy_of: Opener) -> None:
    """Six samples, four steps or three with noise; guidance doubles all, and the reference adds as many forward passes again."""
    policy, config = policy_of(policy_name)
    batch = batch_of(policy, config)
    points = 6 * stochastic(policy) * (2 if config.sampler.guidance > 1 else 1)
    for kl_weight, forward in ((0.0, points), (0.1, 2 * points)):
        objective = ddpo(kl_weight=kl_weight)
        _, cost = gradient(objective, policy, [(batch, torch.Generator())], microbatch=4)
        assert (cost.forward, cost.backward) == (forward, points)
        assert cost.network_evaluations == forward + 2 * points


# guidance


@pytest.mark.parametrize("kind", ["lora", "all"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_guidance_mixes_the_gradients_of_both_branches(prediction: str, kind: str, policy_of: Opener) -> None:
    """D7: prediction and gradient are w times the conditional branch plus 1 - w times the unconditional one."""
    guided, _config = policy_of(f"{prediction}-{kind}-3")
    plain, _ = policy_of(f"{prediction}-{kind}-1")
    for policy in (guided, plain):
        nudge(policy)
    assert np.array_equal(guided.weights(), plain.weights())
    x = torch.randn(2, *guided.latent_shape, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, *guided.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([900, 100])
    prompts = ("three red circles", "one blue square")

    def both(policy: Policy, prompts: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        output = policy.predict(x, t, prompts)
        grads = torch.autograd.grad((weight * output).sum(), list(policy.trainable().values()), allow_unused=True)
        flat = [
            torch.zeros_like(p) if g is None else g for p, g in zip(policy.trainable().values(), grads, strict=True)
        ]
        return output.detach().double().numpy(), np.concatenate([g.double().numpy().ravel() for g in flat])

    conditional, unconditional = both(plain, prompts), both(plain, ("", ""))
    assert np.abs(conditional[0] - unconditional[0]).max() > 1e-4  # the network listens
    for mixed, c, u in zip(both(guided, prompts), conditional, unconditional, strict=True):
        assert np.linalg.norm(mixed - (3 * c - 2 * u)) <= 1e-4 * np.linalg.norm(mixed)


# the policy gradient is the slope of the expected reward

TRAJECTORIES, PARTS = 40_000, 40
FEW = 5_000  # common random numbers leave little noise in finite differences


def smooth_reward(x: Tensor) -> Tensor:
    return (2 * x[:, 0]).sin() + 0.5 * x[:, 1] - 0.2 * x.square().sum(1)


def chain(policy: ToyPolicy, start_N: Tensor, noise_NK: Tensor, prompts_N: tuple[str, ...]) -> list[Tensor]:
    """All latents of trajectories with given noise, by the kernel's functions alone."""
    latents = [start_N]
    with torch.no_grad():
        for step in range(policy.schedule.steps):
            k = torch.full((len(start_N),), step)
            output = policy.predict(latents[-1], policy.schedule.timesteps_K[k], prompts_N)
            mean = transition.mean(policy.schedule, k, latents[-1], output)
            latents.append(transition.draw(policy.schedule, k, mean, noise_NK[:, step]))
    return latents


SLOPES = {
    "noise": Sampler(steps=5, spacing="trailing"),
    "velocity, ddim": Sampler(steps=5),
    "velocity, flow_sde": Sampler(steps=5, noise=Noise(kind="flow_sde", level=0.7)),
}


@pytest.fixture(scope="module", params=SLOPES)
def slope(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A perturbed toy policy in float64, its trajectories, and central finite differences of its mean reward."""
    policy = open_toy(SLOPES[request.param], dtype=torch.float64, flow=request.param != "noise")
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        policy.perturbation.copy_(0.1 * torch.randn(policy.perturbation.shape, generator=random, dtype=torch.float64))
    start_N = torch.randn(TRAJECTORIES, 2, generator=random, dtype=torch.float64)
    noise_NK = torch.randn(TRAJECTORIES, policy.schedule.steps, 2, generator=random, dtype=torch.float64)
    prompts_N = ("left", "right") * (TRAJECTORIES // 2)
    latents = chain(policy, start_N, noise_NK, prompts_N)
    # only bins that the timestep of a noisy step falls in: others the policy gradient does not see
    noisy = policy.schedule.timesteps_K[policy.schedule.stochastic_K].tolist()
    bins = sorted({min(9, int(t * len(policy.perturbation) / 1000)) for t in noisy})
    used = torch.zeros_like(policy.perturbation)
    used[bins] = 1
    coordinates = used.flatten().nonzero().flatten().tolist()
    flat, h = policy.perturbation.data.view(-1), 1e-4
    differences = []
    for coordinate in coordinates:
        ends = []
        for sign in (1, -1):
            flat[coordinate] += sign * h
            ends.append(smooth_reward(chain(policy, start_N[:FEW], noise_NK[:FEW], prompts_N[:FEW])[-1]))
            flat[coordinate] -= sign * h
        differences.append((ends[0] - ends[1]) / (2 * h))
    return {
        "policy": policy,
        "latents": latents,
        "prompts": prompts_N,
        "coordinates": coordinates,
        "per_sample": torch.stack(differences, 1).numpy(),
    }


def reinforce(slope: dict[str, Any], objective: Ddpo, advantage_NK: Tensor) -> np.ndarray:
    """The ascent direction from `gradient`, one row for each of `PARTS` equal parts, times the number of noisy steps."""
    policy, latents = slope["policy"], torch.stack(slope["latents"], 1)
    steps = int(policy.schedule.stochastic_K.sum())
    logp = []
    with torch.no_grad():
        for step in range(steps):
            k = torch.full((len(latents),), step)
            output = policy.predict(latents[:, step], policy.schedule.timesteps_K[k], slope["prompts"])
            mean = transition.mean(policy.schedule, k, latents[:, step], output)
            logp.append(transition.log_density(policy.schedule, k, mean, latents[:, step + 1]))
    logp_NK = torch.nn.functional.pad(torch.stack(logp, 1), (0, policy.schedule.steps - steps))
    rows, size = [], len(latents) // PARTS
    for part in range(PARTS):
        which = slice(part * size, (part + 1) * size)
        batch = Transitions(
            latents_NK=latents[which],
            logp_NK=logp_NK[which],
            advantage_NK=advantage_NK[which],
            prompts_N=slope["prompts"][which],
        )
        flat = gradient_of(objective, policy, [batch], microbatch=size)
        rows.append(-steps * flat[slope["coordinates"]])
    return np.stack(rows)


def guesses(slope: dict[str, Any]) -> Tensor:
    """What the reward seems to become, from the clean latent that is predicted before each step, (N, K)."""
    policy, columns = slope["policy"], []
    with torch.no_grad():
        for step, x in enumerate(slope["latents"][:-1]):
            k = torch.full((len(x),), step)
            output = policy.predict(x, policy.schedule.timesteps_K[k], slope["prompts"])
            columns.append(smooth_reward(transition.predicted(policy.schedule, k, x, output)[0]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("clip", "at", "tolerance"),
    [
        pytest.param(None, [5], 0.2, id="score function"),
        pytest.param(0.2, [5], 0.2, id="importance"),
        pytest.param(0.2, [1, 2, 3, 4, 5], 0.1, id="previews of every step"),
        pytest.param(0.2, [2, 4, 5], 0.1, id="previews of stretches"),
    ],
)
def test_the_policy_gradient_is_the_slope_of_the_expected_reward(
    clip: float | None, at: list[int], tolerance: float, slope: dict[str, Any]
) -> None:
    """Sign, scale and direction, coordinate by coordinate in units of its standard error, with `decay` 1.

    Previews are baselines: they lower the error and leave the estimate where it was.
    """
    steps = slope["policy"].schedule.steps
    reward_N = smooth_reward(slope["latents"][-1]) - 0.1  # any constant will do
    if at == [steps]:
        credit_NK = terminal_credit(reward_N.numpy(), steps=steps)
    else:
        previews = torch.cat([guesses(slope)[:, at[:-1]], reward_N[:, None]], 1)
        credit_NK = preview_credit(previews.numpy(), at=at, steps=steps)
    advantage_NK = torch.from_numpy(returns_to_go(credit_NK, decay=1.0))
    estimates = reinforce(slope, ddpo(clip=clip, advantage_clip=1e6, per_dimension=False), advantage_NK)
    ours, ours_error = estimates.mean(0), estimates.std(0, ddof=1) / math.sqrt(PARTS)
    truth, truth_error = slope["per_sample"].mean(0), slope["per_sample"].std(0) / math.sqrt(FEW)
    error = np.hypot(ours_error, truth_error)
    assert len(truth) == (30 if slope["policy"].schedule.prediction == "epsilon" else 18)
    assert np.linalg.norm(error) < 1.3 * tolerance * np.linalg.norm(truth)  # small enough to mean something
    assert np.abs((ours - truth) / error).max() < 5
    assert np.square((ours - truth) / error).mean() < 3
    assert ours @ truth / (np.linalg.norm(ours) * np.linalg.norm(truth)) > 0.95
    assert ours @ truth / (truth @ truth) == pytest.approx(1, abs=tolerance)


def test_the_slope_holds_for_other_noise(slope: dict[str, Any]) -> None:
    """A step along it and one against it, with new trajectories, differ in mean reward by its length times theirs."""
    policy: ToyPolicy = slope["policy"]
    flat, kept = policy.perturbation.data.view(-1), policy.perturbation.detach().clone()
    direction = slope["per_sample"].mean(0)
    random = torch.Generator().manual_seed(6)
    start, noise = (torch.randn(s, generator=random, dtype=torch.float64) for s in ((20_000, 2), (20_000, 5, 2)))
    prompts = slope["prompts"][:20_000]
    ends = []
    for sign in (1, -1):
        flat[slope["coordinates"]] += sign * 0.05 * torch.from_numpy(direction / np.linalg.norm(direction))
        ends.append(smooth_reward(chain(policy, start, noise, prompts)[-1]).mean())
        policy.perturbation.data.copy_(kept)
    assert float(ends[0] - ends[1]) == pytest.approx(0.1 * np.linalg.norm(direction), rel=0.1)


# the reference


def test_the_reference_is_the_network_before_training(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    prompts = load_prompts(config.prompts).training[0].text, load_prompts(config.prompts).training[1].text
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = policy.schedule.timesteps_K[:2]
    with torch.no_grad():
        start = policy.predict(x, t, prompts)
    assert policy.predict(x, t, prompts, reference=True).equal(start)
    nudge(policy)
    with torch.no_grad():
        moved = policy.predict(x, t, prompts)
    assert (moved - start).abs().max() > 1e-3
    reference = policy.predict(x, t, prompts, reference=True)
    assert reference.equal(start)
    assert not reference.requires_grad
    with torch.no_grad():  # and asking for it leaves the policy as it was
        assert policy.predict(x, t, prompts).equal(moved)
    assert policy.predict(x, t, prompts).requires_grad


def test_the_base_is_the_network_as_it_came_wherever_the_reference_is(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name, seed=12)  # another test's reference stays as it is
    prompts = tuple(p.text for p in load_prompts(config.prompts).training[:2])
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = policy.schedule.timesteps_K[:2]
    with torch.no_grad():
        start = policy.predict(x, t, prompts)
    nudge(policy)
    assert policy.predict(x, t, prompts, base=True).equal(start)
    with torch.no_grad():
        moved = policy.predict(x, t, prompts)
    policy.set_reference(policy.weights())
    nudge(policy, seed=4)
    with torch.no_grad():
        again = policy.predict(x, t, prompts)
    for _ in range(2):
        base = policy.predict(x, t, prompts, base=True)
        assert base.equal(start) and not base.requires_grad
        assert policy.predict(x, t, prompts, reference=True).equal(moved)
        with torch.no_grad():
            assert policy.predict(x, t, prompts).equal(again)


# weights that travel, and weights on disk


def test_weights_travel(policy_name: str, policy_of: Opener) -> None:
    policy, _ = policy_of(policy_name)
    flat = policy.weights()
    assert flat.dtype == np.float32 and flat.ndim == 1
    assert len(flat) == sum(p.numel() for p in policy.trainable().values())
    other = np.random.default_rng(0).normal(size=len(flat)).astype(np.float32)
    policy.set_weights(other)
    assert np.array_equal(policy.weights(), other)
    other[:] = 0  # the policy keeps its own
    assert not np.array_equal(policy.weights(), other)
    policy.set_weights(flat)
    assert np.array_equal(policy.weights(), flat)
    with pytest.raises(UserError, match=f"expected {len(flat)} trained parameters, got {len(flat) - 1}"):
        policy.set_weights(flat[:-1])


@pytest.mark.parametrize("of", ["terms_U", "ratio"])
def test_a_loss_that_is_reduced_is_refused(of: str, policy_of: Opener) -> None:
    """It would be learned from with a wrong weight, and nobody would see."""
    policy, config = policy_of("toy")
    batch = batch_of(policy, config)
    expected = rf"expected {of} of the objective .*:Reduced to be one number for each of \d+ units, got shape \(\)"
    with pytest.raises(UserError, match=expected):
        gradient(Reduced(inner=ddpo(), of=of), policy, [(batch, torch.Generator())], microbatch=8)


@pytest.mark.parametrize(("where", "key"), [("queries", "quieries"), ("loss", "weigth")])
def test_what_a_users_objective_raises_is_told_with_its_line(where: str, key: str, policy_of: Opener) -> None:
    policy, config = policy_of("toy")
    batch = batch_of(policy, config)
    expected = rf"the objective .*:Misspelt raised KeyError: '{key}' \(test_gradient.py, line \d+\)"
    with pytest.raises(UserError, match=expected):
        gradient(Misspelt(inner=ddpo(), where=where), policy, [(batch, torch.Generator())], microbatch=8)


def test_saved_weights_come_back_bit_for_bit(policy_name: str, policy_of: Opener, tmp_path: Path) -> None:
    policy, config = policy_of(policy_name)
    nudge(policy)
    policy.save(tmp_path, policy.weights())
    other, _ = policy_of(policy_name, seed=1)
    other.load(tmp_path)
    assert np.array_equal(other.weights(), policy.weights())
    assert list(other.trainable()) == list(policy.trainable())
    block = training_blocks(config, load_prompts(config.prompts), update=0)[0]
    ours, theirs = (sample(p, block, config, version=0) for p in (policy, other))
    assert ours.latents_NK is not None and theirs.latents_NK is not None
    assert np.array_equal(ours.latents_NK, theirs.latents_NK)


def test_another_adapter_is_refused(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("epsilon-lora-1")
    policy.save(tmp_path, policy.weights())
    other, _ = policy_of("epsilon-lora-1", parameters={"targets": ["to_q"]})
    with pytest.raises(UserError, match="expected the adapter of this configuration"):
        other.load(tmp_path)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("alpha", [None, 4.0])
def test_an_adapter_loads_in_plain_diffusers(
    prediction: str, alpha: float | None, policy_of: Opener, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    policy, _ = policy_of(f"{prediction}-lora-1", parameters={"alpha": alpha})
    nudge(policy)
    policy.save(tmp_path, policy.weights())
    plain = StableDiffusionPipeline.from_pretrained(pipelines[prediction], safety_checker=None)
    same_prediction(policy, plain, expected=False)
    plain.load_lora_weights(tmp_path)
    same_prediction(policy, plain, expected=True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_all_weights_load_in_plain_diffusers(prediction: str, policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of(f"{prediction}-all-1")
    nudge(policy)
    policy.save(tmp_path, policy.weights())
    plain = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert plain.scheduler.config.prediction_type == prediction
    same_prediction(policy, plain, expected=True)


@torch.no_grad()
def same_prediction(policy: Policy, plain: StableDiffusionPipeline, *, expected: bool) -> None:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t, prompts = torch.tensor([900, 100]), ["three red circles", "one blue square"]
    states = plain.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)[0]
    theirs = plain.unet(x, t, states).sample
    same = torch.allclose(policy.predict(x, t, prompts), theirs, atol=1e-5, rtol=1e-4)
    assert same == expected


def test_a_toy_block_is_what_was_asked_for(policy_of: Opener) -> None:
    policy, config = policy_of("toy")
    rollouts = rolled(policy, config)
    assert isinstance(rollouts.block, Block)
    assert sorted(rollouts.block.prompts) == ["left", "right"]
    assert rollouts.latents_NK is not None and rollouts.latents_NK.shape == (6, 5, 2)
