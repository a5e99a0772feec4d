"""TRL trains a writer on-line: what is rewarded becomes more probable, what is drawn is drawn once, and a stopped training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.stages.collect import LocalCollector
from raysuite.stages.prompts import Prompt
from raysuite.stages.rewrites import BUNDLED
from raysuite.types import Block
from raysuite.writer import draw, grpo
from raysuite.writer.model import open_writer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own affairs

MEANT = {0: "two red circles", 1: "three blue squares", 2: "one black triangle"}
TYPED = ("two crimson discs", "three azure boxes", "one ebony wedge")
PROMPTS = [Prompt(text, number, {"scene": MEANT[number]}) for number, text in enumerate(TYPED)]


class Knows:
    """Rewards what was meant with 1, anything else with 0; every rewrite costs 10."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.spent, self._stop_at = 0, stop_at

    def rewards(self, step: int, numbers: Sequence[int], texts: Sequence[str]) -> list[float]:
        if step == self._stop_at:
            raise KeyboardInterrupt
        self.spent += 10 * len(texts)
        return [float(text == MEANT[number]) for number, text in zip(numbers, texts, strict=True)]


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> Mapping[str, torch.Tensor]:
    return dict(open_writer(str(directory)).model.state_dict())


def test_what_is_rewarded_becomes_more_probable(tmp_path: Path) -> None:
    asked, meant = [open_writer(BUNDLED).asked(text) for text in TYPED], list(MEANT.values())
    before = open_writer(BUNDLED).log_densities(asked, meant)
    plan = grpo.Plan(prompts=3, draws=8, steps=8, learning_rate=1e-3)
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 240, tmp_path)
    after = open_writer(str(tmp_path)).log_densities(asked, meant)
    assert (
        after > before
    ).sum() >= 2 and after.exp().mean() > 2 * before.exp().mean()  # what is never drawn is not learned
    told = metrics(tmp_path)
    assert [row["step"] for row in told] == list(range(1, 9))
    assert told[-1]["network_evaluations"] == 8 * 240 and told[-1]["reward"] > told[0]["reward"]


def test_it_ends_before_a_step_that_might_exceed_the_budget(tmp_path: Path) -> None:
    steps: list[int] = []
    plan, judge = grpo.Plan(prompts=3, draws=2, budget=200), Knows()
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, judge, 60, tmp_path, lambda: steps.append(judge.spent))
    assert steps == [60, 120, 180]
    assert metrics(tmp_path)[-1]["network_evaluations"] == 180


def test_rewrites_that_did_not_end_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "TOKENS", 1)
    grpo.train(open_writer(BUNDLED), PROMPTS, grpo.Plan(prompts=3, draws=2, steps=1), Knows(), 60, tmp_path)
    assert [row["unfinished"] for row in metrics(tmp_path)] == [1.0]


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    plan = grpo.Plan(prompts=3, draws=4, steps=7)
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 120, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(stop_at=6), 120, tmp_path / "stopped")
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 120, tmp_path / "stopped")
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert [row["reward"] for row in metrics(tmp_path / "whole")] == [
        row["reward"] for row in metrics(tmp_path / "stopped")
    ]


def test_a_training_that_was_killed_at_the_end_of_its_budget_takes_no_other_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = grpo.Plan(prompts=3, draws=2, budget=330)

    def dies(*left: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grpo, "finish", dies)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 60, tmp_path / "killed")
    monkeypatch.undo()
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 60, tmp_path / "killed")
    grpo.train(open_writer(BUNDLED), PROMPTS, plan, Knows(), 60, tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [row["step"] for row in metrics(tmp_path / "whole")] == [1, 2, 3, 4, 5]
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load("scenes-users-ddpo", {"sampler.steps": "2", "rollouts.samples": "2", "rollouts.prompts_per_block": "2"})


class Counting(LocalCollector):
    """Counts what it draws."""

    drawn = 0

    def start(self, blocks: Sequence[Block], weights: np.ndarray, version: int) -> object:  # type: ignore[override]
        self.drawn += sum(block.size for block in blocks)
        return super().start(blocks, weights, version)


def test_a_rewrite_is_drawn_once_and_judged_by_what_was_meant(config: RunConfig, tmp_path: Path) -> None:
    policy, plan = open_policy(config, torch.device("cpu")), grpo.Plan(prompts=2, draws=2)
    by_number = {prompt.number: prompt for prompt in PROMPTS}

    def judge() -> tuple[grpo.Pictures, Counting]:
        collector = Counting(policy, config)
        return grpo.Pictures(tmp_path, config, by_number, plan, collector, policy.weights()), collector

    first, collector = judge()
    one = first.rewards(0, [0, 0, 1, 1], ["two red circles", "", "two red circles", "two red circles"])
    assert one[2] == one[3] and collector.drawn == 3 * 2 and first.spent == 3 * 2 * 2
    assert one[1] == draw.read(tmp_path / "scores" / "000000")[0, TYPED[0]].total.mean()
    two = first.rewards(1, [0, 0], ["two red circles", "a circle"])
    assert two[0] == one[0] and collector.drawn == 4 * 2 and first.spent == 4 * 2 * 2

    again, collector = judge()  # goes on after the first step: what the second had drawn is there, and not yet spent
    assert again.rewards(1, [0, 0], ["two red circles", "a circle"]) == two
    assert collector.drawn == 0 and again.spent == first.spent
    other, collector = judge()  # the second step writes something else this time
    other.rewards(1, [0, 0], ["a square", "a square"])
    assert collector.drawn == 2 and other.spent == 4 * 2 * 2


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"draws": 1}, "expected --draws of at least 2"),
        ({"learning_rate": 0.0}, "expected --learning-rate above 0, got 0"),
        ({"beta": -1.0}, "expected --beta of at least 0, got -1"),
        ({"prompts": 4}, "expected at most the 3 training prompts, got --prompts 4"),
        ({"prompts": 3, "budget": 95}, "expected --budget of at least 96, which a step may take, got 95"),
    ],
)
def test_refusals(options: dict[str, float], mentions: str, config: RunConfig) -> None:
    def planned() -> None:
        grpo.chosen_prompts(config, PROMPTS, grpo.Plan(**options))  # type: ignore[arg-type]

    with pytest.raises(UserError) as refused:
        planned()
    assert mentions in str(refused.value)
