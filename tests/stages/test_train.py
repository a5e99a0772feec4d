"""Whole runs in one process: resuming, staleness, and what stops a run."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch

from raysuite.cluster import launch
from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.kernel.credit import PromptTracker, global_advantages, terminal_credit
from raysuite.stages import checkpoint
from raysuite.stages.files import TENDED_ELSEWHERE, RunDirectory, versions_of
from raysuite.stages.learn import advantages, generator_of, minibatches
from raysuite.stages.stop import StopFile, StopRequested
from raysuite.stages.train import Training
from raysuite.types import Block, Cost, Rollouts
from tests.stages.worker import begin, stop_in_the_midst, train_alone

FORWARD_RL = {"name": "forward_rl", "contrast": 1.0, "advantage_limit": 2.0, "draws": 4, "noise_range": [0.0, 1.0]}
"""Without noise in the sampler, which it does not need."""
SMALL = {"evaluation.samples": "2", "evaluation.final_samples": "2", "checkpoints.every": "1"}


def toy(**settings: str) -> RunConfig:
    return load("toy-ddpo", {**SMALL, **{path.replace("__", "."): value for path, value in settings.items()}})


def numbers(directory: Path) -> list[str]:
    return sorted((directory / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rollouts__staleness": "2"},
        {"credit__normalise": "tracked"},
        {"learn__epochs": "2"},
        {"learn__warmup": "2", "learn__decline": "cosine", "learn__decline_until": "100"},
        {"learn__ema": "0.9", "evaluation__ema": "true"},
        {"reward_scale": "running", "rewards": "[{name: redness}, {name: jpeg_compressibility}]"},
    ],
    ids=["on-policy", "stale", "tracked", "two epochs", "learning rate", "average", "running scale"],
)
def test_a_run_stopped_and_continued_equals_an_undisturbed_one_bit_for_bit(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    config = toy(**settings)
    whole = goes_on(config, tmp_path, after=3)
    ledgers = [json.loads((tmp_path / run / "ledger.json").read_text()) for run in ("whole", "stopped")]
    assert ledgers[0]["training"] == ledgers[1]["training"]
    lost = (
        Cost(**ledgers[0]["training"]).network_evaluations / config.updates
    )  # the one update that reached no checkpoint
    redone = ledgers[1]["redone"]
    assert redone["forward"] + 2 * redone["backward"] == lost and redone["seconds"] > 0
    assert not any(ledgers[0]["redone"].values())
    assert not np.array_equal(whole.policy.weights(), open_policy(config, torch.device("cpu")).weights())


@pytest.mark.parametrize(
    "beside",
    [{}, {"objective": {"kl_weight": 0.1}, "reference": {"refresh": 1}, "learn": {"ema": 0.9}}],
    ids=["alone", "beside"],
)
def test_every_family_goes_on_bit_for_bit(
    policy_name: str, beside: dict[str, Any], run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """With all weights and with a LoRA; alone, and beside a reference that follows and an average of the weights."""
    short = {"evaluation": {"samples": 2, "final_samples": 2, "prompts": 2}, "checkpoints": {"every": 1}}
    goes_on(run_config(policy_name, updates=3, **short, **beside), tmp_path, after=1)


def goes_on(config: RunConfig, directory: Path, *, after: int) -> Training:
    """An undisturbed run. One that was stopped after so many updates, in the midst of the next, ended with its weights and numbers."""
    whole = train_alone(config, directory / "whole")
    stop_in_the_midst(config, directory / "stopped", after=after)
    continued = train_alone(config, directory / "stopped")
    assert np.array_equal(whole.policy.weights(), continued.policy.weights())
    assert numbers(directory / "whole") == numbers(directory / "stopped")
    return whole


def test_every_update_learns_with_its_own_rate(tmp_path: Path) -> None:
    """AdamW's first step moves a weight by the learning rate, whatever the gradient (but for epsilon and weight decay)."""
    moved = {}
    for warmup in ("0", "3"):
        run = begin(toy(updates="1", learn__minibatches="1", learn__warmup=warmup), tmp_path / warmup)
        run.train()
        moved[warmup] = np.abs(run.policy.weights()).max()
    assert moved["0"] == pytest.approx(0.01, rel=1e-3) and moved["3"] == pytest.approx(0.0025, rel=1e-3)
    assert run.run.metrics()["learn/learning_rate"] == {0: pytest.approx(0.0025)}


