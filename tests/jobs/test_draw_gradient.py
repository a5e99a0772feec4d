"""Two gradients of one expected reward: each is what it says, on the bundled model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from jobs import draw_gradient
from jobs.draw_gradient import advantages, path_gradient, score_gradient, settings
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.kernel import transition
from raysuite.kernel.directions import FEWEST_UNITS
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score

SMALL = {"sampler.steps": 3, "prompts.held_out": "null"}


def test_advantages_are_against_the_others() -> None:
    reward_N = np.array([0.0, 0.3, 0.9])
    others = [(0.3 + 0.9) / 2, (0.0 + 0.9) / 2, (0.0 + 0.3) / 2]
    np.testing.assert_allclose(advantages(reward_N), reward_N - others)


def test_both_are_the_gradients_of_what_they_say() -> None:
    config = settings(1, 2, **SMALL)
    policy = open_policy(config, torch.device("cpu"))
    (block,) = training_blocks(config, load_prompts(config.prompts), update=0)
    rollouts = score(sample(policy, block, config, version=0), config)
    rollouts.reward_N[:] = [0.2, 1.0]
    parameters = list(policy.trainable().values())

    x_NK, logp = torch.from_numpy(rollouts.latents_NK), torch.zeros(2)
    draws_N = torch.from_numpy(rollouts.draws_N)
    for step in range(3):
        k = torch.tensor(step)
        x = x_NK[:, step]
        output = policy.predict(x, policy.schedule.timesteps_K[k].expand(2), block.prompt_of_N, draws_N=draws_N)
        if policy.schedule.noise_K[k] > 0:
            mean = transition.mean(policy.schedule, k, x, output)
            logp = logp + transition.log_density(policy.schedule, k, mean, x_NK[:, step + 1])
    wanted = torch.autograd.grad((logp * torch.tensor([-0.8, 0.8])).mean(), parameters)
    found = path_gradient(policy, rollouts, config)
    np.testing.assert_allclose(found, wanted[0].flatten().numpy(), rtol=1e-3, atol=1e-4 * np.abs(found).max())

    found = score_gradient(policy, rollouts)
    question = policy.driver.question(policy.soft.marked(block.prompts[0]))
    with torch.no_grad():
        before = policy.soft.encoded(*question).distribution
        draws = [before.draw(label, kind="independent", spread=1.0) for label in rollouts.draws_N.tolist()]
    direction = torch.from_numpy(found).float().view_as(parameters[0]) / np.linalg.norm(found)

    def value(step: float) -> float:
        with torch.no_grad():
            parameters[0] += step * direction
            moved = policy.soft.encoded(*question).distribution
            densities = [float(moved.log_density(draw, spread=1.0)) for draw in draws]
            parameters[0] -= step * direction
        return (-0.8 * densities[0] + 0.8 * densities[1]) / 2

    slope = (value(1e-3) - value(-1e-3)) / 2e-3
    assert slope == pytest.approx(np.linalg.norm(found), rel=0.02) and slope > 1


def test_gradients_of_other_settings_are_not_taken_for_those_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"path": np.ones((8, 3)), "score": np.ones((8, 3)), "reward": np.ones(8)}
    monkeypatch.setattr(draw_gradient, "measured", lambda config: found)
    out, config = tmp_path / "g", settings(8, 2, **SMALL)
    for _ in range(2):
        assert set(draw_gradient.results(out, config)) == set(found)
    for other, mentions in ((settings(8, 4, **SMALL), "samples"), (settings(8, 2, **SMALL, seed=1), "seed")):
        with pytest.raises(UserError, match=rf"{mentions} \(.* name another --out"):
            draw_gradient.results(out, other)


@pytest.mark.slow
def test_it_says_which_of_them_needs_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["draw_gradient.py", "--out", str(tmp_path / "g"), "--units", str(FEWEST_UNITS), "--samples", "2"]
    monkeypatch.setattr(sys, "argv", [*command, *(x for n, v in SMALL.items() for x in ("--set", f"{n}={v}"))])
    draw_gradient.main()
    found = safetensors.numpy.load_file(tmp_path / "g")
    assert found["path"].shape == found["score"].shape == (FEWEST_UNITS, 16 * 4 * 64)
    monkeypatch.setattr(draw_gradient, "measured", None)  # it is there
    said = capsys.readouterr().out
    draw_gradient.main()
    assert capsys.readouterr().out == said
    first, *lines = said.splitlines()
    assert first.startswith("8 units of 2 pictures") and lines[-1].startswith("cosine of the two: ")


def test_a_signal_is_told_from_noise() -> None:
    """Units with one mean and noise of its size in one of them, ten times that in the other."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=200)
    found = {name: mean + scale * rng.normal(size=(64, 200)) for name, scale in (("path", 1.0), ("score", 10.0))} | {
        "reward": np.ones(64)
    }
    lines = draw_gradient.told(found, settings(64, 8))
    path, score = (next(line for line in lines if line.startswith(name)) for name in ("path", "score"))
    assert "a direction" in path and float(path.split("unit ")[1].split(" ")[0]) == pytest.approx(1, rel=0.2)
    assert float(score.split("unit ")[1].split(" ")[0]) == pytest.approx(0.01, rel=1)
