"""Guards of whole runs in one process: what they say, where, and what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from raysuite.cluster import launch
from raysuite.errors import UserError
from raysuite.families.toy import ToyPolicy
from raysuite.kernel.guards import REMEDIES
from raysuite.results.report import summary, write_report
from raysuite.stages import checkpoint
from raysuite.stages.guards import Watch
from raysuite.stages.stop import StopRequested
from tests.stages.test_train import begin, numbers, toy

SOON = {"updates": "3", "evaluation__every": "1"}
RIGHT = "[{name: 'tests.stages.rewards:red_on_training_prompts'}]"
"""Rewards red on the training prompts ("left", "right") and blue on the held-out one ("both"), which learns red with them."""


def guard_lines(directory: Path) -> dict[tuple[str, int], float]:
    rows = (json.loads(line) for line in numbers(directory))
    return {(row["name"], row["update"]): row["value"] for row in rows if row["name"].startswith("guard/")}


def test_a_guard_warns_in_metrics_progress_and_report_and_changes_nothing_else(tmp_path: Path) -> None:
    runs = {}
    for name, limit in (("quiet", "1e9"), ("loud", "1e-9")):
        runs[name] = begin(toy(**SOON, guards__kl_limit=limit, guards__diversity="ignore"), tmp_path / name)
        runs[name].train()
    assert np.array_equal(runs["quiet"].policy.weights(), runs["loud"].policy.weights())
    assert guard_lines(tmp_path / "quiet") == {}
    assert guard_lines(tmp_path / "loud") == {("guard/kl", update): 1.0 for update in range(3)}
    kept = [line for line in numbers(tmp_path / "loud") if "guard/" not in line]
    assert kept == numbers(tmp_path / "quiet")
    (warning,) = json.loads((tmp_path / "loud" / "progress.json").read_text())["warnings"]
    assert warning.startswith("After 1 update the KL is ") and "more than 1e-09" in warning
    assert "WARNING: Guard kl: the KL was beyond its limit after 1 update and 2 more times" in summary(
        tmp_path / "loud"
    )
    assert "Guard kl" in write_report(tmp_path / "loud").read_text()
    assert "Guard" not in summary(tmp_path / "quiet")


@pytest.mark.parametrize("best", [True, False])
def test_the_best_checkpoint_on_held_out_prompts_is_kept(best: bool, tmp_path: Path) -> None:
    """The held-out reward falls from the first update on; a stop and a second part change nothing of it."""
    config = toy(
        updates="5",
        evaluation__every="1",
        rewards=RIGHT,
        learn__learning_rate="0.05",
        checkpoints="{keep: 1, best: true}" if best else "{keep: 1}",
    )
    begin(config.model_copy(update={"updates": 3}), tmp_path).train()
    run = begin(config, tmp_path)
    run.train()
    rewards = run.run.metrics()["evaluation/held_out/tests.stages.rewards:red_on_training_prompts"]
    highest = max((update for update in rewards if update), key=lambda update: rewards[update])
    assert highest < 4
    kept = [path.name for path in checkpoint.completed(tmp_path / "checkpoints")]
    assert kept == ([f"{highest:06d}"] if best else []) + ["000005"]


PALENESS = "tests.stages.rewards:paleness"


def test_a_watched_reward_that_falls_as_the_trained_one_rises_ends_the_run(tmp_path: Path) -> None:
    """On held-out prompts, where red, which is trained, costs green and blue, which are watched."""
    settings = {"updates": "12", "evaluation__every": "2", "learn__learning_rate": "0.05", "evaluation__samples": "8"}
    config = toy(
        **settings, evaluation__final_samples="8", evaluation__rewards=f"['{PALENESS}']", guards__watched="stop"
    )
    with pytest.raises(
        UserError,
        match=r"guards\.watched=stop ended the run: .* the trained reward rose by .* and tests\.stages\.rewards:paleness",
    ):
        begin(config, tmp_path).train()


def test_the_best_checkpoint_may_be_a_watched_rewards(tmp_path: Path) -> None:
    config = toy(
        updates="5",
        evaluation__every="1",
        learn__learning_rate="0.05",
        evaluation__rewards=f"['{PALENESS}']",
        checkpoints=f"{{keep: 1, best: '{PALENESS}'}}",
    )
    run = begin(config, tmp_path)
    run.train()
    scores = run.run.metrics()[f"evaluation/held_out/{PALENESS}"]
    highest = max((update for update in scores if update), key=lambda update: scores[update])
    assert highest < 4  # and the trained reward is highest at the end
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")] == [f"{highest:06d}", "000005"]


@pytest.mark.parametrize(("nats", "warns"), [(7.9, False), (8.1, True)])
def test_by_default_the_kl_may_be_2_nats_for_each_number_of_a_latent(nats: float, warns: bool, tmp_path: Path) -> None:
    config = toy(guards__held_out="ignore")
    run = begin(config, tmp_path).run
    Watch(config, run, latent_numbers=4).after_evaluation(1, {"evaluation/kl": nats})
    assert ("guard/kl" in run.metrics()) == warns


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"guards__kl": "stop", "guards__kl_limit": "1e-9"},
            r"guards\.kl=stop ended the run: after 2 updates the KL is",
        ),
        (
            {
                "guards__diversity": "stop",
                "guards__diversity_share": "0.98",
                "learn__learning_rate": "0.5",
                "guards__kl": "ignore",
            },
            r"guards\.diversity=stop ended the run: after \d updates pictures of one prompt differ by",
        ),
    ],
    ids=["kl", "diversity"],
)
def test_a_guard_that_stops_leaves_the_last_good_checkpoint(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    config = toy(updates="12", evaluation__every="2", **settings)
    with pytest.raises(UserError, match=sentence) as stopped:
        begin(config, tmp_path).train()
    last = int(checkpoint.completed(tmp_path / "checkpoints")[-1].name)
    (line,) = guard_lines(tmp_path)
    assert last == line[1]  # the update before the one that the guard ended at
    assert f"Its last checkpoint is {tmp_path / 'checkpoints'}/{last:06d}; to go on" in str(stopped.value)
    with pytest.raises(UserError) as again:  # the same command: the same end
        begin(config, tmp_path).train()
    assert str(again.value) == str(stopped.value)
    assert len(guard_lines(tmp_path)) == 1
    name = line[0].removeprefix("guard/")
    begin(config.model_copy(update={"guards": config.guards.model_copy(update={name: "warn"})}), tmp_path).train()
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")][-1] == "000012"


@pytest.mark.parametrize("updates", ["2", "4"], ids=["last", "along the way"])
def test_a_guard_that_stops_is_not_passed_by_repeating_the_command_after_a_signal(tmp_path: Path, updates: str) -> None:
    """The signal comes in the evaluation that the guard would have ended the run after, and leaves a checkpoint of its policy."""
    config = toy(updates=updates, evaluation__every="2", guards__kl="stop", guards__kl_limit="1e-9")
    run = begin(config, tmp_path)

    def signalled() -> None:
        if run.state.updates == 2:
            raise StopRequested("nobody")

    run.check = signalled
    with pytest.raises(UserError, match="stopped by nobody after 2 updates"):
        run.train()
    for _ in range(2):
        with pytest.raises(UserError, match=r"guards\.kl=stop ended the run: after 2 updates"):
            begin(config, tmp_path).train()
        assert not launch.finished(config, tmp_path)
    begin(config.model_copy(update={"guards": config.guards.model_copy(update={"kl": "warn"})}), tmp_path).train()


def test_held_out_prompts_that_get_worse_are_noticed(tmp_path: Path) -> None:
    settings = {"learn__learning_rate": "0.05", "updates": "12", "evaluation__every": "4", "evaluation__samples": "8"}
    config = toy(rewards=RIGHT, guards__held_out="stop", evaluation__final_samples="8", **settings)
    with pytest.raises(UserError, match=r"guards\.held_out=stop.*does not carry over"):
        begin(config, tmp_path).train()


@pytest.mark.parametrize(("staleness", "says"), [("0", True), ("1", False)])
def test_a_ratio_off_one_counts_only_for_rollouts_of_the_policy_itself(
    tmp_path: Path, staleness: str, says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = begin(toy(**SOON, rollouts__staleness=staleness, guards__diversity="ignore"), tmp_path)
    training.resume()
    training.watch.after_update(1, {"learn/ratio": 1.02, "learn/clipped_at_first": 0.0, "train/reward": 1.0})
    assert (guard_lines(tmp_path) == {("guard/ratio", 1): 1.0}) is says
    assert bool(training.watch.warnings) is says


def test_a_learner_that_computes_other_densities_than_rollouts_is_noticed_by_what_is_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By so little that the mean ratio says nothing: clips are as narrow as 1e-4 where densities are taken per dimension."""
    config = toy(**SOON, guards__diversity="ignore", objective="{name: ddpo, clip: 1.0e-4, advantage_clip: 5.0}")
    begin(config, tmp_path / "right").train()
    assert guard_lines(tmp_path / "right") == {}
    predict = ToyPolicy.predict

    def off(self: ToyPolicy, *args: Any, **options: Any) -> Tensor:
        return predict(self, *args, **options) + (1e-3 if torch.is_grad_enabled() else 0.0)

    monkeypatch.setattr(ToyPolicy, "predict", off)
    training = begin(config, tmp_path / "off")
    training.train()
    told = training.run.metrics()
    assert max(abs(ratio - 1) for ratio in told["learn/ratio"].values()) < config.guards.ratio_tolerance
    assert min(told["learn/clipped_at_first"].values()) > 0.1
    assert guard_lines(tmp_path / "off") == {("guard/ratio", update): 1.0 for update in range(3)}


