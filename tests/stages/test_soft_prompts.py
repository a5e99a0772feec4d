"""Runs that train a distribution of soft prompts, in one process, and what is made of them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from raysuite.cli import main
from raysuite.config import RunConfig, validate
from raysuite.errors import UserError
from raysuite.families.soft_prompts import Share
from raysuite.kernel.diversity import likeness
from raysuite.rewards.features import features
from raysuite.stages import preference_set
from raysuite.stages.files import RunDirectory
from raysuite.stages.plan import plan
from raysuite.stages.soft_prompts import (
    Distribution,
    beside_real,
    embeddings,
    measured,
    open_distribution,
    pictures,
    spreads,
)
from raysuite.stages.stored import check_replay
from raysuite.stages.train import Training
from raysuite.types import Block, Preferences
from tests.families.conftest import settings_of
from tests.stages.worker import begin

SMALL = {"count": 3, "tokens": 2, "orthogonality": 0.1, "scale": 0.5}


@pytest.fixture(scope="module")
def config_of(pipelines: dict[str, Path]) -> Callable[..., RunConfig]:
    def make(name: str = "ddpo", **changes: Any) -> RunConfig:
        prompts = {**SMALL, **changes.pop("prompts", {})}
        tree: dict[str, Any] = {
            "updates": 2,
            "model": {"path": str(pipelines["epsilon"])},
            "sampler": {"steps": 2},
            "parameters": {"kind": "prompts", "prompts": prompts},
            "rewards": [{"name": "redness"}],
            "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 1},
            "objective": settings_of(name),
            "learn": {"learning_rate": 0.01, "microbatch": 4, "minibatches": 2},
            "evaluation": {"prompts": 2, "final_samples": 2, "every": 2},
            "checkpoints": {"every": 1},
        }
        return validate({**tree, **changes})

    return make


@pytest.fixture(scope="module")
def trained(config_of: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A whole run."""
    directory = tmp_path_factory.mktemp("trained")
    training = begin(config_of(rollouts={"prompts": 2, "samples": 4, "prompts_per_block": 1, "keep": True}), directory)
    training.train()
    return training


def numbers(directory: Path) -> list[str]:
    return sorted((directory / "metrics.jsonl").read_text().splitlines())


def test_a_run_learns_prompts_alone_and_begins_at_its_reference(trained: Training) -> None:
    metrics = trained.run.metrics()
    assert metrics["learn/ratio"] == {0: 1.0, 1: 1.0}
    assert metrics["evaluation/kl"][0] == 0 and metrics["evaluation/kl"][2] > 0
    spread = metrics["learn/prompt_spread"]
    assert spread[0] == pytest.approx(1, abs=0.1) and spread[0] != spread[1]
    assert 0 < metrics["learn/orthogonality"][0] <= 1


