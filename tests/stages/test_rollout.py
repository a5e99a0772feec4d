"""Rollouts: the same coordinates give the same bits anywhere, credit from previews, and what it all cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.policy import Policy
from raysuite.kernel import transition
from raysuite.stages.prompts import evaluation_blocks, latents_kept, load_prompts, training_blocks
from raysuite.stages.rollout import check_noise, sample, score
from raysuite.stages.warm import blank, warm_learning
from raysuite.types import Block, Cost, Drawn, Preferences, Rollouts

Opener = Callable[..., tuple[Policy, RunConfig]]

ELSEWHERE = """
import hashlib
import json
import sys

import torch

from raysuite.config import validate
from raysuite.families import open_policy
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample

torch.set_num_threads(1)
for tree in json.loads(sys.stdin.read()):
    config = validate(tree)
    block = training_blocks(config, load_prompts(config.prompts), update=3)[0]
    drawn = sample(open_policy(config, torch.device("cpu")), block, config, version=0)
    arrays = (drawn.latents_NK, drawn.logp_NK, *drawn.previews_JN)
    print("digest", hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
"""


def training_block(config: RunConfig, update: int = 0) -> Block:
    return training_blocks(config, load_prompts(config.prompts), update)[0]


def evaluation_block(config: RunConfig, update: int = 0, split: str = "training") -> Block:
    return evaluation_blocks(config, load_prompts(config.prompts), update, final=False)[split][0]


def arrays(drawn: Drawn) -> list[np.ndarray]:
    return [a for a in (drawn.latents_NK, drawn.logp_NK, *drawn.previews_JN) if a is not None]


def same(first: Drawn, second: Drawn) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


# the same bits


def test_a_block_rolled_out_twice_is_the_same(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    block = training_block(config)
    first = sample(policy, block, config, version=0)
    sample(policy, training_block(config, update=1), config, version=0)  # what came between does not matter
    assert same(first, sample(policy, block, config, version=0))


@pytest.mark.slow
def test_a_block_rolled_out_elsewhere_is_the_same(run_config: Callable[..., RunConfig], policy_of: Opener) -> None:
    names = ("toy", "epsilon-lora-3", "v_prediction-all-1")
    digests = []
    for name in names:
        policy, config = policy_of(name)
        drawn = sample(policy, training_block(config, update=3), config, version=0)
        digests.append("digest " + hashlib.sha256(b"".join(a.tobytes() for a in arrays(drawn))).hexdigest())
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([run_config(name).canonical() for name in names]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert [line for line in ran.stdout.splitlines() if line.startswith("digest")] == digests


@pytest.mark.parametrize("changes", [{"seed": 1}, {"update": 1}])
def test_other_coordinates_give_other_noise(changes: dict[str, int], policy_of: Opener) -> None:
    policy, config = policy_of("toy")
    block = training_block(config)
    first = sample(policy, block, config, version=0)
    if "seed" in changes:
        other = sample(policy, block, config.model_copy(update=changes), version=0)
    else:
        other = sample(policy, dataclasses.replace(block, **changes), config, version=0)
    assert first.latents_NK is not None and other.latents_NK is not None
    assert not (first.latents_NK[:, 0] == other.latents_NK[:, 0]).any()


def test_noise_belongs_to_the_prompt_and_the_sample(policy_of: Opener) -> None:
    """Whatever block a sample is drawn in, and at whatever place in it."""
    policy, config = policy_of("toy")
    block = training_block(config)
    whole = sample(policy, block, config, version=0).latents_NK
    swapped = dataclasses.replace(block, prompts=block.prompts[::-1], prompt_ids=block.prompt_ids[::-1])
    later = dataclasses.replace(block, first_sample=2, samples_per_prompt=1)
    assert whole is not None
    assert len(np.unique(whole[:, 0], axis=0)) == len(whole)
    np.testing.assert_array_equal(sample(policy, swapped, config, version=0).latents_NK, whole[[3, 4, 5, 0, 1, 2]])
    np.testing.assert_array_equal(sample(policy, later, config, version=0).latents_NK, whole[[2, 5]])


def test_evaluation_noise_is_always_the_same(policy_of: Opener) -> None:
    """It depends on neither the run's seed nor the update, and is not the noise of training."""
    policy, config = policy_of("toy")
    block = evaluation_block(config)
    first = sample(policy, block, config, version=0)
    others = [
        (dataclasses.replace(block, update=7), config),
        (block, config.model_copy(update={"seed": 5})),
        (evaluation_block(config, update=9), config.model_copy(update={"seed": 5})),
    ]
    for other_block, other_config in others:
        assert same(first, sample(policy, other_block, other_config, version=3))
    reseeded = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": 1})})
    assert not same(first, sample(policy, block, reseeded, version=0))
    trained = sample(policy, dataclasses.replace(block, evaluation=False, measure_kl=False), config, version=0)
    assert not np.array_equal(first.previews_JN[-1], trained.previews_JN[-1])


# what a trajectory is


def test_trajectories_are_steps_with_their_densities(policy_name: str, policy_of: Opener) -> None:
    """Every latent and the next, scored again from the stored latents, have the stored density; the noise is new."""
    policy, config = policy_of(policy_name)
    block = training_block(config)
    drawn = sample(policy, block, config, version=4)
    steps, shape = config.sampler.steps, policy.latent_shape
    assert drawn.version == 4
    assert drawn.latents_NK is not None and drawn.latents_NK.shape == (6, steps + 1, *shape)
    assert drawn.logp_NK is not None and drawn.logp_NK.shape == (6, steps)
    assert drawn.latents_NK.dtype == drawn.logp_NK.dtype == np.float32
    latents = torch.from_numpy(drawn.latents_NK)
    for step in range(steps):
        k = torch.full((6,), step)
        with torch.no_grad():
            output = policy.predict(latents[:, step], policy.schedule.timesteps_K[k], block.prompt_of_N)
        mean = transition.mean(policy.schedule, k, latents[:, step], output)
        if not policy.schedule.stochastic_K[step]:
            assert step == steps - 1 and policy_name == "toy-flow"
            np.testing.assert_array_equal(latents[:, step + 1], mean)
            assert not drawn.logp_NK[:, step].any()
            continue
        logp = transition.log_density(policy.schedule, k, mean, latents[:, step + 1])
        np.testing.assert_allclose(drawn.logp_NK[:, step], logp.numpy(), rtol=1e-5, atol=1e-4)
        z = (latents[:, step + 1] - mean) / policy.schedule.noise_K[step]
        assert 0.4 < float(z.std()) < 1.6  # 12 draws at the least
    np.testing.assert_array_equal(policy.decode(latents[:, -1]), drawn.previews_JN[-1])


def test_a_step_without_noise_has_density_0(policy_of: Opener) -> None:
    policy, config = policy_of("toy", sampler={"steps": 4, "spacing": "linspace"})
    drawn = sample(policy, training_block(config), config, version=0)
    assert drawn.logp_NK is not None and drawn.latents_NK is not None
    assert not drawn.logp_NK[:, -1].any()
    assert drawn.logp_NK[:, :-1].all()
    np.testing.assert_allclose(drawn.latents_NK[:, -1], drawn.latents_NK[:, -2], atol=1e-6)


# windows of noise


@pytest.mark.parametrize("name", ["toy-flow", "epsilon-all-3"])
@pytest.mark.parametrize("window", [(0, 2), (1, 3), (3, 5)])
def test_a_window_has_noise_and_the_rest_has_none(name: str, window: tuple[int, int], policy_of: Opener) -> None:
    """Kept are the latents around its steps and the clean one; a step's noise is that which it has without a window."""
    policy, config = policy_of(name, sampler={"steps": 5, "noise": {"level": 0.7}})
    block = dataclasses.replace(training_block(config), window=window)
    drawn, whole = (sample(policy, b, config, version=0) for b in (block, dataclasses.replace(block, window=None)))
    first, end = window
    columns = [*range(first, end + 1), *([5] if end < 5 else [])]
    assert drawn.latents_NK is not None and whole.latents_NK is not None and drawn.logp_NK is not None
    x, kept = torch.from_numpy(whole.latents_NK[:, 0]), []
    for step in range(5):
        kept.append(x)
        k = torch.full((6,), step)
        with torch.no_grad():
            output = policy.predict(x, policy.schedule.timesteps_K[k], block.prompt_of_N)
            before = torch.from_numpy(whole.latents_NK[:, step])
            noisy = policy.predict(before, policy.schedule.timesteps_K[k], block.prompt_of_N)
        schedule = policy.schedule if first <= step < end else policy.schedule.windowed((0, 0))
        z = torch.from_numpy(whole.latents_NK[:, step + 1]) - transition.mean(policy.schedule, k, before, noisy)
        x = transition.mean(schedule, k, x, output) + (z if first <= step < end else 0)
    kept.append(x)
    np.testing.assert_allclose(drawn.latents_NK, torch.stack([kept[c] for c in columns], 1), atol=2e-5)
    stochastic = policy.schedule.windowed(window).stochastic_K.numpy()
    assert (drawn.logp_NK != 0).all(0).tolist() == stochastic.tolist()
    assert not drawn.logp_NK[:, ~stochastic].any()


@pytest.mark.parametrize("objective", ["{name: trajectory_dpo, strength: 10, discount: 0.9}", "{name: sft}"])
@pytest.mark.parametrize("window", ["null", "{size: 2}", "{size: 2, first: 3}", "{size: 5}"])
def test_what_is_warmed_up_with_looks_like_rollouts(objective: str, window: str) -> None:
    """Latents of a block, however its window ends: the network is compiled for as many as are kept, and memory planned for."""
    settings = {"objective": objective, "credit": "null", "sampler.steps": "5", "sampler.window": window}
    config = load("toy-ddpo", settings)
    policy, prompts = open_policy(config, torch.device("cpu")), load_prompts(config.prompts)
    batch = blank(policy, config, prompts)
    drawn = sample(policy, training_blocks(config, prompts, 0)[0], config, version=0)
    assert isinstance(batch, Preferences) and drawn.latents_NK is not None
    kept = drawn.latents_NK.shape[1] if config.built_objective.process == "reverse" else 1
    assert batch.latents_RMK.shape[2] == kept == latents_kept(config, config.sampler.evaluated_window)
    warm_learning(policy, config, batch)


def test_samples_that_share_their_start_part_in_the_window(policy_of: Opener) -> None:
    window = {"size": 2, "first": 1, "shared_start": True}
    policy, config = policy_of("toy-flow", sampler={"steps": 5, "window": window})
    drawn = sample(policy, training_block(config), config, version=0)
    assert drawn.latents_NK is not None and drawn.latents_NK.shape[1] == 4
    by_prompt = drawn.latents_NK.reshape(2, 3, 4, 2)
    assert (by_prompt[:, :, 0] == by_prompt[:, :1, 0]).all() and (by_prompt[0, 0, 0] != by_prompt[1, 0, 0]).all()
    assert (by_prompt[:, 1:, 1] != by_prompt[:, :1, 1]).all()  # the noise of the window's first step is each one's own
    _, apart = policy_of("toy-flow", sampler={"steps": 5, "window": {**window, "shared_start": False}})
    assert same(*(sample(policy, evaluation_block(each), each, version=0) for each in (config, apart)))


def test_the_window_of_an_evaluation_is_where_its_kl_is(policy_of: Opener) -> None:
    policy, config = policy_of("toy-flow", sampler={"steps": 5, "window": {"size": 2}})
    policy.set_weights(policy.weights() + 0.05)
    block = evaluation_block(config)
    assert block.window == (0, 2)
    windowed, whole = (
        sample(policy, b, config, version=0).kl_N for b in (block, dataclasses.replace(block, window=None))
    )
    assert windowed is not None and whole is not None
    assert (windowed > 0).all() and (windowed < whole).all()


@pytest.mark.parametrize(
    ("sampler", "where"),
    [
        ({"steps": 5, "window": {"size": 1, "first": 2, "move": "progressive"}}, r"steps 4 to 4 \(sampler\.window\)"),
        ({"steps": 5, "noise": {"floor": 0.95}}, "some step"),
    ],
)
def test_steps_without_noise_are_not_learned(sampler: dict[str, Any], where: str, policy_of: Opener) -> None:
    policy, config = policy_of("toy-flow", sampler=sampler)
    with pytest.raises(UserError, match=f"expected noise in {where} for ddpo, found none"):
        check_noise(config, policy.schedule)
    policy, config = policy_of("toy-flow")
    check_noise(config, policy.schedule)


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"levels": "sampler", "draws": 6}, "expected objective.draws of at most the 5 levels of the sampler"),
        (
            {"levels": "sampler", "draws": 3, "noise_range": [0.6, 1.0]},
            "expected objective.draws of at most the 2 levels of the sampler in noise_range, got 3",
        ),
        ({"noise_range": [0.5, 0.50001]}, "expected objective.noise_range with a timestep of 1000 in it"),
    ],
)
def test_noise_levels_that_are_not_there_are_refused_before_anything_is_drawn(
    settings: dict[str, Any], mentions: str, policy_of: Opener
) -> None:
    policy, _ = policy_of("toy", sampler={"steps": 5})
    objective = {"objective": json.dumps({"name": "sft", **settings}), "credit": "null"}
    config = load("toy-ddpo", {"sampler.steps": "5", **objective})
    with pytest.raises(UserError, match=mentions):
        check_noise(config, policy.schedule)