@pytest.mark.parametrize("name", REMEDIES)
def test_every_guard_can_be_told_to_be_silent(name: str, tmp_path: Path) -> None:
    for reaction in ("ignore", "warn"):
        directory = tmp_path / reaction
        watch = begin(toy(**SOON, **{f"guards__{name}": reaction}), directory).watch
        watch._react(1, {name: "said"})
        assert guard_lines(directory) == ({} if reaction == "ignore" else {(f"guard/{name}", 0): 1.0})
        assert bool(watch.warnings) is (reaction == "warn")


def test_diversity_is_measured_where_a_prompt_has_several_pictures(tmp_path: Path) -> None:
    training = begin(toy(**SOON, evaluation__samples="1"), tmp_path)
    training.train()
    found = training.run.metrics()
    assert sorted(found["train/diversity"]) == [0, 1, 2]
    assert sorted(found["evaluation/diversity/held_out"]) == sorted(found["evaluation/diversity/training"]) == [0, 3]
    assert all(0 < value < 255 for value in found["train/diversity"].values())


def test_rewards_that_tell_no_pictures_apart_are_said(tmp_path: Path) -> None:
    """Redness of "right" is learned from; "left" has equal rewards, and is counted; where most have, a guard says so."""
    half = begin(toy(updates="1", rewards="[{name: 'tests.cluster.rewards:blind_on_left'}]"), tmp_path / "half")
    half.train()
    told = {name: values[0] for name, values in half.run.metrics().items()}
    assert told["train/groups"] == 2 and told["train/groups_without_spread"] == 1 and "guard/spread" not in told
    none = begin(toy(updates="1", rewards="[{name: 'tests.stages.rewards:equal_but_for_rounding'}]"), tmp_path / "none")
    before = none.policy.weights()
    none.train()
    assert guard_lines(tmp_path / "none") == {("guard/spread", 0): 1.0}
    assert "2 of 2 prompts had equal rewards: there is nothing to learn from them" in none.watch.warnings["spread"]
    assert np.abs(none.policy.weights() - before).max() < 1e-6  # weight decay of weights that are 0


