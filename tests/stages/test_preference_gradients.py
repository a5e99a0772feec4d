"""Every objective on every family: at the reference, in any microbatch, and with another reference."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from raysuite.config import TOYS, RunConfig
from raysuite.errors import UserError
from raysuite.families import Policy
from raysuite.families.stable_diffusion import StableDiffusionPolicy
from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.kernel.objectives.cal_dpo import CalDpo
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.objectives.diffusion_dpo import DiffusionDpo
from raysuite.kernel.objectives.dmpo import Dmpo
from raysuite.kernel.objectives.dspo import Dspo
from raysuite.kernel.objectives.forward_rl import ForwardRl
from raysuite.kernel.objectives.sft import Sft
from raysuite.kernel.objectives.trajectory_dpo import TrajectoryDpo
from raysuite.stages.learn import Batch, gradient
from raysuite.types import Preferences, Transitions

Opener = Callable[..., tuple[Policy, RunConfig]]

MADE: dict[str, Objective[Any]] = {
    "ddpo": Ddpo(clip=0.1, advantage_clip=5.0),
    "trajectory_dpo": TrajectoryDpo(strength=5.0, discount=0.8),
    "diffusion_dpo": DiffusionDpo(beta=50.0, draws=2),
    "dspo": Dspo(beta=0.5, draws=2),
    "dmpo": Dmpo(beta=50.0, draws=2),
    "cal_dpo": CalDpo(beta=50.0, share=0.1, draws=2),
    "sft": Sft(draws=2),
    "forward_rl": ForwardRl(contrast=1.0, advantage_limit=2.0, draws=2),
}
PROMPTS = dict.fromkeys(TOYS, ("left", "right", "both"))
STEPS = 4

each = pytest.mark.parametrize("name", OBJECTIVES)


def batch_for(objective: Objective[Any], policy: Policy, policy_name: str) -> Batch:
    """Three random trajectories or pairs of them."""
    prompts = PROMPTS.get(policy_name, ("one red circle", "two blue squares", "three green triangles"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 2, STEPS + 1, *policy.latent_shape, generator=generator)
    if objective.consumes == "preferences":
        return Preferences(latents_RMK=latents, prompts_R=prompts)
    return Transitions(
        latents_NK=latents[:, 0],
        logp_NK=torch.zeros(3, STEPS),
        advantage_NK=torch.randn(3, STEPS, generator=generator),
        prompts_N=prompts,
    )


def taken(
    objective: Objective[Any], policy: Policy, batch: Batch, microbatch: int
) -> tuple[np.ndarray, dict[str, float]]:
    for p in policy.trainable().values():
        p.grad = None
    metrics, _ = gradient(objective, policy, [(batch, torch.Generator().manual_seed(0))], microbatch=microbatch)
    grads = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in policy.trainable().values()]
    return torch.cat(grads).numpy().astype(float), metrics


def nudge(policy: Policy, size: float = 0.05) -> None:
    weights = policy.weights()
    policy.set_weights(weights + size * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32))


def test_every_objective_is_tested() -> None:
    assert MADE.keys() == OBJECTIVES.keys()
    assert all(type(made) is OBJECTIVES[name] for name, made in MADE.items())


@pytest.mark.parametrize("name", ["trajectory_dpo", "diffusion_dpo"])
def test_the_first_loss_is_log_2(name: str, policy_name: str, policy_of: Opener) -> None:
    """Policy and reference agree to the bit, whatever the family."""
    policy, _ = policy_of(policy_name)
    _, metrics = taken(MADE[name], policy, batch_for(MADE[name], policy, policy_name), microbatch=64)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["reward_margin"] == 0 and metrics["reward_accuracy"] == 0.5


def same_in(microbatches: tuple[int, ...], objective: Objective[Any], policy: Policy, policy_name: str) -> None:
    nudge(policy)
    batch = batch_for(objective, policy, policy_name)
    whole, metrics = taken(objective, policy, batch, microbatch=1000)
    assert np.linalg.norm(whole) > 0
    for microbatch in microbatches:
        split, others = taken(objective, policy, batch, microbatch=microbatch)
        assert np.linalg.norm(split - whole) <= 1e-4 * np.linalg.norm(whole)
        assert others == pytest.approx(metrics, rel=1e-3, abs=1e-5)


@each
@pytest.mark.parametrize("toy", TOYS)
def test_any_microbatch_gives_the_same_gradient(name: str, toy: str, policy_of: Opener) -> None:
    """Also one that is smaller than a unit: a pair of trajectories has 8 points here, or 6 of the flow model."""
    policy, _ = policy_of(toy)
    same_in((1, 2, 3, 5, 8), MADE[name], policy, toy)


@each
@pytest.mark.parametrize("microbatch", [3, 1000])
def test_who_has_nothing_to_learn_calls_the_network_as_the_others_do(
    name: str, microbatch: int, policy_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often, in the same order, guided or not: each call gathers what learners share (`cluster.shard`)."""
    policy, _ = policy_of("toy")
    batch, predict = batch_for(MADE[name], policy, "toy"), policy.predict
    calls: list[tuple[bool, bool, bool]] = []

    def counted(*args: Any, reference: bool = False, base: bool = False, guided: bool = True, **others: Any) -> Any:
        calls.append((reference, base, guided))
        return predict(*args, reference=reference, base=base, guided=guided, **others)

    monkeypatch.setattr(policy, "predict", counted)
    largest: list[int] = []

    def noted(rounds: int) -> int:
        largest.append(rounds)
        return rounds

    gradient(MADE[name], policy, [(batch, torch.Generator())], microbatch=microbatch, most=noted)
    found, calls = calls, []
    told = iter(largest)
    gradient(MADE[name], policy, [], microbatch=microbatch, total=lambda _: 1, most=lambda _: next(told))
    assert found == calls and found