# credit from previews


@pytest.mark.parametrize("preview_steps", [0, 1, 5])
def test_previews_pay_the_steps(preview_steps: int, policy_of: Opener) -> None:
    """Each row sums to the reward, up to each preview it sums to the preview's own reward, and steps inside a stretch earn nothing."""
    credit = {"kind": "previews", "previews": [1, 3], "preview_steps": preview_steps}
    policy, config = policy_of("toy", credit=credit, sampler={"steps": 6})
    drawn = sample(policy, training_block(config), config, version=0)
    rollouts = score(drawn, config)
    assert len(drawn.previews_JN) == 3
    red, green = (np.stack([images[:, 0, 0, c] for images in drawn.previews_JN], 1) / 255 for c in (0, 1))
    values_NJ = red - (green + 128 / 255) / 2  # the toy's pictures are flat
    assert rollouts.credit_NK is not None and rollouts.credit_NK.shape == (6, 6)
    np.testing.assert_allclose(rollouts.credit_NK.sum(1), rollouts.reward_N)
    np.testing.assert_allclose(rollouts.credit_NK.cumsum(1)[:, [0, 2, 5]], values_NJ)
    assert not rollouts.credit_NK[:, [1, 3, 4]].any()  # inside a stretch


def test_previews_change_nothing_else(policy_of: Opener) -> None:
    policy, plain = policy_of("epsilon-lora-3")
    credit = plain.credit.model_copy(update={"kind": "previews", "previews": (1, 3), "preview_steps": 2})
    previewed = plain.model_copy(update={"credit": credit})
    block = training_block(plain)
    first, second = (sample(policy, block, config, version=0) for config in (plain, previewed))
    np.testing.assert_array_equal(first.latents_NK, second.latents_NK)
    np.testing.assert_array_equal(first.logp_NK, second.logp_NK)
    np.testing.assert_array_equal(first.previews_JN[-1], second.previews_JN[-1])


