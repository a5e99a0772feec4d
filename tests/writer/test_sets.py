"""Sets of preferences and evaluations on disk, drawn in this process with the bundled model and two steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from raysuite.cluster import writer as writing
from raysuite.config import Reward, RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.progress import Counting
from raysuite.results.writer import read_writers, writers_summary
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import write_json
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import Prompt, PromptSet, load_prompts
from raysuite.stages.rewrites import BUNDLED
from raysuite.writer import draw, evaluation, grpo, pairs
from raysuite.writer.candidates import Candidate
from raysuite.writer.draw import Scores
from raysuite.writer.model import Rewrite, Writer, open_writer

PROMPTS = {
    3: Prompt("2 red circles", 3, {"scene": "two red circles"}),
    5: Prompt("one crimson disc", 5, {"scene": "one red circle"}),
}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load("scenes-users-ddpo", {"sampler.steps": "2", "rollouts.samples": "2", "rollouts.prompts_per_block": "2"})


def drawn(config: RunConfig, directory: Path, wanted: Sequence[Candidate], pictures: int) -> dict[draw.Key, Scores]:
    policy = open_policy(config, torch.device("cpu"))
    planned = draw.blocks(config, PROMPTS, wanted, pictures)
    left = draw.missing(directory, planned)
    for _ in draw.draw(directory, left, LocalCollector(policy, config), policy.weights()):
        pass
    assert draw.missing(directory, planned) == []
    return draw.read(directory)


def test_candidates_of_a_prompt_have_the_same_noise_and_are_judged_by_what_was_meant(
    config: RunConfig, tmp_path: Path
) -> None:
    """Equal texts have equal scores; a text that is no sentence of the world can be judged, and one that is is not its own judge."""
    texts = [
        Candidate(3, "two red circles", False),
        Candidate(3, "no sentence", False),
        Candidate(5, "two red circles", False),
    ]
    blocks = draw.blocks(config, PROMPTS, texts, 2)
    assert [(b.prompt_ids, b.first_sample) for b in blocks] == [((3, 3, 5), 0), ((3, 3, 5), 1)]
    assert [meta["scene"] for meta in blocks[0].metadata] == ["two red circles", "two red circles", "one red circle"]
    found = drawn(config, tmp_path, texts, 2)
    assert {key: len(of.total) for key, of in found.items()} == {
        (3, "no sentence"): 2,
        (3, "two red circles"): 2,
        (5, "two red circles"): 2,
    }
    policy = open_policy(config, torch.device("cpu"))
    twice = draw.blocks(config, PROMPTS, [texts[0], texts[0]], 1)
    (done,) = LocalCollector(policy, config).start(twice, policy.weights(), 0)
    assert done.pictures is None and done.thumbnails_N is not None
    assert np.array_equal(done.thumbnails_N[0], done.thumbnails_N[1])


def test_what_was_drawn_is_not_drawn_again(config: RunConfig, tmp_path: Path) -> None:
    texts = [Candidate(3, f"text {n}", False) for n in range(6)]  # four in a block
    whole = drawn(config, tmp_path / "whole", texts, 1)
    planned = draw.blocks(config, PROMPTS, texts, 1)
    policy = open_policy(config, torch.device("cpu"))
    next(draw.draw(tmp_path / "part", planned, LocalCollector(policy, config), policy.weights()))
    assert draw.missing(tmp_path / "part", planned) == planned[1:]
    part = drawn(config, tmp_path / "part", texts, 1)
    assert {k: v.total.tolist() for k, v in part.items()} == {k: v.total.tolist() for k, v in whole.items()}


def test_pairs_have_noise_of_their_own(config: RunConfig) -> None:
    other = draw.with_noise_of(config, 0)
    assert other.evaluation.seed != config.evaluation.seed != draw.with_noise_of(config, 1).evaluation.seed
    assert other.model_copy(update={"evaluation": config.evaluation}) == config


class Parrot(Writer):
    """Says always the same, and ends it in the first draws of so many, or in all."""

    def __init__(self, said: str, *, ends: int | None = None) -> None:
        opened = open_writer(BUNDLED)
        super().__init__(opened.model, opened.tokenizer, "parrot")
        self._said, self._ends = said, ends

    def rewrites(self, texts: Sequence[str], *, draw: int = 0, **rest: object) -> list[Rewrite]:
        ended = self._ends is None or draw < self._ends
        return [Rewrite(self._said if ended else f"{self._said} and", 0.0, ended) for _ in texts]


def scores(*values: float) -> Scores:
    return Scores(np.array(values))


def test_a_set_is_what_trl_reads(config: RunConfig, tmp_path: Path) -> None:
    writer, prompts = Parrot("two red circles"), list(PROMPTS.values())
    plan = pairs.Plan(prompts=2, draws=2, pictures=2)
    kept, without = pairs.drawn_candidates(tmp_path, writer, config, prompts, plan)
    assert without == {"cut": 0, "unfinished": 0} and [one.text for one in kept] == [
        "2 red circles",
        "two red circles",
        "one crimson disc",
        "two red circles",
    ]
    found = {
        (3, "2 red circles"): scores(0.0, 0.5),
        (3, "two red circles"): scores(0.5, 1.0),
        (5, "one crimson disc"): scores(0.5, 0.5),
        (5, "two red circles"): scores(0.5, 0.5),
    }
    summary = pairs.write(tmp_path, writer, prompts, kept, found, plan, without)
    (row,) = [json.loads(line) for line in (tmp_path / pairs.FILE).read_text().splitlines()]
    assert row == {
        "prompt": "2 red circles<rewrite>",
        "chosen": "two red circles",
        "rejected": "2 red circles",
        "chosen_score": 0.75,
        "rejected_score": 0.25,
        "pictures": 2,
        "user": "2 red circles",
        "metadata": {"scene": "two red circles"},
    }
    assert (summary["pairs"], summary["left_out"], summary["prompts_with_a_rewrite_above_the_own_text"]) == (1, 1, 1)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_nothing_preferred_is_a_sentence(config: RunConfig, tmp_path: Path) -> None:
    writer, prompts, plan = Parrot("one red circle"), [PROMPTS[3]], pairs.Plan(prompts=1, pictures=2)
    kept, _ = pairs.drawn_candidates(tmp_path, writer, config, prompts, plan)
    equal = {(3, one.text): scores(0.5, 0.5) for one in kept}
    with pytest.raises(UserError, match=r"found none among 2 candidates of 1 prompts: draw more"):
        pairs.write(tmp_path, writer, prompts, kept, equal, plan, {})


def test_a_set_is_another_by_what_is_drawn_for_it(config: RunConfig) -> None:
    """Margin and choice are asked of the same scores: what is advised where nothing is found has to be possible."""

    def identity(**settings: Any) -> dict[str, Any]:
        return pairs.identity(config, asdict(pairs.Plan(**settings)), BUNDLED, {})

    assert identity() == identity(margin=0.0, which="best") != identity(draws=7)


def test_rewrites_that_the_model_would_cut_are_left_out(config: RunConfig, tmp_path: Path) -> None:
    plan = pairs.Plan(prompts=1, pictures=2)
    with pytest.raises(UserError, match=r"expected rewrites of at most 16 tokens.*train this one on brief rewrites"):
        pairs.drawn_candidates(tmp_path, Parrot("very " * 20 + "red"), config, [PROMPTS[3]], plan)


def test_rewrites_that_did_not_end_are_left_out_and_counted(config: RunConfig, tmp_path: Path) -> None:
    """The same when the set goes on; where none ends, before anything is drawn."""
    plan = pairs.Plan(prompts=1, draws=3, pictures=2)
    for writer in (Parrot("two red circles", ends=1), Parrot("not asked again")):
        kept, without = pairs.drawn_candidates(tmp_path, writer, config, [PROMPTS[3]], plan)
        assert [one.text for one in kept] == ["2 red circles", "two red circles"]
        assert without == {"unfinished": 1, "cut": 0}
    with pytest.raises(
        UserError, match=r"expected rewrites that end within 32 tokens, got 1 of which none does, such as 'a and'"
    ):
        pairs.drawn_candidates(tmp_path / "none", Parrot("a", ends=0), config, [PROMPTS[3]], plan)


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"draws": 0}, "--draws of at least 1"),
        ({"which": "some"}, "--which of all or best"),
        ({"temperature": 0.0}, "--temperature above 0"),
        ({"pictures": 1}, "--margin 0 with one picture"),
    ],
)
def test_plans_that_lead_nowhere(settings: dict[str, object], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        pairs.Plan(**settings)  # type: ignore[arg-type]


def test_rewards_on_a_scale_that_needs_an_update_are_refused(config: RunConfig, tmp_path: Path) -> None:
    """Before anything is claimed."""
    scaled = FoundModel("scaled", config.model_copy(update={"reward_scale": "batch"}), None)
    counting = Counting("drawing", "batches", Console())
    with pytest.raises(UserError, match="expected reward_scale=given for a set of preferences, got batch"):
        writing.make_pairs(scaled, BUNDLED, pairs.Plan(), tmp_path, ["test"], counting)
    with pytest.raises(UserError, match="expected reward_scale=given for a writer's training, got batch"):
        writing.train_online(scaled, BUNDLED, grpo.Plan(), tmp_path, ["test"], counting)
    assert not list(tmp_path.iterdir())


def test_more_prompts_than_there_are() -> None:
    with pytest.raises(UserError, match="expected at most the 2 training prompts, got --prompts 128"):
        pairs.chosen_prompts(list(PROMPTS.values()), pairs.Plan())


# evaluation


def test_cells_have_alike_of_every_kind() -> None:
    known = load_prompts(load("scenes-users-ddpo").prompts)
    cells = evaluation.chosen_prompts(known, evaluation.Plan(("none",), prompts=20))
    assert list(cells) == [
        "seen phrasing, training",
        "seen phrasing, held out",
        "new phrasing, training",
        "new phrasing, held out",
    ]
    assert all(len({prompt.stratum for prompt in of}) == len(of) == 20 for name, of in cells.items() if "seen" in name)
    plain = PromptSet((PROMPTS[3],), (PROMPTS[5],))
    assert [*evaluation.chosen_prompts(plain, evaluation.Plan(("none",)))] == ["training", "held_out"]


def test_who_writes_what() -> None:
    prompts = list(PROMPTS.values())
    assert evaluation.rewrites_by("none", prompts) == [("2 red circles", True), ("one crimson disc", True)]
    assert evaluation.rewrites_by("oracle", prompts) == [("two red circles", True), ("one red circle", True)]
    assert evaluation.rewrites_by(BUNDLED, prompts)[0] == ("two red circles", True)
    with pytest.raises(UserError, match="under `scene` what is meant, for the oracle, got 'a cat'"):
        evaluation.rewrites_by("oracle", [Prompt("a cat", 0)])
    with pytest.raises(UserError, match="expected writers, each once"):
        evaluation.Plan(("none", "none"))


def test_an_evaluation_in_numbers(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle rewrites both prompts, and only these of all texts are drawn again; a writer says the same, and never ends."""
    cells = {"seen": [PROMPTS[3]], "new": [replace(PROMPTS[5], text="one red circle")]}

    class Endless:
        def rewrites(self, texts: Sequence[str], *, temperature: float) -> list[Rewrite]:
            return [Rewrite(said, 0.0, ended=False) for said in ("two red circles", "one red circle")]

    monkeypatch.setattr(evaluation, "open_writer", lambda name: Endless())
    texts = evaluation.rewritten(tmp_path, cells, ("none", "oracle", "endless"), config.model)
    assert [(one.prompt, one.text, one.own) for one in texts] == [
        (3, "2 red circles", True),
        (5, "one red circle", True),
        (3, "two red circles", False),
    ]
    drawn(config, tmp_path / "scores", texts, 2)
    with pytest.raises(UserError, match=r"expected a finished evaluation"):
        read_writers(tmp_path)
    write_json(tmp_path / "summary.json", {})
    read = read_writers(tmp_path)
    strict: dict[tuple[int, str], list[float]] = {}
    for file in sorted((tmp_path / "scores").iterdir()):
        for row in pq.read_table(file).to_pylist():
            strict.setdefault((row["prompt"], row["text"]), []).append(row["reward/scenes_strict"])
    assert read.reward == "scenes_strict" and read.cell_N.tolist() == ["seen", "seen", "new", "new"]
    assert read.score["none"].tolist() == strict[3, "2 red circles"] + strict[5, "one red circle"]
    assert read.score["oracle"].tolist() == strict[3, "two red circles"] + strict[5, "one red circle"]
    assert read.score["endless"].tolist() == read.score["oracle"].tolist()
    assert read.kept == {"none": 1.0, "oracle": 0.5, "endless": 0.5} and {*read.distinct.values()} == {1.0}
    assert read.unfinished == {"none": 0.0, "oracle": 0.0, "endless": 1.0} and {*read.cut.values()} == {0.0}
    assert (
        all(0 < read.diversity[who] < 255 for who in ("none", "oracle"))
        and read.diversity["none"] != read.diversity["oracle"]
    )
    said = writers_summary(tmp_path)
    assert "scenes_strict in each cell" in said and "Difference from none" in said