def test_the_base_model_is_asked_beside_the_old_policy(policy_of: Opener) -> None:
    """One pass more, and the same gradient in any microbatches; towards the base model, once the old policy has left it."""
    policy, _ = policy_of("epsilon-lora-3", seed=13)
    start = policy.weights()
    held = ForwardRl(contrast=1.0, advantage_limit=2.0, draws=2, base_weight=50.0)
    policy.set_weights(start + 0.05 * np.random.default_rng(5).normal(size=start.shape).astype(np.float32))
    policy.set_reference(policy.weights())
    same_in((1, 4), held, policy, "epsilon-lora-3")
    batch = batch_for(held, policy, "epsilon-lora-3")
    found, metrics = taken(held, policy, batch, microbatch=64)
    _, cost = gradient(held, policy, [(batch, torch.Generator())], microbatch=64)
    assert (cost.forward, cost.backward) == (3 * 6, 6)
    assert metrics["base_distance"] > 0 and metrics["old_distance"] > 0
    moved = policy.weights()
    policy.set_weights(moved - 1e-3 * (found / np.linalg.norm(found)).astype(np.float32))
    assert taken(held, policy, batch, microbatch=64)[1]["base_distance"] < metrics["base_distance"]


AT_THE_REFERENCE: dict[str, tuple[Objective[Any], Objective[Any], float]] = {
    "Q1: a share of fine-tuning": (Dspo(beta=0.5, draws=2), Sft(draws=2), 1 - 0.5 / 2),
    "Q1: turned round beyond 2": (Dspo(beta=3.0, draws=2), Sft(draws=2), 1 - 3 / 2),
    "Q1: nothing at 2": (Dspo(beta=2.0, draws=2), Sft(draws=2), 0.0),
    "Q2: half of DPO": (Dspo(beta=50.0, variant="released_sdxl"), DiffusionDpo(beta=50.0), 0.5),
    "C3: DPO without calibration": (CalDpo(beta=50.0, share=0.1, weight=0.0), DiffusionDpo(beta=50.0), 1.0),
    "IPO: twice DPO": (DiffusionDpo(beta=50.0, link="ipo"), DiffusionDpo(beta=50.0), 2.0),
    "hinge: twice DPO": (DiffusionDpo(beta=50.0, link="hinge"), DiffusionDpo(beta=50.0), 2.0),
    "smoothing: less of DPO": (DiffusionDpo(beta=50.0, label_smoothing=0.1), DiffusionDpo(beta=50.0), 0.8),
    "strength": (TrajectoryDpo(strength=7.0, discount=0.8), TrajectoryDpo(strength=1.0, discount=0.8), 7.0),
}


@pytest.mark.parametrize("claim", AT_THE_REFERENCE)
@pytest.mark.parametrize("on", ["toy", "toy-flow", "epsilon-all-3", "v_prediction-lora-3"])
def test_gradients_at_the_reference_are_multiples_of_each_other(claim: str, on: str, policy_of: Opener) -> None:
    """The same pairs, noise and timesteps; a network's weights that are also the reference's."""
    policy, _ = policy_of(on, seed=11)
    nudge(policy)
    policy.set_reference(policy.weights())
    one, other, factor = AT_THE_REFERENCE[claim]
    batch = batch_for(one, policy, on)
    found, expected = (taken(objective, policy, batch, microbatch=64)[0] for objective in (one, other))
    assert np.linalg.norm(found - factor * expected) <= 1e-4 * np.linalg.norm(expected)