def test_a_preview_is_the_clean_latent_that_is_predicted(policy_of: Opener) -> None:
    policy, config = policy_of("toy", credit={"kind": "previews", "previews": [2]})
    drawn = sample(policy, training_block(config), config, version=0)
    assert drawn.latents_NK is not None
    x, k = torch.from_numpy(drawn.latents_NK[:, 2]), torch.tensor(2)  # after two steps
    t = policy.schedule.timesteps_K[k]
    abar = policy.abar[t]  # type: ignore[attr-defined]
    with torch.no_grad():
        eps = policy.predict(x, t.expand(6), drawn.block.prompt_of_N)
    np.testing.assert_array_equal(drawn.previews_JN[0], policy.decode((x - (1 - abar).sqrt() * eps) / abar.sqrt()))


def test_a_preview_after_several_steps_is_where_the_sampler_ends_without_noise(policy_of: Opener) -> None:
    policy, config = policy_of(
        "toy-flow", sampler={"steps": 6}, credit={"kind": "previews", "previews": [2], "preview_steps": 3}
    )
    drawn = sample(policy, training_block(config), config, version=0)
    assert drawn.latents_NK is not None and policy.schedule.sigma_K1[-1] == 0
    x, schedule = torch.from_numpy(drawn.latents_NK[:, 2]), policy.schedule.windowed((0, 0))
    for k in range(2, 6):
        with torch.no_grad():
            output = policy.predict(x, schedule.timesteps_K[k].expand(6), drawn.block.prompt_of_N)
        x = transition.mean(schedule, k, x, output)
    ends, previews = policy.decode(x).astype(int), drawn.previews_JN[0].astype(int)
    assert np.abs(ends - previews).max() <= 1 < np.abs(ends - drawn.previews_JN[-1].astype(int)).max()