def test_the_rate_rises_and_falls_from_update_to_update(tmp_path: Path) -> None:
    steps = {"learn__warmup": "1", "learn__decline": "linear", "learn__decline_until": "5"}
    run = begin(toy(updates="5", learn__learning_rate="0.01", **steps), tmp_path)
    run.train()
    expected = dict(enumerate([0.005, 0.01, 0.0075, 0.005, 0.0025]))
    assert run.run.metrics()["learn/learning_rate"] == pytest.approx(expected)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_a_long_gradient_is_cut_to_its_limit(tmp_path: Path) -> None:
    """With an epsilon of 1 AdamW's first step is nearly as long as the gradient that it gets."""
    settings = {"updates": "1", "learn__minibatches": "1", "learn__learning_rate": "1.0", "learn__epsilon": "1.0"}
    run = begin(toy(**settings, learn__max_grad_norm="0.001", learn__weight_decay="0.0"), tmp_path)
    before = run.policy.weights()
    run.train()
    assert np.linalg.norm(run.policy.weights() - before) == pytest.approx(1e-3, rel=5e-3)
    assert run.run.metrics()["learn/grad_norm"][0] > 2e-3


def test_advantages_are_normalised_over_all_blocks_and_then_discounted() -> None:
    """Prompt a has terminal rewards 0 and 2, b 10 and 20, in blocks of their own that come in another order; of 3 steps with a
    discount of 1/2 the first weighs 12/7.
    """
    weights = np.array([12, 6, 3]) / 7
    credits, prompts = {1: terminal_credit(np.array([10.0, 20]), steps=3)}, {1: ["b", "b"], 0: ["a", "a"]}
    credits[0] = terminal_credit(np.array([0.0, 2]), steps=3)

    def found(**credit: str) -> dict[int, np.ndarray]:
        settings = {f"credit__{name}": value for name, value in credit.items()}
        return advantages(toy(**settings), credits, prompts, PromptTracker.empty(size=4, minimum=1))

    signs = np.array([[-1.0], [1]])
    of_group = found(normalise="group", discount="0.5")
    for block in (0, 1):
        np.testing.assert_allclose(of_group[block], signs * weights, rtol=1e-6)
    deviation = np.std([0, 2, 10, 20])
    of_batch = found(normalise="group_mean", discount="0.5")
    np.testing.assert_allclose(of_batch[0], signs * weights / deviation, rtol=1e-6)
    np.testing.assert_allclose(of_batch[1], 5 * signs * weights / deviation, rtol=1e-6)


def test_the_decay_of_dense_credit_reaches_the_advantages() -> None:
    dense = np.array([[1.0, 2, 4], [0, 0, 0]])
    settings = {"credit__kind": "previews", "credit__previews": "[1, 2]", "credit__decay": "0.5"}
    config = toy(credit__normalise="global", credit__discount="1.0", **settings)
    found = advantages(config, {0: dense}, {0: ["a", "a"]}, PromptTracker.empty(size=4, minimum=1))
    np.testing.assert_allclose(found[0], global_advantages(np.array([[3.0, 4, 4], [0, 0, 0]])))


def test_a_running_scale_remembers_earlier_updates_and_a_batchs_does_not(tmp_path: Path) -> None:
    terms = "[{name: redness}, {name: jpeg_compressibility}]"
    kept = {}
    for scale in ("running", "batch"):
        run = begin(toy(updates="2", reward_scale=scale, rewards=terms), tmp_path / scale)
        run.train()
        kept[scale] = run.scale.state()
    pictures = 2 * run.config.rollouts.prompts * run.config.rollouts.samples
    assert kept["batch"] == {}
    assert {name: entry[0] for name, entry in kept["running"].items()} == dict.fromkeys(
        ("redness", "jpeg_compressibility"), pictures
    )


def test_the_average_follows_the_weights_and_is_what_is_evaluated(tmp_path: Path) -> None:
    """Decay 0.2 after the first update is bounded to 2 / 11 = 0.18, after the second 3 / 12 is not: 0.2 stands."""
    config = toy(updates="2", learn__ema="0.2", evaluation__ema="true", evaluation__every="1")
    run = begin(config, tmp_path / "run")
    weights = [run.policy.weights()]
    run.resume()
    run.evaluate()
    for _ in range(config.updates):
        run.update()
        run.evaluate()
        run.save()
        weights.append(run.policy.weights())
    first = 2 / 11 * weights[0] + 9 / 11 * weights[1]
    expected = 0.2 * first + 0.8 * weights[2]
    saved = open_policy(config, torch.device("cpu"))
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "000002", saved)
    assert state.ema is not None
    np.testing.assert_allclose(state.ema, expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(state.ema, run.state.ema) and np.array_equal(saved.weights(), weights[2])

    # the same evaluation of a policy that has these weights
    plain = begin(
        config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"ema": False})}),
        tmp_path / "plain",
    )
    plain.state.updates, plain.state.behaviour = 2, {2: state.ema}
    metrics, _, _ = plain.measure()
    assert metrics == {name: run.run.metrics()[name][2] for name in metrics}
    plain.state.behaviour = {2: weights[2]}
    other, _, _ = plain.measure()
    assert other["evaluation/training/redness"] != metrics["evaluation/training/redness"]