def test_an_evaluation_is_another_by_the_rewards_that_it_shows(config: RunConfig) -> None:
    rewards = [Reward(name="redness"), Reward(name="redness", seconds=9), Reward(name="scenes_strict")]
    watching = [
        config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"rewards": (reward,)})})
        for reward in rewards
    ]
    one, patient, other = (evaluation.identity(each, evaluation.Plan(("none",)), {}) for each in watching)
    assert one == patient != other


def test_a_budget_has_the_first_prompts_whole(config: RunConfig) -> None:
    """Two steps without guidance: a candidate of three pictures takes 6 network evaluations."""
    kept = [Candidate(3, "a", True), Candidate(3, "b", False), Candidate(5, "c", True), Candidate(7, "d", True)]

    def within(budget: int | None) -> list[str]:
        plan = pairs.Plan(pictures=3, budget=budget)
        return [one.text for one in pairs.within_budget(config, kept, plan)]

    assert draw.costs(config, 3)["network_evaluations"] == 6
    assert [within(budget) for budget in (None, 24, 23, 18, 17, 12)] == [
        ["a", "b", "c", "d"],
        ["a", "b", "c", "d"],
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["a", "b"],
        ["a", "b"],
    ]
    with pytest.raises(UserError, match=r"expected --budget of at least 12, .* got 11"):
        within(11)


def test_a_budget_that_is_refused_leaves_nothing_behind(config: RunConfig, tmp_path: Path) -> None:
    """So that the command can be given again with a larger one."""
    plan = pairs.Plan(prompts=1, draws=1, budget=1)
    with pytest.raises(UserError, match=r"expected --budget of at least"):
        pairs.drawn_candidates(tmp_path, open_writer(BUNDLED), config, [PROMPTS[3]], plan)
    assert not list(tmp_path.iterdir())
