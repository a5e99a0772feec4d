"""Who is compared with whom in a block of rollouts, and runs that learn from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from raysuite import rewards
from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.stages import checkpoint, preference_set
from raysuite.stages.checkpoint import State
from raysuite.stages.evaluate import Judged, judge_rankings, judged_metrics, judged_rankings
from raysuite.stages.files import RunDirectory
from raysuite.stages.preference_set import PreferenceSet
from raysuite.stages.preferences import compared, rankings, rows_of_set
from raysuite.stages.prompts import training_blocks
from raysuite.types import Block, Cost, Rollouts
from tests.stages.worker import begin, train_with_two

DPO = "{name: diffusion_dpo, beta: 100.0, draws: 2}"
DENSE = "{name: trajectory_dpo, strength: 5.0, discount: 0.9}"
RL = "{name: forward_rl, contrast: 1.0, advantage_limit: 2.0}"


def toy(objective: str = DPO, **settings: str) -> RunConfig:
    small = {"evaluation.samples": "2", "evaluation.final_samples": "2", "checkpoints.every": "1", "credit": "null"}
    named = {path.replace("__", "."): value for path, value in settings.items()}
    return load("toy-ddpo", {**small, "objective": objective, **named})


def block(prompts: int, samples: int) -> Block:
    names = tuple(f"prompt {i}" for i in range(prompts))
    return Block(
        update=3,
        index=0,
        prompts=names,
        prompt_ids=tuple(range(prompts)),
        samples_per_prompt=samples,
        metadata=({},) * prompts,
    )


@settings(max_examples=60)
@given(
    prompts=st.integers(1, 4),
    samples=st.integers(3, 7),
    choose=st.sampled_from(["best_worst", "random", "spread", "all"]),
    members=st.integers(2, 3),
    levels=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_rankings_stay_within_a_prompt_and_follow_the_reward(
    prompts: int, samples: int, choose: str, members: int, levels: int, seed: int
) -> None:
    own = {"random": {"preferences__limit": "2"}, "spread": {"preferences__kept": "3"}}.get(choose, {})
    config = toy(
        DENSE,
        rollouts__samples=str(samples),
        preferences__choose=choose,
        preferences__members=str(members),
        **own,
    )
    reward_N = np.random.default_rng(seed).integers(levels, size=prompts * samples).astype(float)
    indices_RM, ties = rankings(config, block(prompts, samples), reward_N)
    tuples = {
        "best_worst": 1,
        "random": min(2, comb(samples, members)),
        "spread": comb(3, members),
        "all": comb(samples, members),
    }
    assert len(indices_RM) + ties == tuples[choose] * prompts
    for row in indices_RM:
        assert len(set(row.tolist() // np.int64(samples))) == 1, "one prompt"
        assert len(set(row.tolist())) == members, "never a sample with itself"
        assert (np.diff(reward_N[row]) < 0).all(), "the preferred first, and no ties"


def test_rankings_depend_on_coordinates_alone() -> None:
    config = toy(preferences__choose="random", preferences__limit="3", preferences__label="bradley_terry")
    reward_N = np.random.default_rng(0).normal(size=32)
    together, _ = rankings(config, block(2, 16), reward_N)
    again, _ = rankings(config, block(2, 16), reward_N)
    alone, _ = rankings(config, block(1, 16), reward_N[:16])
    assert np.array_equal(together, again)
    assert np.array_equal(together[:3], alone)
    others, _ = rankings(config.model_copy(update={"seed": 1}), block(2, 16), reward_N)
    assert not np.array_equal(together, others)


def test_an_objective_sees_the_right_latents() -> None:
    """Latents that say which sample they belong to."""
    latents = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, 3, 2), np.float32)
    rollouts = Rollouts(
        block=block(2, 3),
        version=0,
        latents_NK=latents,
        logp_NK=None,
        scores={},
        reward_N=np.zeros(6),
        credit_NK=None,
        pictures=None,
        kl_N=None,
        cost=Cost(),
    )
    seen = compared(rollouts, np.array([[2, 0], [4, 5]]))
    assert seen.latents_RMK.shape == (2, 2, 3, 2)
    assert seen.clean_RM[..., 0].tolist() == [[2, 0], [4, 5]]
    assert seen.prompts_R == ("prompt 0", "prompt 1")


def test_a_set_is_gone_through_whole_before_it_begins_again() -> None:
    config = toy(rollouts__prompts="2", rollouts__prompts_per_block="1")
    seen = [n for update in range(15) for b in range(2) for n in rows_of_set(config, 10, update=update, block=b)]
    epochs = [seen[:10], seen[10:20], seen[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_set_is_shuffled_once_for_every_time_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(**coordinates: Any) -> np.random.Generator:
        made.append(coordinates["update"])
        return numpy_generator(**coordinates)

    monkeypatch.setattr("raysuite.stages.preferences.numpy_generator", counted)
    config = toy(rollouts__prompts="3", rollouts__prompts_per_block="3", learn__minibatches="1", seed="123")
    rows = [n for update in range(4) for n in rows_of_set(config, 6, update=update, block=0)]
    assert made == [0, 1]
    orders = [numpy_generator(seed=123, stage=Stage.PREFERENCE_ORDER, update=epoch).permutation(6) for epoch in (0, 1)]
    assert rows == np.concatenate(orders).tolist()


def metrics(directory: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["name"], []).append(row["value"])
    return found


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        (DPO, {}),
        (DPO, {"reference__refresh": "2"}),
        (DENSE, {"reference__refresh": "1", "reference__decay": "0.5", "rollouts__staleness": "1"}),
        (RL, {"reference__refresh": "1"}),
    ],
    ids=["fixed reference", "refreshed", "running mean", "forward"],
)
def test_a_run_stopped_and_continued_equals_an_undisturbed_one(
    tmp_path: Path, objective: str, more: dict[str, str]
) -> None:
    config = toy(objective, **more)
    whole = begin(config, tmp_path / "whole")
    whole.train()
    stopped = begin(config, tmp_path / "stopped")
    stopped.resume()
    stopped.evaluate()
    for _ in range(3):
        stopped.update()
        stopped.save()
    stopped.update()  # lost
    continued = begin(config, tmp_path / "stopped")
    continued.train()
    assert np.array_equal(whole.policy.weights(), continued.policy.weights())
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")


ON_FLOW: dict[str, dict[str, str]] = {
    "ddpo": {"objective": "{name: ddpo, clip: 0.2, advantage_clip: 5.0, kl_weight: 0.1}"},
    "trajectory_dpo": {"objective": DENSE},
    "diffusion_dpo": {"objective": "{name: diffusion_dpo, beta: 100.0, levels: logit_normal}"},
    "dspo": {"objective": "{name: dspo, beta: 0.1, levels: sampler, draws: 2}"},
    "dmpo": {"objective": "{name: dmpo, beta: 100.0}"},
    "cal_dpo": {"objective": "{name: cal_dpo, beta: 100.0, share: 0.1}"},
    "sft": {"objective": "{name: sft}"},
    "forward_rl": {
        "objective": "{name: forward_rl, contrast: 1.0, advantage_limit: 2.0, levels: sampler, draws: 4, base_weight: 0.01}",
        "reference.refresh": "1",
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_of_a_flow_model_and_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """With a window of noise that begins anywhere, and in two minibatches."""
    settings = {
        "model.path": "toy-flow",
        "updates": "2",
        "sampler.steps": "6",
        "sampler.noise": "{kind: flow_sde, level: 0.7}",
        "sampler.window": "{size: 3, move: random, until: 2}",
        "rollouts.samples": "8",
        "evaluation.samples": "2",
        "evaluation.final_samples": "2",
        "checkpoints.every": "1",
    }
    config = load("toy-ddpo", {**settings, **ON_FLOW[name]})
    whole = begin(config, tmp_path / "whole")
    before = whole.policy.weights()
    whole.train()
    assert not np.array_equal(whole.policy.weights(), before)
    stopped = begin(config, tmp_path / "stopped")
    stopped.resume()
    stopped.evaluate()
    stopped.update()
    stopped.save()
    stopped.update()  # lost
    continued = begin(config, tmp_path / "stopped")
    continued.train()
    assert np.array_equal(whole.policy.weights(), continued.policy.weights())
    told = metrics(tmp_path / "whole")
    assert told == metrics(tmp_path / "stopped")
    if name == "ddpo":
        assert told["learn/ratio"] == [1.0, 1.0]
    if name == "forward_rl":  # the second minibatch is learned by a policy that has left the old one
        assert min(told["learn/old_distance"]) > 0 and told["learn/base_distance"][1] > 0


def test_the_reference_follows_when_it_should(tmp_path: Path) -> None:
    run = begin(toy(reference__refresh="2"), tmp_path)
    first = run.policy.weights()
    run.update()
    assert np.array_equal(run.state.reference, first)  # type: ignore[arg-type]
    run.update()
    assert np.array_equal(run.state.reference, run.policy.weights())  # type: ignore[arg-type]
    x, t = torch.ones(1, 2), torch.tensor([500])
    own, reference = (run.policy.predict(x, t, ["left"], reference=r) for r in (False, True))
    assert torch.equal(own, reference)


def test_the_kl_is_from_the_model_as_it_came(tmp_path: Path) -> None:
    """However often the reference followed the policy."""
    measured = []
    for name, refresh in (("fixed", "0"), ("refreshed", "1")):
        run = begin(toy(reference__refresh=refresh, updates="1"), tmp_path / name)
        run.train()
        measured.append(metrics(tmp_path / name)["evaluation/kl"])
    assert measured[0] == measured[1] and measured[0][0] == 0 < measured[0][1]


def test_an_update_without_a_preference_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that cannot tell pictures apart: every pair is a tie, and is counted as one."""
    monkeypatch.setattr(rewards, "resolve", lambda name: lambda images, prompts, metadata: np.zeros(len(images)))
    run = begin(toy(rewards="[{name: indifferent}]"), tmp_path)
    before = run.policy.weights()
    run.update()
    assert np.array_equal(run.policy.weights(), before)
    told = metrics(tmp_path)
    assert told["train/rankings"] == [0.0] and told["train/ties"] == [2.0]
    assert "learn/loss" not in told