def test_terms_on_one_scale_count_by_their_weights(tmp_path: Path) -> None:
    """A term in other units learns the same once terms are scaled, and another thing where they are not; curves are as given."""
    thousand = "[{name: redness}, {name: 'tests.stages.rewards:brightness_per_thousand', weight: -1}]"
    one = "[{name: redness}, {name: 'tests.stages.rewards:brightness', weight: -1}]"
    learned, curves = {}, {}
    for scale in ("given", "batch"):
        for name, terms in {"thousand": thousand, "one": one}.items():
            # steps as long as gradients are: AdamW's own would be of one length
            steps = {"learn__epsilon": "1.0", "learn__learning_rate": "1.0"}
            run = begin(toy(updates="1", reward_scale=scale, rewards=terms, **steps), tmp_path / scale / name)
            run.train()
            learned[scale, name] = run.policy.weights()
            curves[scale, name] = run.run.metrics()["train/reward"][0]
    np.testing.assert_allclose(learned["batch", "thousand"], learned["batch", "one"], rtol=1e-4, atol=1e-6)
    apart = np.abs(learned["given", "thousand"] - learned["given", "one"]).max()
    assert apart > 0.01 * np.abs(learned["given", "one"]).max()
    assert curves["batch", "thousand"] == curves["given", "thousand"] != curves["batch", "one"]


@pytest.mark.parametrize("objective", ["ddpo", "preferences"])
def test_rewards_that_are_equal_but_for_rounding_are_so_on_one_scale(tmp_path: Path, objective: str) -> None:
    """Those of one prompt; those of the other differ."""
    terms = "[{name: 'tests.stages.rewards:all_but_equal_on_the_left'}]"
    settings = {"updates": "1", "reward_scale": "batch", "rewards": terms, "evaluation__pictures": "0"}
    if objective == "preferences":
        settings |= {"objective": "{name: sft}", "credit": "null"}
    run = begin(toy(**settings), tmp_path)
    run.resume()
    batches, told, _ = run.from_rollouts(0)
    assert (told["train/groups"], told["train/groups_without_spread"]) == (2, 1)
    if objective == "preferences":
        assert [prompt for batch in batches.values() for prompt in batch.prompts_R] == ["right"]
        assert told["train/ties"] == 1
    else:
        learned = {batch.prompts_N[0]: bool(batch.advantage_NK.any()) for batch in batches.values()}
        assert learned == {"left": False, "right": True}