def test_losses_at_the_reference(policy_name: str, policy_of: Opener) -> None:
    """What the formulas say where both logit and implicit rewards are 0; DSPO is then fine-tuning on the preferred."""
    policy, _ = policy_of(policy_name)

    def at(objective: Objective[Any]) -> dict[str, float]:
        return taken(objective, policy, batch_for(objective, policy, policy_name), microbatch=64)[1]

    assert at(DiffusionDpo(beta=9.0, link="ipo"))["loss"] == 0.25
    assert at(DiffusionDpo(beta=9.0, link="hinge", label_smoothing=0.2))["loss"] == pytest.approx(1)
    assert at(Dspo(beta=9.0, variant="released_sdxl"))["loss"] == 0.25
    error = at(Sft())["loss"]
    assert at(Dspo(beta=0.7))["loss"] == pytest.approx(error, rel=1e-6)
    # with one pair a goal of share beta / 2 m_ref on either side: log 2 + 2 weight goal^2
    objective = CalDpo(beta=4.0, share=0.3, weight=0.6)
    whole = batch_for(objective, policy, policy_name)
    assert isinstance(whole, Preferences)
    pair = Preferences(latents_RMK=whole.latents_RMK[:1], prompts_R=whole.prompts_R[:1])
    error = taken(Sft(), policy, pair, microbatch=64)[1]["loss"]
    loss = taken(objective, policy, pair, microbatch=64)[1]["loss"]
    assert loss == pytest.approx(math.log(2) + 2 * 0.6 * (0.3 * 2 * error) ** 2, rel=1e-5)


@each
def test_any_microbatch_on_every_policy(name: str, policy_name: str, policy_of: Opener) -> None:
    policy, _ = policy_of(policy_name)
    same_in((5,), MADE[name], policy, policy_name)


@pytest.mark.parametrize(
    "objective",
    [TrajectoryDpo(strength=5.0, discount=0.8, winner_margin=0.9), DiffusionDpo(beta=50.0, draws=9, winner_margin=0.9)],
)
def test_the_safeguard_does_not_depend_on_the_microbatch(objective: Any, policy_of: Opener) -> None:
    """Its scale is one a pair, where the released code has one for a whole microbatch."""
    policy, _ = policy_of("toy")
    same_in((1, 4), objective, policy, "toy")


def test_units_larger_than_a_microbatch_cost_one_pass_more(policy_of: Opener) -> None:
    policy, _ = policy_of("toy")
    objective = MADE["trajectory_dpo"]
    batch = batch_for(objective, policy, "toy")
    points = 3 * 2 * STEPS
    for microbatch, passes in ((8, 2), (7, 3)):
        _, cost = gradient(objective, policy, [(batch, torch.Generator())], microbatch=microbatch)
        assert (cost.forward, cost.backward) == (passes * points, points)


def test_forward_objectives_are_not_guided(policy_of: Opener) -> None:
    """With guidance 3 a prediction of the sampler's policy costs two evaluations, one of the network alone costs one."""
    policy, _ = policy_of("epsilon-all-3")
    for name, evaluations in (("diffusion_dpo", 1), ("trajectory_dpo", 2)):
        objective = MADE[name]
        batch = batch_for(objective, policy, "epsilon-all-3")
        _, cost = gradient(objective, policy, [(batch, torch.Generator())], microbatch=64)
        points = {"diffusion_dpo": 3 * 2 * 2, "trajectory_dpo": 3 * 2 * STEPS}[name]
        assert (cost.forward, cost.backward) == (2 * evaluations * points, evaluations * points)
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    guided, plain = (policy.predict(x, t, ["one red circle"], guided=g) for g in (True, False))
    empty = policy.predict(x, t, [""], guided=False)
    torch.testing.assert_close(guided, empty + 3 * (plain - empty), rtol=1e-4, atol=1e-5)