def test_a_budget_ends_a_run(tmp_path: Path) -> None:
    """Toy DDPO costs 2 prompts x 16 samples x 10 steps x (1 + 1 + 2) = 1280 network evaluations an update."""
    config = load("toy-ddpo", {"budget": "2000", "updates": "50"})
    run = begin(config, tmp_path)
    run.train()
    assert run.state.updates == 2
    assert run.state.training.network_evaluations == 2560
    assert State().expected_updates(config) is None, "nobody knows before the first"
    assert State(updates=1, training=Cost(forward=1280)).expected_updates(config) == 2
    assert State(updates=1, training=Cost(forward=10)).expected_updates(config) == 50
    again = begin(config, tmp_path)
    again.train()
    assert again.state.updates == 2


def test_forward_objectives_ask_for_no_trajectories(tmp_path: Path) -> None:
    run = begin(toy(DPO), tmp_path)
    (first, *_) = run.collect(0)
    assert first.latents_NK is not None and first.latents_NK.shape[1] == 1
    whole: Any = begin(toy(DENSE), tmp_path / "whole").collect(0)[0]
    assert np.array_equal(whole.latents_NK[:, -1:], first.latents_NK)


@pytest.mark.slow
@pytest.mark.parametrize("judges", [True, False], ids=["held-out pairs", "a reference that follows"])
def test_two_workers_equal_one_where_one_of_them_has_only_ties(judges: bool, tmp_path: Path) -> None:
    """Pairs learned from on one worker count for both: the same steps, divided by the same number."""
    besides = {"preferences__held_out": str(tmp_path / "set")} if judges else {"reference__refresh": "1"}
    config = toy(
        DENSE,
        updates="2",
        preferences__choose="all",
        rewards="[{name: 'tests.cluster.rewards:blind_on_left'}]",
        learn__minibatches="1",
        cluster__workers="2",
        **besides,
    )
    made(tmp_path, toy(DENSE, preferences__choose="all", preferences__limit="4"), trajectories=True)
    RunDirectory(tmp_path / "two").claim(config, ["test"])
    one = begin(config, tmp_path / "one")
    one.train()
    train_with_two(tmp_path / "two")
    two = [np.load(tmp_path / "two" / f"weights{rank}.npy") for rank in range(2)]
    assert np.array_equal(*two)
    np.testing.assert_allclose(two[0], one.policy.weights(), rtol=1e-4, atol=1e-6)
    told = metrics(tmp_path / "two")
    pairs = 2 * 16 * 15 / 2  # of two prompts
    assert [r + t for r, t in zip(told["train/rankings"], told["train/ties"], strict=True)] == [pairs] * 2
    assert min(told["train/ties"]) >= pairs / 2 and min(told["train/rankings"]) > 0
    of_one = metrics(tmp_path / "one")
    assert {k: v for k, v in told.items() if "rankings" in k or "ties" in k} == {
        k: v for k, v in of_one.items() if "rankings" in k or "ties" in k
    }
    judged = [name for name in told if name.startswith("evaluation/preferences/")]
    assert ({"loss", "loss_low", "loss_high"} <= {name.split("/")[-1] for name in judged}) is judges
    for name in judged:
        np.testing.assert_allclose(told[name], of_one[name], rtol=1e-4, atol=1e-6, err_msg=name)