class Stop:
    """Asks for a stop at the n-th time that it is looked for."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StopRequested("nobody")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="as given"),
        pytest.param(
            {"reward_scale": "running", "rewards": "[{name: redness}, {name: jpeg_compressibility}]"},
            id="running scale",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_is_told_to_stop_saves_its_last_update_and_goes_on_bit_for_bit(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    short = {"evaluation__every": "2", "checkpoints__every": "3", "evaluation__final_samples": "1"}
    config = toy(updates="3", **short, **settings)
    counting = Stop(at=0)
    whole = begin(config, tmp_path / "whole", counting)
    whole.train()
    looked, stopped_at = -counting.left, set()
    for place in [*range(1, looked, 6), looked]:  # as the run draws, learns and evaluates
        directory = tmp_path / str(place)
        with pytest.raises(UserError, match=r"stopped by nobody (after|before the first)") as stopped:
            begin(config, directory, Stop(at=place)).train()
        found = [path.name for path in checkpoint.completed(directory / "checkpoints")]
        stopped_at.add(found[-1] if found else None)
        assert f"checkpoints/{found[-1]} is the last" in str(stopped.value) if found else "before" in str(stopped.value)
        continued = begin(config, directory)
        continued.train()
        assert np.array_equal(whole.policy.weights(), continued.policy.weights())
        assert numbers(tmp_path / "whole") == numbers(directory)
        ledgers = [json.loads((run / "ledger.json").read_text()) for run in (tmp_path / "whole", directory)]
        assert all(ledgers[0][side] == ledgers[1][side] for side in ("training", "evaluation"))
    assert stopped_at == {None, "000001", "000002", "000003"}


def test_a_run_that_was_stopped_as_it_evaluated_does_so_though_somebody_else_did_meanwhile(tmp_path: Path) -> None:
    """`raysuite evaluate` writes metrics of the same policy, and neither asks the guards nor judges preferences."""
    config = toy(updates="2", evaluation__every="1")
    begin(config, tmp_path / "whole").train()
    stopped = begin(config, tmp_path / "run")
    stopped.resume()
    stopped.evaluate()
    stopped.update()
    stopped.save()  # as `stop` does
    other = begin(config, tmp_path / "run")
    other.state = checkpoint.load(tmp_path / "run" / "checkpoints" / "000001", other.policy)
    other.measure()
    begin(config, tmp_path / "run").train()
    whole, run = (json.loads((tmp_path / name / "ledger.json").read_text()) for name in ("whole", "run"))
    assert run["evaluation"] == whole["evaluation"]
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert launch.finished(config, tmp_path / "run")


def test_code_that_is_a_folder_of_a_job_has_no_version() -> None:
    assert versions_of(["torch", "no-such-package"]) == {"torch": torch.__version__, "no-such-package": "not installed"}


def test_a_request_to_stop_is_a_file(tmp_path: Path) -> None:
    with StopFile(tmp_path) as asking:
        StopFile(tmp_path).check()
        asking.request("SIGTERM")
        with pytest.raises(StopRequested, match="SIGTERM"):
            StopFile(tmp_path).check()
    StopFile(tmp_path).check()
    assert not any(tmp_path.iterdir())


def test_a_request_of_an_earlier_attempt_is_forgotten_and_one_that_comes_before_the_run_is_not(tmp_path: Path) -> None:
    """A sweep asks runs to stop whose processes are only starting."""
    config = toy(updates="2", cluster__actors="0")
    launch.claim(config, tmp_path, ["test"])
    StopFile(tmp_path).request("SIGINT")
    with pytest.raises(UserError, match="stopped by SIGINT with no update under way"):
        launch.train(config, tmp_path, placed=True)
    StopFile(tmp_path).request("SIGINT")
    launch.claim(config, tmp_path, ["test"])
    StopFile(tmp_path).check()


@pytest.mark.parametrize("how", ["file too large", "no space"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin(toy(), tmp_path / "whole")
    whole.train()
    directory = tmp_path / "full"
    training = begin(toy(), directory)
    training.resume()
    training.evaluate()
    training.update()
    training.save()
    training.update()
    before = sorted(path for path in directory.rglob("*") if path.is_file())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "no space":

        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(safetensors.numpy, "save_file", full)  # the model and the moments are written by then
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes
    try:
        with pytest.raises(UserError, match=r"could not \(.*\): .*000001 stands; make room there") as failed:
            training.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert ("No space left" if how == "no space" else "File too large") in str(failed.value)
    assert sorted(path for path in directory.rglob("*") if path.is_file()) == before
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["000001"]
    continued = begin(toy(), directory)
    continued.train()
    assert np.array_equal(whole.policy.weights(), continued.policy.weights())


def test_stale_rollouts_come_from_the_stated_version(tmp_path: Path) -> None:
    training = begin(toy(rollouts__staleness="1"), tmp_path)
    training.resume()
    versions = []
    for update in range(3):
        versions.append({r.version for r in training.collect(update)})
        training.state.updates += 1
        training.state.behaviour[update + 1] = training.policy.weights()
    assert versions == [{0}, {0}, {1}]


def test_no_rollouts_are_begun_beyond_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the third update spends, at 1,280 evaluations each; what staleness would begin before is never asked for."""
    training = begin(toy(rollouts__staleness="2", budget="3000", updates="50", evaluation__every="50"), tmp_path)
    asked, start = [], training.collector.start

    def started(blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        asked.extend(block.update for block in blocks if not block.evaluation)
        return start(blocks, weights, version)

    monkeypatch.setattr(training.collector, "start", started)
    training.train()
    assert training.state.updates == 3
    assert sorted(set(asked)) == [0, 1, 2]


def test_the_best_checkpoint_is_one_that_is_there(tmp_path: Path) -> None:
    """Turned on late: the best evaluation's checkpoint went long ago, and the best of those that are left is kept from then on."""
    settings = {"updates": "6", "evaluation__every": "1", "checkpoints__keep": "1"}
    training = begin(toy(**settings), tmp_path)
    training.train()
    for path in (tmp_path / "scores").glob("*.parquet"):
        table = pq.read_table(path)
        high = {2: 3.0, 6: 2.0}.get(int(path.stem), 0.0)  # of all that follow the sixth is the best
        values = pa.array([high] * len(table), table.schema.field("value").type)
        pq.write_table(table.set_column(table.schema.get_field_index("value"), "value", values), path)
    begin(toy(**{**settings, "updates": "8"}, checkpoints__best="true"), tmp_path).train()
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")] == ["000006", "000008"]


def test_the_old_policy_draws_what_it_is_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in DiffusionNFT, where it follows the trained one."""
    settings = {"reference.refresh": "1", "reference.decay": "0.75", "updates": "3", "sampler.eta": "0"}
    run = begin(load("toy-ddpo", {**settings, "objective": json.dumps(FORWARD_RL), "evaluation.every": "1"}), tmp_path)
    drew: list[np.ndarray] = []
    start = run.collector.start

    def started(blocks: Sequence[Block], weights: np.ndarray, version: int) -> Iterator[Rollouts]:
        if not blocks[0].evaluation:
            drew.append(weights)
        return start(blocks, weights, version)

    monkeypatch.setattr(run.collector, "start", started)
    old, policy = [], [run.policy.weights()]
    after = run.refresh_reference

    def refreshed() -> None:
        after()
        old.append(run.state.reference)
        policy.append(run.policy.weights())

    monkeypatch.setattr(run, "refresh_reference", refreshed)
    run.train()
    assert np.array_equal(drew[0], policy[0]) and len(drew) == 3
    for update in (1, 2):
        assert np.array_equal(drew[update], old[update - 1]) and not np.array_equal(drew[update], policy[update])
        follows = 0.75 * drew[update - 1] + 0.25 * policy[update]
        np.testing.assert_allclose(drew[update], follows, rtol=1e-6)


def test_passes_over_the_same_pictures_have_the_same_minibatches_in_an_order_of_their_own() -> None:
    config = toy(rollouts__prompts="16", rollouts__prompts_per_block="2", learn__minibatches="4", learn__epochs="3")
    first, *later = (minibatches(config, 5, epoch) for epoch in range(3))
    assert first == minibatches(config, 5)
    for epoch in later:
        assert epoch != first and sorted(epoch) == sorted(first)


def test_pictures_are_kept_of_as_many_prompts_as_are_asked_for_whatever_the_blocks(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("left\nright\nboth\n")
    prompts = {
        "prompts__training": str(tmp_path / "prompts.txt"),
        "prompts__held_out": "null",
        "evaluation__prompts": "3",
    }
    small = {"rollouts__prompts": "1", "learn__minibatches": "1", "evaluation__pictures": "3"}
    kept = {}
    for samples in ("2", "4"):  # of prompts as many go into a block of an evaluation
        run = begin(toy(rollouts__samples=samples, **small, **prompts), tmp_path / samples)
        run.evaluate()
        assert {path.name for path in (tmp_path / samples / "images/000000").iterdir()} == {
            f"training-{number}-0.png" for number in range(3)
        }
        kept[samples] = json.loads((tmp_path / samples / "images" / "prompts.json").read_text())
    assert kept["2"] == kept["4"] and set(kept["2"].values()) == {"left", "right", "both"}


def test_without_noise_no_kl_is_told(tmp_path: Path) -> None:
    settings = {"reference.refresh": "1", "updates": "1", "sampler.eta": "0", "objective": json.dumps(FORWARD_RL)}
    run = train_alone(load("toy-ddpo", settings), tmp_path)
    assert (
        "evaluation/kl" not in run.run.metrics()
        and "evaluation/kl" in train_alone(toy(updates="1"), tmp_path / "b").run.metrics()
    )


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    training = begin(toy(), tmp_path)
    training.resume()
    training.update()
    training.save()
    with torch.no_grad():
        training.policy.trainable()["perturbation"][0, 0, 0] = float("inf")
    training.state.behaviour[1] = checkpoint_weights(training)
    before = training.policy.weights()
    with pytest.raises(UserError, match=r"finite loss.*update 1.*not touched"):
        training.update()
    assert np.array_equal(before, training.policy.weights())
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")] == ["000001"]


def checkpoint_weights(training: Training) -> np.ndarray:
    """Good weights for the rollouts, so that only learning meets the bad ones."""
    return np.zeros_like(training.policy.weights())


def test_a_directory_of_another_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(toy(), ["test"])
    run.log(0, {"evaluation/held_out/redness": 0.5})
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"differs in learn.learning_rate \(0.01 there, 0.5 here\): name another --out"):
        run.claim(toy(learn__learning_rate="0.5"), ["test"])
    assert (tmp_path / "config.json").read_bytes() == before
    run.claim(toy(cluster__actors="2"), ["test"])  # where work runs may change,
    run.claim(toy(guards__kl="stop"), ["test"])  # and what watches it,
    run.claim(toy(updates="7", budget="9", checkpoints__keep="1"), ["test"])  # and how long it goes on, and what stays,
    run.claim(toy(rewards="[{name: redness, seconds: 5, retries: 3}]"), ["test"])  # and how long rewards may take
    with pytest.raises(UserError, match=r"differs in rewards"):
        run.claim(toy(rewards="[{name: redness, weight: 2.0}]"), ["test"])


def test_what_a_killed_command_was_writing_is_removed_where_nobody_else_writes(tmp_path: Path) -> None:
    run, name = RunDirectory(tmp_path), f".half-written.{uuid.uuid4().hex}"
    run.claim(toy(), ["test"])
    for place in (".", "scores", "images/000000", *TENDED_ELSEWHERE):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).touch()
    run.claim(toy(), ["test"])
    assert {path.parent.name for path in tmp_path.rglob(name)} == {"checkpoints", "suites", "trackers"}


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(toy(), ["test"])
    older = json.loads((tmp_path / "config.json").read_text())
    del older["guards"], older["rewards"][0]["seconds"], older["rewards"][0]["retries"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    run.log(0, {"evaluation/held_out/redness": 0.5})
    run.claim(toy(), ["test"])
    with pytest.raises(UserError, match=r"differs in seed"):
        run.claim(toy(seed="1"), ["test"])


def test_a_run_that_never_began_gives_way_to_the_mended_command(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(toy(), ["mistaken"])
    (tmp_path / ".config.json.123").write_text("what a killed process was writing")
    run.claim(toy(sampler__steps="20"), ["mended"])
    assert run.config() == toy(sampler__steps="20")
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["command"] == ["mended"] and "continued" not in provenance


def test_what_was_prepared_goes_with_the_run_that_gives_way_and_with_what_it_read(tmp_path: Path) -> None:
    file, run = tmp_path / "prompts.txt", RunDirectory(tmp_path / "run")
    file.write_text("left\n")
    names = (
        "rewrites.jsonl",
        "choosing/asked/scores.parquet",
        "texts/complete.json",
        "ledger.json",
        "images/prompts.json",
    )
    prepared = [run.path / name for name in names]

    def kept(**settings: str) -> bool:
        for place in prepared:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        run.claim(toy(prompts__training=str(file), prompts__held_out="null", **settings), ["test"])
        (there,) = {place.exists() for place in prepared}
        return there

    run.claim(toy(), ["test"])
    assert not kept() and kept() and kept(updates="7")
    assert not kept(seed="1") and kept(seed="1")
    file.write_text("right\n")
    assert not kept(seed="1") and kept(seed="1")
    run.log(0, {"evaluation/training/redness": 0.5})
    assert kept(seed="1")


def test_prompts_that_were_changed_in_place_are_found_when_a_run_goes_on(tmp_path: Path) -> None:
    file, run = tmp_path / "prompts.txt", RunDirectory(tmp_path / "run")
    config = toy(prompts__training=str(file), prompts__held_out="null")
    file.write_text("left\nright\n")
    run.claim(config, ["test"])
    file.write_text("right\nleft\n")  # nothing was done yet
    run.claim(config, ["test"])
    run.log(0, {"evaluation/training/redness": 0.5})
    run.claim(config, ["test"])
    before = (run.path / "provenance.json").read_bytes()
    file.write_text("left\nboth\n")
    with pytest.raises(UserError, match=r"what prompts.training names as it was .* put it back, or name another"):
        run.claim(config, ["test"])
    assert (run.path / "provenance.json").read_bytes() == before


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_a_finished_run_is_extended_bit_for_bit(tmp_path: Path, staleness: str) -> None:
    settings = {"rollouts__staleness": staleness, "evaluation__every": "100"}
    begin(toy(updates="2", **settings), tmp_path / "extended").train()
    extended = begin(toy(updates="4", **settings), tmp_path / "extended")
    extended.train()
    whole = begin(toy(updates="4", **settings), tmp_path / "whole")
    whole.train()
    assert np.array_equal(extended.policy.weights(), whole.policy.weights())
    # the extended run was evaluated when it was finished for the first time; all else is the same
    assert set(numbers(tmp_path / "whole")) < set(numbers(tmp_path / "extended"))
    more = set(numbers(tmp_path / "extended")) - set(numbers(tmp_path / "whole"))
    assert all(json.loads(line)["name"].startswith("evaluation/") for line in more)


def test_a_run_that_is_ended_sooner_is_evaluated_as_one_that_was_to_end_there(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("both\n")
    prompts = {"prompts__held_out": "null", "prompts__test": str(tmp_path / "test.txt")}
    settings = {"evaluation__every": "2", "evaluation__samples": "1", "evaluation__final_samples": "3", **prompts}
    whole = train_alone(toy(updates="2", **settings), tmp_path / "whole")
    longer = begin(toy(updates="4", **settings), tmp_path / "longer")
    longer.resume()
    longer.evaluate()
    for _ in range(2):
        longer.update()
    longer.evaluate()
    longer.save()
    config = toy(updates="2", **settings)
    assert longer.run.samples(2) == 1 and not launch.claim(config, tmp_path / "longer", ["test"])
    ended = train_alone(config, tmp_path / "longer")
    assert ended.run.samples(2) == 3 and ended.run.metrics() == whole.run.metrics()
    assert launch.finished(config, tmp_path / "longer")


def test_fewer_checkpoints_stay_when_a_run_goes_on(tmp_path: Path) -> None:
    begin(toy(updates="3", checkpoints__keep="3"), tmp_path).train()
    begin(toy(updates="4", checkpoints__keep="1"), tmp_path).train()
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")] == ["000004"]


def test_every_changed_bit_of_a_state_is_found(tmp_path: Path) -> None:
    training = begin(toy(), tmp_path)
    training.update()
    training.save()
    found = tmp_path / "checkpoints" / "000001"
    file, before = found / "state.json", checkpoint.read_state(found)
    whole = file.read_bytes()
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(UserError, match=r"state.json is missing or damaged: remove"):
            checkpoint.read_state(found)
    file.write_bytes(whole)
    assert checkpoint.read_state(found) == before


@pytest.mark.parametrize(
    ("damage", "mentions"),
    [
        (
            lambda lines: lines[: next(n for n, line in enumerate(lines) if b'"update": 1' in line)],
            "the metrics of update 1 are missing",
        ),
        (lambda lines: [line for line in lines if b'"update": 0' not in line], "the metrics of update 0 are missing"),
        (lambda lines: [line for line in lines if b"evaluation/" not in line], "first evaluation are missing"),
        (lambda lines: [*lines[:3], lines[3][:-5], *lines[4:]], "line 4 is no metric"),
        (lambda lines: [lines[0].replace(b"u", b"\xf5"), *lines[1:]], "line 1 is no metric"),
        (lambda lines: [], "the metrics of update 0 are missing"),
    ],
)
def test_metrics_that_were_damaged_are_found_before_a_run_goes_on(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], mentions: str
) -> None:
    begin(toy(updates="2"), tmp_path).train()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(line + b"\n" for line in damage(file.read_bytes().splitlines())))
    with pytest.raises(UserError, match=rf"{mentions}.*copy it back from where it is whole"):
        launch.claim(toy(updates="3"), tmp_path, ["test"])


def test_metrics_that_follow_a_line_which_broke_off_are_as_whole_as_those_before(tmp_path: Path) -> None:
    """An evaluation after a power loss adds to what is there; only a run that goes on writes it anew."""
    begin(toy(updates="2"), tmp_path).train()
    run = RunDirectory(tmp_path)
    whole = run.metrics()
    for torn in ('{"update": 2, "na', '{"update": 2, "name": "train/reward", "value": 0.5}'):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(torn)
        read = run.metrics()
        run.log(2, {"evaluation/held_out/redness": 0.75})
        assert run.metrics() == {
            **read,
            "evaluation/held_out/redness": whole["evaluation/held_out/redness"] | {2: 0.75},
        }
        launch.claim(toy(updates="3"), tmp_path, ["test"])


def test_what_the_sentence_about_lost_metrics_says_helps(tmp_path: Path) -> None:
    begin(toy(updates="2"), tmp_path).train()
    file = tmp_path / "metrics.jsonl"
    whole = numbers(tmp_path)
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines() if '"update": 1' not in line))
    with pytest.raises(UserError, match="remove the checkpoints after 1 updates to go on from before"):
        launch.claim(toy(updates="2"), tmp_path, ["test"])
    shutil.rmtree(tmp_path / "checkpoints" / "000002")
    assert not launch.claim(toy(updates="2"), tmp_path, ["test"])
    begin(toy(updates="2"), tmp_path).train()
    assert numbers(tmp_path) == whole


def test_an_evaluation_with_fewer_pictures_does_not_replace_what_is_stored(tmp_path: Path) -> None:
    begin(toy(updates="2", evaluation__samples="3", evaluation__final_samples="4"), tmp_path).train()
    expected = "expected at least the 4 pictures a prompt that are scored after 2 updates .*, got 1: .* set --samples 4 or more"
    with pytest.raises(UserError, match=expected):
        launch.check_evaluation(tmp_path, updates=None, samples=1)
    with pytest.raises(UserError, match="scored after 0 updates"):
        launch.check_evaluation(tmp_path, updates=0, samples=3)
    for updates, samples in ((None, None), (2, 4), (0, 8), (1, 1)):  # nothing is stored after 1 update
        launch.check_evaluation(tmp_path, updates=updates, samples=samples)
    with pytest.raises(UserError, match="got 7: name one of them"):
        launch.check_evaluation(tmp_path, updates=7, samples=None)


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match=r"empty or new directory"):
        RunDirectory(tmp_path).claim(toy(), ["test"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_imported_because_a_directory_names_it(tmp_path: Path) -> None:
    RunDirectory(tmp_path).claim(toy(), ["test"])
    (tmp_path / "metrics.jsonl").write_text("")  # something was done
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "objective": {"name": "tests.nowhere:Own"}}))
    with pytest.raises(
        UserError, match=r'objective.name \("tests.nowhere:Own" there, "ddpo" here\).*: name another --out'
    ):
        RunDirectory(tmp_path).claim(toy(), ["test"])


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", "model/toy.safetensors", "behaviour.safetensors", "state.json"]
)
def test_a_checkpoint_that_was_cut_short_is_named(tmp_path: Path, file: str) -> None:
    training = begin(toy(), tmp_path)
    training.resume()
    training.update()
    training.save()
    path = tmp_path / "checkpoints" / "000001" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"complete checkpoint.*remove .*000001"):
        begin(toy(), tmp_path).resume()


def test_every_worker_goes_on_from_where_the_first_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two machines with one storage, one may see a checkpoint that the other does not see yet."""
    begin(toy(updates="2"), tmp_path).train()
    seen_by_first = [[tmp_path / "checkpoints" / "000001"]]
    training = begin(toy(updates="3"), tmp_path)
    monkeypatch.setattr(training, "gather", lambda items: [*seen_by_first, *items])
    training.resume()
    assert training.state.updates == 1


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    begin(toy(checkpoints__keep="2"), tmp_path).train()
    assert [path.name for path in checkpoint.completed(tmp_path / "checkpoints")] == ["000004", "000005"]


def test_training_raises_the_toy_reward(tmp_path: Path) -> None:
    training = begin(toy(updates="25", learn__learning_rate="0.03", evaluation__every="25"), tmp_path)
    training.train()
    rows = [json.loads(line) for line in numbers(tmp_path)]
    reward = {row["update"]: row["value"] for row in rows if row["name"] == "train/reward"}
    assert np.mean([reward[u] for u in range(20, 25)]) > np.mean([reward[u] for u in range(5)]) + 0.05
    assert all(row["value"] == 1.0 for row in rows if row["name"] == "learn/ratio")


def test_queries_of_every_run_update_block_and_pass_draw_numbers_of_their_own() -> None:
    places = product((toy(), toy(seed="1")), (0, 1), (0, 1), (0, 1))
    assert len({generator_of(*place).initial_seed() for place in places}) == 16


def test_the_order_of_later_passes_is_another_in_every_update() -> None:
    config = toy(rollouts__prompts="16", rollouts__prompts_per_block="2", learn__minibatches="4", learn__epochs="2")
    orders = {
        tuple(minibatches(config, update).index(share) for share in minibatches(config, update, 1))
        for update in range(8)
    }
    assert len(orders) > 3


def test_the_tracker_is_told_what_credit_may_be_off_by() -> None:
    config, credits = toy(credit__normalise="tracked"), {0: terminal_credit(np.array([1.0, 1.001]), steps=2)}
    found = [
        advantages(config, credits, {0: ["a", "a"]}, PromptTracker.empty(size=8, minimum=1), {0: np.full(2, off)})[
            0
        ].any()
        for off in (1e-9, 1.0)
    ]
    assert found == [True, False]