def test_terminal_credit_is_on_the_last_step(policy_of: Opener) -> None:
    policy, config = policy_of("toy")
    rollouts = score(sample(policy, training_block(config), config, version=0), config)
    assert rollouts.credit_NK is not None
    assert not rollouts.credit_NK[:, :-1].any()
    np.testing.assert_array_equal(rollouts.credit_NK[:, -1], rollouts.reward_N)


# costs


@pytest.mark.parametrize(
    ("name", "credit", "forward", "decoded"),
    [
        ("toy", {}, 6 * 4, 6),
        ("epsilon-lora-1", {}, 6 * 4, 6),
        ("epsilon-all-3", {}, 6 * 4 * 2, 6),
        ("toy", {"kind": "previews", "previews": [1, 2]}, 6 * 4, 6 * 3),  # decoded at once: no more predictions
        ("toy", {"kind": "previews", "previews": [1, 2], "preview_steps": 1}, 6 * (4 + 2), 6 * 3),
        ("epsilon-all-3", {"kind": "previews", "previews": [1], "preview_steps": 2}, 6 * (4 + 2) * 2, 6 * 2),
    ],
)
def test_training_costs(name: str, credit: dict[str, Any], forward: int, decoded: int, policy_of: Opener) -> None:
    """Six pictures of four steps, counted by hand, and the network agrees."""
    policy, config = policy_of(name, credit=credit)
    evaluated = Count(policy)
    drawn = sample(policy, training_block(config), config, version=0)
    evaluated.stop()
    assert drawn.cost == Cost(forward=forward, images_decoded=decoded)
    assert evaluated.points * policy.evaluations_per_prediction == forward
    rollouts = score(drawn, config)
    assert rollouts.cost == Cost(forward=forward, images_decoded=decoded, images_scored=decoded)
    assert rollouts.cost.network_evaluations == forward