# off-line


def made(directory: Path, config: RunConfig, *, trajectories: bool) -> PreferenceSet:
    """A set of 4 updates' rankings, one block each."""
    run = begin(config, directory / "drawn")
    identity = {
        "model": "toy",
        "encoders": {},
        "latent_shape": run.policy.latent_shape,
        "members": 2,
        "steps": 10 if trajectories else None,
        "sampler": config.sampler.model_dump(mode="json"),
    }
    preference_set.claim(directory / "set", identity, ["test"])
    for update in range(4):
        blocks = training_blocks(config, run.prompts, update)
        for drawn in run.collector.start(blocks, run.policy.weights(), 0):
            indices_RM, ties = rankings(config, drawn.block, drawn.reward_N)
            preference_set.write_block(
                directory / "set",
                update * 2 + drawn.block.index,
                compared(drawn, indices_RM),
                rows_R=[int(row[0]) for row in indices_RM],
                texts={},
                read=len(indices_RM) + ties,
                ties=ties,
            )
    preference_set.summarise(directory / "set")
    return PreferenceSet(directory / "set")


@pytest.mark.parametrize("objective", [DPO, DENSE])
def test_a_run_learns_from_a_set(tmp_path: Path, objective: str) -> None:
    """Without drawing a picture; stopped and continued, it equals an undisturbed run."""
    drawing = toy(objective, preferences__choose="all", preferences__limit="4")
    made(tmp_path, drawing, trajectories="trajectory" in objective)
    config = toy(objective, preferences__source=str(tmp_path / "set"))
    whole = begin(config, tmp_path / "whole")
    before = whole.policy.weights()
    whole.train()
    assert not np.array_equal(whole.policy.weights(), before)
    assert whole.state.training.images_scored == 0
    stopped = begin(config, tmp_path / "stopped")
    stopped.resume()
    stopped.evaluate()
    stopped.update()
    stopped.save()
    continued = begin(config, tmp_path / "stopped")
    continued.train()
    assert np.array_equal(whole.policy.weights(), continued.policy.weights())