def test_stopped_and_continued_it_is_the_same_to_the_bit(
    trained: Training, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    stopped = begin(config_of(), tmp_path)
    stopped.resume()
    stopped.evaluate()
    stopped.update()
    stopped.save()
    stopped.update()  # lost
    continued = begin(config_of(), tmp_path)
    continued.train()
    assert np.array_equal(trained.policy.weights(), continued.policy.weights())
    assert numbers(trained.run.path) == numbers(tmp_path)


def test_a_spread_that_is_gone_is_told(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    training = begin(config_of(guards={"prompts": "stop"}), tmp_path)
    training.evaluate()
    start = training.policy.trainable()["context"]
    with torch.no_grad():
        start.copy_(start.mean(0) + 0.1 * (start - start.mean(0)))
    training.state.behaviour[0] = training.policy.weights()
    with pytest.raises(
        UserError, match=r"guards.prompts=stop .* the spread of the soft prompts is \d\d% .*orthogonality"
    ):
        training.update()


def test_rollouts_of_another_distribution_are_not_replayed(
    trained: Training, config_of: Callable[..., RunConfig]
) -> None:
    replay = {"prompts": 2, "samples": 4, "prompts_per_block": 1, "replay": str(trained.run.path)}
    check_replay(config_of(rollouts=replay))
    for settings in ({"prompts": {"spread": 0.5}}, {"parameters": {"kind": "lora"}}):
        with pytest.raises(UserError, match="drawn with another distribution of prompts"):
            check_replay(config_of(rollouts=replay, **settings))
    with pytest.raises(
        UserError, match=r"drawn with another distribution of prompts \(or seed, which draws where it begins\)"
    ):
        check_replay(config_of(rollouts=replay, seed=7))


def test_pictures_of_several_draws_are_not_replayed_to_be_compared(
    trained: Training, config_of: Callable[..., RunConfig]
) -> None:
    replay = {"prompts": 2, "samples": 4, "prompts_per_block": 1, "replay": str(trained.run.path)}
    with pytest.raises(UserError, match="expected pictures that are compared to share the draw of their prompt"):
        check_replay(config_of("sft", rollouts=replay))
    check_replay(config_of("sft", rollouts=replay, preferences={"across_draws": True}))


def test_the_average_of_a_distribution_is_drawn_from_where_it_is_asked_for(
    trained: Training, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    learn = {"learning_rate": 0.01, "microbatch": 4, "minibatches": 2, "ema": 0.9}
    training = begin(config_of(updates=1, learn=learn), tmp_path / "run")
    training.train()
    asked = ["--ema", "--prompt", "one red circle", "--out", str(tmp_path / "f.safetensors")]
    with pytest.raises(SystemExit) as left:
        main(["prompts", "export", str(tmp_path / "run"), *asked])
    assert left.value.code in (0, None)
    training.policy.set_weights(training.state.ema)
    expected = embeddings(Distribution(training.config, training.policy, ()), "one red circle", samples=4, seed=0)
    found = safetensors.torch.load_file(tmp_path / "f.safetensors")
    assert torch.equal(found["prompt_embeds"], expected["prompt_embeds"])
    last = open_distribution([tmp_path / "run"])
    assert not torch.equal(
        embeddings(last, "one red circle", samples=4, seed=0)["prompt_embeds"], found["prompt_embeds"]
    )
    with pytest.raises(UserError, match=r"expected an average of the weights in .*: the run has no learn.ema"):
        open_distribution([trained.run.path], ema=True)


def test_draws_without_noise_have_no_spread_to_widen(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    soft = drawn.config.parameters.prompts
    member = replace(
        drawn,
        config=drawn.config.model_copy(
            update={
                "parameters": drawn.config.parameters.model_copy(
                    update={"prompts": soft.model_copy(update={"draw": "member"})}
                )
            }
        ),
    )
    assert spreads(drawn, None) == (0, 0.5, 1, 1.5, 2) and spreads(drawn, [0, 3]) == [0, 3]
    assert spreads(member, None) == spreads(member, [1]) == (1,)
    with pytest.raises(
        UserError, match=r"expected no --spread with parameters.prompts.draw=member, .* got 0, 3: leave it out"
    ):
        spreads(member, [0, 3])


def test_seeds_and_prompts_have_noise_and_draws_of_their_own(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    first = pictures(drawn, "one red circle", samples=2, seed=0, number=1)
    assert np.array_equal(first, pictures(drawn, "one red circle", samples=2, seed=0, number=1))
    assert (first != pictures(drawn, "one red circle", samples=2, seed=1, number=0)).any((1, 2, 3)).all()


@pytest.mark.parametrize("settings", [{"placement": "after"}, {"draw": "correlated"}])
def test_distributions_that_are_drawn_from_in_other_ways_are_not_mixed(
    settings: dict[str, str], trained: Training, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    RunDirectory(tmp_path).claim(config_of(prompts=settings), ["test"])
    with pytest.raises(
        UserError, match=r"expected distributions with one parameters.prompts.placement and draw to mix"
    ):
        open_distribution([trained.run.path, tmp_path])


def test_reference_pictures_are_learned_from(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    """A set whose rankings have one member, and the empty prompt."""
    identity = {"model": "tiny", "latent_shape": (4, 8, 8), "members": 1, "steps": None, "sampler": None, "source": {}}
    preference_set.claim(tmp_path / "set", identity, ["test"])
    latents = torch.randn(3, 1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rankings = Preferences(latents_RMK=latents, prompts_R=("", "", "one red circle"))
    preference_set.write_block(tmp_path / "set", 0, rankings, rows_R=range(3), texts={}, read=3)
    preference_set.summarise(tmp_path / "set")
    config = config_of(
        "sft", preferences={"source": str(tmp_path / "set"), "members": 1}, objective={"name": "sft", "min_snr": 5.0}
    )
    training = begin(config, tmp_path / "run")
    before = training.policy.weights()
    training.train()
    metrics = training.run.metrics()
    assert metrics["train/rankings"] == {0: 2.0, 1: 2.0} and metrics["learn/loss"][0] > 0
    assert metrics["learn/prompt_spread"][0] == pytest.approx(1, abs=0.1)
    assert not np.array_equal(training.policy.weights(), before)


def test_no_plan_is_made_that_would_be_wrong(config_of: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"expected parameters.kind=lora or all to plan for, got prompts"):
        plan(config_of())


# afterwards


def test_the_same_sample_has_the_same_noise_for_any_spread_and_text(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    plain = pictures(drawn, "one red circle", samples=3, seed=1)
    assert plain.dtype == np.uint8 and plain.shape == (3, 32, 32, 3)
    assert np.array_equal(pictures(drawn.mixed([1.0], 1.0), "one red circle", samples=3, seed=1), plain)
    assert np.array_equal(pictures(drawn, "one red circle", samples=1, seed=1, first=2)[0], plain[2])
    assert not np.array_equal(pictures(drawn.mixed([1.0], 0.0), "one red circle", samples=3, seed=1), plain)


def test_pictures_are_drawn_with_noise_where_evaluations_have_it(
    config_of: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = []

    def noted(policy: Any, block: Block, config: RunConfig, **options: Any) -> SimpleNamespace:
        windows.append(block.window)
        rng = np.random.default_rng(len(windows))
        return SimpleNamespace(previews_JN=[rng.integers(256, size=(block.size, 8, 8, 3), dtype=np.uint8)])

    monkeypatch.setattr("raysuite.stages.soft_prompts.sample", noted)
    config = config_of(sampler={"steps": 4, "window": {"size": 2, "first": 1, "move": "random"}})
    drawn = Distribution(config, None, ())
    pictures(drawn, "one red circle", samples=2, seed=0)
    measured(drawn, ["one red circle", "two circles"], draws=2, noises=2, seed=0)
    assert windows == [(1, 3)] * 5


@pytest.mark.slow
def test_a_mixture_is_the_weighted_sum_of_draws(trained: Training) -> None:
    drawn = open_distribution([trained.run.path, trained.run.path])
    policy = drawn.policy
    question = policy.driver.question(policy.soft.marked("one red circle"))
    with torch.no_grad():
        encoded = policy.soft.encoded(*question)
        (mean,) = encoded.distribution.mean
        (whole,) = policy.soft.states(*question, encoded, [7])[0]
        drawn.mixed([0.5, 0.5], 0.0)
        torch.testing.assert_close(policy.soft.states(*question, encoded, [7])[0][0], mean)
        drawn.mixed([1.0, 0.0], 1.0)
        torch.testing.assert_close(policy.soft.states(*question, encoded, [7])[0][0], whole)
        drawn.mixed([0.5, 0.5], 1.0)
        draws = [policy.soft.states(*question, encoded, [label])[0][0] for label in range(2000)]
    deviation = torch.cat(draws).std(0)
    torch.testing.assert_close(deviation, encoded.distribution.deviation[0][0] / 2**0.5, atol=0.05, rtol=0.1)


def test_one_prompt_many_times_mixes_with_a_distribution_around_it(trained: Training) -> None:
    """Without a deviation of its own, whatever else differs between prompts: one prompt with another distribution's deviation."""
    drawn = open_distribution([trained.run.path])
    policy, (values,) = drawn.policy, drawn.values
    one = {name: value[:1].expand_as(value) for name, value in values.items()}
    question = policy.driver.question(policy.soft.marked("one red circle"))
    with torch.no_grad():
        encoded = policy.soft.encoded(*question)
        (own,), (mean,) = encoded.distribution.draw(7, kind="independent", spread=1.0), encoded.distribution.mean
        policy.soft.mixture = (Share(values, 1, 1), Share(values, -1, 0), Share(one, 1, 0))
        (state,) = policy.soft.states(*question, encoded, [7])[0]
    torch.testing.assert_close(state, encoded.distribution.states_K[0][:1] + own - mean)


def test_states_for_plain_diffusers_draw_the_same_pictures(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    found = embeddings(drawn, "one red circle", samples=2, seed=3)
    assert set(found) == {"prompt_embeds", "prompt_embeds.mean", "prompt_embeds.std"}
    policy = drawn.policy
    x, t = torch.randn(1, *policy.latent_shape), policy.schedule.timesteps_K[:1]
    network = policy.pipeline.unet
    from raysuite.stages.soft_prompts import _label

    with torch.no_grad():
        own = policy.predict(x, t, ["one red circle"], draws_N=torch.tensor([_label(3, 1)]))
        assert torch.equal(network(x, t, found["prompt_embeds"][1:], return_dict=False)[0], own)


@pytest.mark.parametrize("draw", ["independent", "correlated"])
def test_mean_and_deviation_are_those_of_the_draws(
    draw: str, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """With `start: plain`, where a draw is not what the encoders made of the soft prompts, but the plain states and what has moved."""
    training = begin(config_of(prompts={"start": "plain", "draw": draw}), tmp_path)
    with torch.no_grad():
        training.policy.trainable()["context"].mul_(2).add_(0.3)
    found = embeddings(Distribution(training.config, training.policy, ()), "one red circle", samples=3000, seed=0)
    draws, mean, deviation = (found[f"prompt_embeds{of}"] for of in ("", ".mean", ".std"))
    assert deviation.mean() > 0.02
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(draws.std(0), deviation[0], atol=0.002, rtol=0.08)


def test_a_draw_adds_what_its_spread_lets_it(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    texts = ["one red circle", "two blue squares", "three red circles"]
    wide = measured(drawn.mixed([1.0], 3.0), texts, draws=3, noises=3, seed=0)
    none = measured(drawn.mixed([1.0], 0.0), texts, draws=3, noises=3, seed=0)
    assert none["draw"].estimate == pytest.approx(0, abs=1e-6) and none["interaction"].estimate == pytest.approx(
        0, abs=1e-6
    )
    assert none["noise"].estimate > 0
    assert wide["draw"].estimate + wide["interaction"].estimate > 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("sample", ["--prompt", "one red circle", "--spread", "0,2", "--samples", "2"]),
        ("edit", ["--prompt", "one red circle", "--prompt", "two blue squares", "--samples", "2"]),
        ("mix", ["--prompt", "one red circle", "--weights", "0,1", "--spread", "1,2"]),
    ],
)
def test_pages_show_pictures(command: str, options: list[str], trained: Training, tmp_path: Path) -> None:
    runs = [str(trained.run.path)] * (2 if command == "mix" else 1)
    with pytest.raises(SystemExit) as left:
        main(["prompts", command, *runs, *options, "--out", str(tmp_path / "page.html")])
    assert left.value.code in (0, None)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png") == 4 and "one red circle" in page


def test_states_are_written(trained: Training, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(
            [
                "prompts",
                "export",
                str(trained.run.path),
                "--prompt",
                "one red circle",
                "--out",
                str(tmp_path / "f.safetensors"),
            ]
        )
    assert left.value.code in (0, None)
    assert safetensors.torch.load_file(tmp_path / "f.safetensors")["prompt_embeds"].shape[0] == 4


def test_pictures_are_set_beside_real_ones(
    trained: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = open_distribution([trained.run.path])
    same = np.concatenate(
        [pictures(drawn, "one red circle", samples=6, seed=0), pictures(drawn, "", samples=6, seed=0, number=1)]
    )
    command = [
        "prompts",
        "measure",
        str(trained.run.path),
        "--prompt",
        "one red circle",
        "--prompt",
        "",
        "--draws",
        "2",
    ]
    command += ["--noises", "2", "--samples", "6", "--neighbours", "2", "--references", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    for number, image in enumerate(same):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code in (0, None)
    density, coverage, *_ = capsys.readouterr().out.splitlines()
    expected = likeness(
        features("pixels", device=torch.device("cpu"))(same),
        features("pixels", device=torch.device("cpu"))(same),
        neighbours=2,
    )
    assert density.split()[:2] == ["density", f"{expected.density:.2f}"] and coverage.split() == ["coverage", "1.00"]
    assert "12 drawn and 12 real pictures, 2 neighbours, pixels" in density


def test_more_neighbours_than_real_pictures_are_refused(trained: Training) -> None:
    drawn = open_distribution([trained.run.path])
    with pytest.raises(
        UserError, match=r"expected more real pictures than neighbours, got 3 and 3: add pictures, or lower"
    ):
        beside_real(
            drawn,
            ["a"],
            np.zeros((3, 32, 32, 3), np.uint8),
            features("pixels", device=torch.device("cpu")),
            samples=1,
            seed=0,
            neighbours=3,
        )


def test_a_run_that_trained_something_else_is_refused(
    trained: Training, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    begin(config_of(parameters={"kind": "lora", "rank": 2}), tmp_path)
    with pytest.raises(UserError, match=r"expected a run with parameters.kind=prompts, .* trained lora: name another"):
        open_distribution([tmp_path])
    with pytest.raises(UserError, match=r"expected a checkpoint of .*, got 9: name one of them"):
        open_distribution([trained.run.path], updates=9)