@pytest.mark.parametrize(("name", "guided"), [("toy", 1), ("v_prediction-lora-3", 2)])
def test_evaluation_costs(name: str, guided: int, policy_of: Opener) -> None:
    """The KL asks the reference too; previews belong to training."""
    policy, config = policy_of(name, credit={"kind": "previews", "previews": [1]})
    block = evaluation_block(config)
    assert block.evaluation and block.measure_kl
    for measure_kl, forward in ((True, 2 * 4 * block.size * guided), (False, 4 * block.size * guided)):
        rollouts = score(sample(policy, dataclasses.replace(block, measure_kl=measure_kl), config, version=0), config)
        assert rollouts.cost == Cost(forward=forward, images_decoded=block.size, images_scored=block.size)
        assert rollouts.latents_NK is None and rollouts.credit_NK is None and rollouts.logp_NK is None
        assert (rollouts.kl_N is not None) == measure_kl
        assert rollouts.pictures is not None and len(rollouts.pictures) == min(config.evaluation.pictures, block.size)
    unseen = dataclasses.replace(block, pictures=0)  # pictures that nobody keeps do not travel
    assert score(sample(policy, unseen, config, version=0), config).pictures is None


class Count:
    """Counts the points that go through a policy, and passes them on."""

    def __init__(self, policy: Policy) -> None:
        self.points, self.policy, predict = 0, policy, policy.predict

        def counted(x_N: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            self.points += len(x_N)
            return predict(x_N, *rest, **options)

        policy.predict = counted  # type: ignore[method-assign]

    def stop(self) -> None:
        del self.policy.predict


# the KL from the reference


def test_kl_is_0_at_the_start_and_grows(policy_name: str, policy_of: Opener) -> None:
    policy, config = policy_of(policy_name)
    block = evaluation_block(config)
    start = sample(policy, block, config, version=0).kl_N
    assert start is not None and not start.any()
    flat, previous = policy.weights(), 0.0
    direction = np.random.default_rng(0).normal(size=flat.shape).astype(np.float32)
    for size in (0.02, 0.1):
        policy.set_weights(flat + size * direction)
        kl_N = sample(policy, block, config, version=0).kl_N
        assert kl_N is not None and (kl_N > previous).all()
        previous = float(kl_N.max())


def test_kl_by_arithmetic(policy_of: Opener) -> None:
    """The toy moved by a constant (0.3, 0.4), length 1/2: each step has kappa^2 / (2 sigma^2) / 4 nats, wherever it is."""
    policy, config = policy_of("toy")
    flat = policy.weights().reshape(10, 3, 2)
    flat[:, 0] = [0.3, 0.4]
    policy.set_weights(flat.ravel())
    kl_N = sample(policy, evaluation_block(config), config, version=0).kl_N
    abar = policy.abar.double()  # type: ignore[attr-defined]
    expected = 0.0
    for t, p in ((751, 501), (501, 251), (251, 1), (1, 0)):
        variance = (1 - abar[p]) / (1 - abar[t]) * (1 - abar[t] / abar[p])
        kappa = (1 - abar[p] - variance).clamp(min=0).sqrt() - (abar[p] * (1 - abar[t]) / abar[t]).sqrt()
        expected += float(kappa**2 / (2 * variance)) / 4
    np.testing.assert_allclose(kl_N, expected, rtol=1e-3)


# scoring

SEEN: list[tuple[list[str], list[Mapping[str, Any]]]] = []


def by_metadata(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
    """The number that the prompt file gives."""
    SEEN.append((list(prompts), list(metadata)))
    return [m["number"] for m in metadata]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module name under which this file's rewards are found."""
    monkeypatch.setitem(sys.modules, "rewards_of_this_test", sys.modules[__name__])
    return "rewards_of_this_test"


def test_rewards_see_prompts_and_metadata(here: str, tmp_path: Path, policy_of: Opener) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "left", "number": 2}\n{"prompt": "right", "number": 5, "note": "x"}\n')
    policy, config = policy_of(
        "toy", prompts={"training": str(file), "held_out": None}, rewards=[{"name": f"{here}:by_metadata"}]
    )
    block = training_block(config)
    rollouts = score(sample(policy, block, config, version=0), config)
    of = {"left": {"number": 2}, "right": {"number": 5, "note": "x"}}
    assert SEEN[-1] == ([p for p in block.prompts for _ in range(3)], [of[p] for p in block.prompts for _ in range(3)])
    assert rollouts.reward_N.tolist() == [of[p]["number"] for p in block.prompt_of_N]
    assert list(rollouts.scores) == [f"{here}:by_metadata"]


def test_rewards_are_weighed_and_added(policy_of: Opener) -> None:
    policy, config = policy_of(
        "toy", rewards=[{"name": "redness", "weight": 2.0}, {"name": "jpeg_compressibility", "weight": -0.5}]
    )
    rollouts = score(sample(policy, training_block(config), config, version=0), config)
    assert list(rollouts.scores) == ["redness", "jpeg_compressibility"]
    expected = 2 * rollouts.scores["redness"] - 0.5 * rollouts.scores["jpeg_compressibility"]
    np.testing.assert_allclose(rollouts.reward_N, expected)


def test_watched_rewards_are_only_evaluated(policy_of: Opener) -> None:
    policy, config = policy_of("toy", evaluation={"rewards": ["jpeg_compressibility"]})

    def scored(block: Block) -> Rollouts:
        return score(sample(policy, block, config, version=0), config)

    assert list(scored(training_block(config)).scores) == ["redness"]
    evaluated = scored(evaluation_block(config))
    assert list(evaluated.scores) == ["redness", "jpeg_compressibility"]
    np.testing.assert_array_equal(evaluated.reward_N, evaluated.scores["redness"])


def test_a_sum_of_rewards_that_is_not_finite_is_refused_with_its_terms(policy_of: Opener) -> None:
    name = "tests.stages.rewards:hundred"
    policy, config = policy_of("toy", rewards=[{"name": name, "weight": 1e308}, {"name": "jpeg_compressibility"}])
    block = training_blocks(config, load_prompts(config.prompts), update=0)[0]
    with pytest.raises(
        UserError, match=rf"expected a finite sum of rewards, got inf from 1e\+308 x {name} \(up to 100\)"
    ):
        score(sample(policy, block, config, version=0), config)