def test_a_run_is_evaluated_without_its_set_and_does_not_go_on_without_it(tmp_path: Path) -> None:
    made(tmp_path, toy(DPO), trajectories=False)
    settings = {"updates": "1", "preferences__source": str(tmp_path / "set")}
    begin(toy(DPO, **settings), tmp_path / "run").train()
    told = metrics(tmp_path / "run")
    shutil.rmtree(tmp_path / "set")
    run = begin(toy(DPO, **settings), tmp_path / "run")
    run.state = checkpoint.load(tmp_path / "run" / "checkpoints" / "000001", run.policy)
    found, _, _ = run.measure()
    assert found and found == {name: told[name][-1] for name in found}
    with pytest.raises(UserError, match="expected a preference set at"):
        begin(toy(DPO, **settings | {"updates": "2"}), tmp_path / "run").train()


@pytest.mark.parametrize("ema", [False, True])
def test_preferences_that_are_held_out_are_judged_and_not_learned_from(ema: bool, tmp_path: Path) -> None:
    """The same weights as without them, in a run that was stopped too; and the loss of the same pairs with the same noise."""
    drawing = {"preferences__choose": "all", "preferences__limit": "4"}
    made(tmp_path / "learned", toy(DPO, **drawing), trajectories=False)
    apart = made(tmp_path / "apart", toy(DPO, seed="1", **drawing), trajectories=False)
    settings = {"updates": "2", "evaluation__every": "1", "preferences__source": str(tmp_path / "learned" / "set")}
    settings |= {"learn__ema": "0.5", "evaluation__ema": "true"} if ema else {}
    plain = begin(toy(DPO, **settings), tmp_path / "plain")
    plain.train()
    config = toy(DPO, **settings, preferences__held_out=str(apart.directory), evaluation__rankings="7")
    held = begin(config, tmp_path / "held")
    held.train()
    assert np.array_equal(held.policy.weights(), plain.policy.weights())
    told = {name: values for name, values in metrics(tmp_path / "held").items() if "preferences/" in name}
    assert not any("preferences/" in name for name in metrics(tmp_path / "plain"))
    assert told["evaluation/preferences/loss"][0] == pytest.approx(np.log(2))
    assert told["evaluation/preferences/reward_accuracy"][0] == 0.5

    if ema:
        assert held.state.ema is not None and not np.array_equal(held.state.ema, held.policy.weights())
        held.policy.set_weights(held.state.ema)
    objective, losses, numbers = config.built_objective, list[torch.Tensor](), list[int]()
    for place, rows in enumerate(judged_rankings(config, len(apart))):
        numbers += rows
        generator = torch_generator(seed=0, stage=Stage.EVALUATION_PREFERENCES, prompt=place)
        asked = objective.queries(apart.rows(rows), held.policy.table, generator)
        about = asked.x_UM.flatten(0, 1), asked.t_UM.flatten(), [p for p in asked.prompts_U for _ in range(2)]
        with torch.no_grad():
            own, reference = (
                held.policy.predict(*about, reference=reference, guided=False).unflatten(0, asked.t_UM.shape)
                for reference in (False, True)
            )
        losses.append(objective.loss(asked, held.policy.schedule, own, reference).terms_U)
    assert len(set(numbers)) == len(numbers) == 7 < len(apart)
    loss = float(torch.cat(losses).mean())
    last = [told[f"evaluation/preferences/loss{part}"][-1] for part in ("_low", "", "_high")]
    assert last[1] == pytest.approx(loss, rel=1e-5) != pytest.approx(np.log(2), rel=1e-5)
    assert last[0] < last[1] < last[2]

    stopped = begin(config, tmp_path / "stopped")
    stopped.resume()
    stopped.evaluate()
    stopped.update()
    stopped.save()
    begin(config, tmp_path / "stopped").train()
    again = metrics(tmp_path / "stopped")
    assert {name: again[name] for name in told} == told