def test_the_reference_can_follow_the_policy(policy_name: str, policy_of: Opener) -> None:
    policy, _ = policy_of(policy_name, seed=7)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500, 20])
    prompts = PROMPTS.get(policy_name, ("one red circle", "two blue squares"))[:2]
    nudge(policy)
    weights = policy.weights()
    policy.set_reference(weights)
    assert np.array_equal(policy.weights(), weights)
    with torch.no_grad():
        own, reference = (policy.predict(x, t, prompts, reference=r) for r in (False, True))
    assert torch.equal(own, reference)
    nudge(policy)
    with torch.no_grad():
        moved, stayed = (policy.predict(x, t, prompts, reference=r) for r in (False, True))
    assert torch.equal(stayed, reference) and not torch.equal(moved, own)
    moving = policy.predict(x, t, prompts)
    kept = policy.predict(x, t, prompts, reference=True)  # between a forward pass and its backward pass
    assert torch.equal(kept, reference) and not kept.requires_grad
    moving.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trainable().values())
    interrupted = [p.grad for p in policy.trainable().values()]
    for p in policy.trainable().values():
        p.grad = None
    policy.predict(x, t, prompts).sum().backward()
    for p, expected in zip(policy.trainable().values(), interrupted, strict=True):
        assert (p.grad is None and expected is None) or torch.equal(p.grad, expected)
    before = policy.weights()
    with pytest.raises((RuntimeError, UserError)):
        policy.predict(x[:, :1], t, prompts, reference=True)  # a shape that no network takes
    assert np.array_equal(policy.weights(), before)
    with torch.no_grad():
        assert torch.equal(policy.predict(x, t, prompts), moved)


def test_a_short_array_is_no_reference(policy_name: str, policy_of: Opener) -> None:
    policy, _ = policy_of(policy_name)
    with pytest.raises(UserError, match="trained parameters, got"):
        policy.set_reference(policy.weights()[:-1])


@pytest.mark.parametrize("kind", ["lora", "all"])
def test_in_half_precision_policy_and_reference_agree_to_the_bit(
    kind: str, policy_of: Opener, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """As loaded, and after it was set. The weights, norms among them, are such as bfloat16 cannot hold."""
    shutil.copytree(pipelines["epsilon"], tmp_path / "pipeline")
    file = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    rough = {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in safetensors.torch.load_file(file).items()
    }
    safetensors.torch.save_file(rough, file, metadata={"format": "pt"})
    policy, _ = policy_of(
        f"epsilon-{kind}-1", model={"path": str(tmp_path / "pipeline"), "precision": "bfloat16"}, seed=12
    )
    x = torch.randn(2, *policy.latent_shape, generator=generator)
    outputs = []
    for moved in (False, True):
        if moved:
            nudge(policy)
            policy.set_reference(policy.weights())
        with torch.no_grad():
            own, reference = (
                policy.predict(x, torch.tensor([500, 20]), ["one red circle", "two blue squares"], reference=r)
                for r in (False, True)
            )
        assert torch.equal(own, reference)
        outputs.append(own)
    assert not torch.equal(*outputs)


def test_lora_needs_no_second_network(policy_of: Opener) -> None:
    policy, _ = policy_of("epsilon-lora-1", seed=8)
    assert isinstance(policy, StableDiffusionPolicy)
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    seen = []
    hook = policy.trained.network.register_forward_hook(lambda module, *rest: seen.append(module))
    policy.predict(x, t, ["one red circle"], reference=True)
    policy.set_reference(policy.weights())
    policy.predict(x, t, ["one red circle"], reference=True)
    hook.remove()
    assert seen == [policy.trained.network] * 2


@pytest.mark.parametrize("name", [name for name, made in MADE.items() if made.consumes == "preferences"])
def test_learning_makes_the_preferred_likelier(name: str, policy_of: Opener) -> None:
    """Toy pairs that differ in their first axis, 60 steps: the implicit reward tells them apart, or the denoising error of the
    preferred ones falls."""
    policy, _ = policy_of("toy", seed=9)
    objective, generator = MADE[name], torch.Generator().manual_seed(1)
    clean = torch.randn(64, 2, 1, 2, generator=generator) * 0.3
    clean[:, 0, :, 0] += 1
    clean[:, 1, :, 0] -= 1
    path = torch.linspace(0, 1, STEPS + 1)[:, None]
    noise = torch.randn(64, 2, 1, 2, generator=generator)
    latents = path * clean + (1 - path**2).sqrt() * noise
    batch = Preferences(latents_RMK=latents, prompts_R=("both",) * 64)
    optimizer = torch.optim.Adam(policy.trainable().values(), lr=0.01)
    history = []
    for step in range(60):
        optimizer.zero_grad()
        metrics, _ = gradient(objective, policy, [(batch, torch.Generator().manual_seed(step))], microbatch=1000)
        optimizer.step()
        history.append(metrics)
    first, last = ({key: np.mean([m[key] for m in part]) for key in history[0]} for part in (history[:5], history[-5:]))
    if name in ("trajectory_dpo", "diffusion_dpo", "dmpo", "cal_dpo"):
        assert last["reward_accuracy"] > 0.7
        assert last["reward_margin"] > first["reward_margin"] + 0.1
    else:
        assert last["loss"] < 0.97 * first["loss"]