def test_a_change_is_that_of_the_weighted_sum_and_prompts_are_what_differs(tmp_path: Path) -> None:
    def rows(gains: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
        return [
            {"split": "training", "prompt": prompt, "sample": sample, "reward": reward, "value": value}
            for prompt, by_reward in gains.items()
            for reward, value in by_reward.items()
            for sample in range(8)
        ]

    before = rows({prompt: {"a": 0.0, "b": 0.0, "other": 0.0} for prompt in ("left", "right")})
    after = rows({"left": {"a": 1.0, "b": 1.0, "other": 9.0}, "right": {"a": 3.0, "b": 1.0, "other": 9.0}})
    changes = begin(toy(), tmp_path).watch._changes(4, (before, after), {"a": 2.0, "b": -1.0})
    found = changes["training"]
    assert (found.low, found.estimate, found.high) == (1.0, 3.0, 5.0)  # both that are drawn may be one prompt


def test_guards_look_at_held_out_prompts_where_there_are_any(tmp_path: Path) -> None:
    """On them alone the watched reward falls, and pictures become alike."""
    config = toy(evaluation__rewards=f"['{PALENESS}']", guards__held_out="ignore")
    training, trained = begin(config, tmp_path), config.rewards[0].name
    (tmp_path / "scores").mkdir(exist_ok=True)
    for update, change in ((0, 0.0), (4, 1.0)):
        rows = [
            {"split": split, "prompt": str(prompt), "sample": 0, "reward": reward, "value": change * sign}
            for split, fall in (("training", 0.0), ("held_out", -1.0))
            for reward, sign in ((trained, 1.0), (PALENESS, fall))
            for prompt in range(4)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores" / f"{update:06d}.parquet")
    names = [f"evaluation/diversity/{split}" for split in ("held_out", "training")]
    training.run.log(0, dict.fromkeys(names, 10.0))
    training.watch.after_evaluation(4, dict(zip(names, (1.0, 10.0), strict=True)))
    assert set(guard_lines(tmp_path)) == {("guard/watched", 3), ("guard/diversity", 3)}


def test_replayed_rollouts_have_ratios_of_their_own(tmp_path: Path) -> None:
    config = toy(guards__diversity="ignore")
    run = begin(config, tmp_path).run
    replayed = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"replay": "elsewhere"})})
    Watch(replayed, run, latent_numbers=4).after_update(1, {"learn/ratio": 1.02, "learn/clipped_at_first": 0.0})
    assert guard_lines(tmp_path) == {}