def test_preferences_that_are_held_out_are_not_those_that_are_learned_from(tmp_path: Path) -> None:
    place = str(tmp_path / "set")
    with pytest.raises(UserError, match=r"expected another set in preferences\.held_out"):
        toy(DPO, preferences__source=place, preferences__held_out=place)
    toy(DPO, preferences__held_out=place)  # beside rollouts
    with pytest.raises(UserError, match="no preferences settings with ddpo"):
        load("toy-ddpo", {"preferences.held_out": place})


@pytest.mark.parametrize(
    ("objective", "more", "mentions"),
    [
        (DENSE, {}, "make a set with `raysuite pairs --trajectories`"),
        (DPO, {"preferences__members": "2"}, None),
    ],
)
def test_a_set_must_hold_what_the_objective_takes(
    tmp_path: Path, objective: str, more: dict[str, str], mentions: str | None
) -> None:
    found = made(tmp_path, toy(DPO), trajectories=False)
    config = toy(objective, preferences__source=str(tmp_path / "set"), **more)
    if mentions is None:
        found.check(config, (2,))
        with pytest.raises(UserError, match="encode it for this model"):
            found.check(config, (4, 8, 8))
    else:
        with pytest.raises(UserError, match=mentions):
            found.check(config)


def test_prompts_and_updates_have_comparisons_of_their_own() -> None:
    config = toy(preferences__choose="random", preferences__limit="3")
    reward_N = np.tile(np.arange(16.0), 2)
    found, _ = rankings(config, block(2, 16), reward_N)
    later, _ = rankings(config, replace(block(2, 16), update=4), reward_N)
    assert not np.array_equal(found[:3], found[3:] - 16) and not np.array_equal(found, later)


def test_rounding_is_that_of_the_samples_that_are_compared() -> None:
    """Those of the first prompt are known exactly, those of the second not at all."""
    reward_N, rounding_N = np.array([0, 0.5, 1] * 2), np.repeat([0.0, 2.0], 3)
    indices_RM, ties = rankings(toy(preferences__choose="best_worst"), block(2, 3), reward_N, rounding_N)
    assert (indices_RM.tolist(), ties) == ([[2, 0]], 1)


def test_labels_are_as_warm_and_as_wrong_as_they_are_asked_for() -> None:
    """One wrong in four; and rewards of 0 and 1 at a temperature of 0.01, which leaves no doubt of them."""
    reward_N = np.tile([0.0, 1.0], 400)

    def right(**settings: str) -> float:
        indices_RM, _ = rankings(
            toy(preferences__choose="all", rollouts__samples="2", **settings), block(400, 2), reward_N
        )
        return float((indices_RM[:, 0] % 2).mean())

    assert right() == right(preferences__label="bradley_terry", preferences__temperature="0.01") == 1
    assert right(preferences__noise="0.25") == pytest.approx(0.75, abs=0.1)  # five standard errors


def test_what_is_judged_is_no_matter_of_the_run_s_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither which rankings nor their noise; another seed of the evaluation has others."""
    settings = {"preferences__held_out": str(tmp_path), "evaluation__rankings": "7"}
    one, other, elsewhere = (toy(DPO, **settings, **more) for more in ({}, {"seed": "1"}, {"evaluation__seed": "1"}))
    assert judged_rankings(one, 40) == judged_rankings(other, 40) != judged_rankings(elsewhere, 40)
    seeds = []

    def judge(*about: Any, **options: Any) -> tuple[dict[str, np.ndarray], Cost]:
        seeds.append(about[3].initial_seed())
        return {}, Cost()

    monkeypatch.setattr("raysuite.stages.evaluate.judge", judge)
    held: Any = SimpleNamespace(rows=lambda rows: SimpleNamespace(prompts_R=()))
    policy: Any = SimpleNamespace(draws_prompts=True)
    for config in (one, other, elsewhere):
        judge_rankings(config, policy, held, 0, [0], lambda: None)
    assert seeds[0] == seeds[1] != seeds[2]


def test_rankings_of_one_prompt_are_not_independent() -> None:
    """Ten of each of two prompts: what is drawn may be of one alone."""
    judged = [
        Judged(block=place, prompts_R=(prompt,) * 10, metrics={"loss": np.full(10, float(place))}, cost=Cost())
        for place, prompt in enumerate("ab")
    ]
    found = judged_metrics(judged[::-1], update=1, seed=0)
    assert [found[f"evaluation/preferences/loss{end}"] for end in ("_low", "", "_high")] == [0.0, 0.5, 1.0]


def test_what_is_compared_keeps_its_window() -> None:
    windowed = Rollouts(
        block=replace(block(1, 2), window=(1, 3)),
        latents_NK=np.zeros((2, 4, 2), np.float32),
        version=0,
        scores={},
        reward_N=np.zeros(2),
        cost=Cost(),
        **dict.fromkeys(("logp_NK", "credit_NK", "pictures", "kl_N")),
    )
    assert compared(windowed, np.array([[0, 1]])).window == (1, 3)
