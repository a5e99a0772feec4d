"""A run's prompts in a writer's words: made once, given to the model, and never their own judge."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysuite import rewritten
from raysuite.cluster import launch, writer as writing
from raysuite.cluster.writer import rewrite_prompts
from raysuite.config import Reward, RunConfig, load
from raysuite.errors import UserError
from raysuite.results.report import write_report
from raysuite.results.run import read_run
from raysuite.stages import rewrites
from raysuite.stages.files import RunDirectory
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import Prompt, load_prompts, run_prompts, training_blocks
from raysuite.stages.rewrites import BUNDLED
from raysuite.stages.rollout import ask_here
from raysuite.stages.stored import read
from raysuite.types import TYPED, Block, Rollouts
from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.render import render
from raysuite.writer import rewriting
from raysuite.writer.candidates import Candidate
from raysuite.writer.draw import Key, Scores, with_noise_of
from raysuite.writer.model import Rewrite, open_writer
from tests.stages.worker import begin

SMALL = {
    "updates": "1",
    "sampler.steps": "2",
    "rollouts.prompts": "4",
    "rollouts.samples": "2",
    "rollouts.prompts_per_block": "2",
    "rollouts.keep": "true",
    "learn.minibatches": "1",
    "evaluation.prompts": "4",
    "evaluation.final_samples": "1",
    "evaluation.kl": "false",
    "prompts.writer": BUNDLED,
}


def users(**settings: str) -> RunConfig:
    return load("scenes-users-ddpo", {**SMALL, **{path.replace("__", "."): value for path, value in settings.items()}})


class Says:
    """In place of a writer: the same of every text."""

    def __init__(self, said: str) -> None:
        self.said, self.asked = said, list[str]()

    def rewrites(self, texts: Sequence[str], *, temperature: float) -> list[Rewrite]:
        assert temperature == 0
        self.asked += texts
        return [Rewrite(self.said, 0.0) for _ in texts]


def never(prompts: Mapping[int, Prompt], texts: Sequence[Candidate]) -> Mapping[Key, Scores]:
    """Pictures decide nothing here."""
    raise AssertionError(texts)


def test_what_was_typed_stays_where_it_is_drawn_better_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards 1/4 apart, for the rewrite, for the user's text, for none: by the prompt's number."""
    monkeypatch.setattr(rewriting, "open_writer", lambda name: Says("one red circle"))
    drawn = list[Candidate]()

    def scored(prompts: Mapping[int, Prompt], texts: Sequence[Candidate]) -> Mapping[Key, Scores]:
        drawn.extend(texts)
        assert all(one.own == (one.text == prompts[one.prompt].text) for one in texts)
        ahead = {(one.prompt, one.text): (one.prompt % 3 - 1) / 4 * (not one.own) for one in texts}
        return {key: Scores(np.array([0.25, 0.75]) + better) for key, better in ahead.items()}

    config = users(prompts__best_of="2")
    with caplog.at_level(logging.WARNING, "raysuite"):
        rewriting.rewrite_once(config, tmp_path, scored)
    number = {prompt.text: prompt.number for prompt in load_prompts(config.prompts).all}
    rows = rewritten.rows(tmp_path)
    assert {number[row["user"]] % 3 for row in rows} == {0, 1, 2} and len(drawn) == 2 * len(rows)
    for row in rows:
        ahead = (number[row["user"]] % 3 - 1) / 4
        assert row["rewrite"] == (row["user"] if ahead < 0 else "one red circle")
        told = {name: value for name, value in row.items() if name not in ("user", "rewrite")}
        assert told == {
            "network_evaluations": 2 * 2 * 2,  # pictures of both, of two steps
            "written": "one red circle",
            "rewards": {"typed": 0.5, "written": 0.5 + ahead},
            "pictures": 2,
        }
    stay, asked = sum(row["rewrite"] == row["user"] for row in rows), len(rows)
    assert (
        f"choosing between {asked} prompts and their rewrites by {4 * asked} pictures: {4 * asked * 2:,} network"
        in caplog.text
    )
    assert (
        f"rewrote {asked} of {asked} prompts; what was typed is drawn better, and stays, for {stay} of these"
        in caplog.text
    )

    rewriting.rewrite_once(config, tmp_path, never)  # what was chosen stays chosen
    drawn.clear()
    rewriting.rewrite_once(users(prompts__best_of="2", updates="3"), tmp_path, scored)
    more = rewritten.rows(tmp_path)
    assert more[: len(rows)] == rows and len(drawn) == 2 * (len(more) - len(rows)) > 0


@pytest.mark.slow
def test_pictures_choose_between_what_was_typed_and_its_rewrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By real pictures. Stopped once, the choice goes on from what was drawn, and comes out the same."""
    config = users(prompts__best_of="2", cluster__actors="0", cluster__threads="1", sampler__steps="4")
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        RunDirectory(directory).claim(config, ["test"])
    rewrite_prompts(config, one)
    rows = rewritten.rows(one)
    seen = [row for row in rows if "written" in row]
    assert seen and len(seen) < len(rows)  # what is plain stays as it is, and is not drawn
    for row in seen:
        worse = (
            row["rewards"]["typed"] - row["rewards"]["written"] > 1e-9
        )  # rewards of equal pictures may differ by rounding
        assert row["rewrite"] == (row["user"] if worse else row["written"])
    assert len({row["rewrite"] == row["written"] for row in seen}) == 2

    drawn = writing.draw.draw

    def interrupted(*asked: Any) -> Iterator[Rollouts]:
        yield next(drawn(*asked))
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.draw, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite_prompts(config, other)
    assert not (other / rewritten.FILE).exists() and len(list(other.glob("choosing/*/scores/*"))) == 1
    shown = json.loads((other / "progress.json").read_text())
    assert (shown["phase"], shown["blocks"]) == ("choose", 1) and shown["blocks_total"] > 1
    monkeypatch.setattr(writing.draw, "draw", drawn)
    rewrite_prompts(config, other)
    assert rewritten.rows(other) == rows and not (other / "choosing").exists()

    dropped = sum(row["rewrite"] == row["user"] for row in seen)
    begin(config, other).train()
    cost = f"{dropped} of {len(seen)} rewrites were drawn worse than what was typed, and dropped: {len(seen) * 4 * 4} network"
    assert cost in write_report(other).read_text()


def test_pictures_of_other_settings_or_of_a_lesson_choose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "open_writer", lambda name: Says("one red circle"))
    places = list[Path]()

    def drawn(
        model: FoundModel, prompts: object, texts: object, pictures: int, directory: Path, *rest: Any, **more: Any
    ) -> None:
        assert model.config.evaluation.seed != with_noise_of(users(), model.config.seed).evaluation.seed
        places.append(directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_draw", drawn)
    for settings in ({}, {}, {"rewards": "[{name: redness}]"}, {"sampler__guidance": "2"}):
        with pytest.raises(KeyboardInterrupt):
            rewrite_prompts(users(prompts__best_of="2", **settings), tmp_path)
    assert places[0] == places[1] and len({*places}) == 3


@pytest.mark.slow
def test_a_run_draws_what_its_writer_makes_of_its_prompts_and_keeps_both(tmp_path: Path) -> None:
    config = users()
    RunDirectory(tmp_path).claim(config, ["test"])
    rewriting.rewrite_once(config, tmp_path, never)
    begin(config, tmp_path).train()
    of = rewritten.read(tmp_path)
    typed = [prompt.text for prompt in load_prompts(config.prompts).all if prompt.text in of]
    written = open_writer(BUNDLED).rewrites(typed, temperature=0)
    assert [of[text] for text in typed] == [one.text for one in written] and any(of[text] != text for text in typed)

    (block, *_) = training_blocks(config, run_prompts(config, tmp_path), 0)
    assert block.prompts == tuple(of[known[TYPED]] for known in block.metadata)
    stored = read(tmp_path, 0, block.index).block
    assert (stored.prompts, [dict(m) for m in stored.metadata]) == (block.prompts, [dict(m) for m in block.metadata])

    scores = pq.read_table(tmp_path / "scores" / "000000.parquet").to_pylist()
    assert {row["prompt"] for row in scores} <= {*typed} and all(row["rewrite"] == of[row["prompt"]] for row in scores)
    picture = next(picture for picture in read_run(tmp_path).pictures if picture.rewrite)
    assert picture.rewrite == of[picture.prompt] != picture.prompt
    assert f"drawn as {picture.rewrite}" in write_report(tmp_path).read_text()


def test_prompts_are_rewritten_once_and_more_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Says("two red circles"), Says("one red circle")
    monkeypatch.setattr(rewriting, "open_writer", lambda name: first)
    with caplog.at_level(logging.WARNING, "raysuite"):
        rewriting.rewrite_once(users(), tmp_path, never)
    assert f"NOTE: {BUNDLED} rewrote" in caplog.text and "cut" not in caplog.text
    kept = rewritten.read(tmp_path)
    assert len(first.asked) == len({*first.asked}) == len(kept) <= 4 + 4 + 4
    rewriting.rewrite_once(users(), tmp_path, never)
    assert len(first.asked) == len(kept)
    monkeypatch.setattr(rewriting, "open_writer", lambda name: second)
    rewriting.rewrite_once(users(updates="3"), tmp_path, never)
    more = rewritten.read(tmp_path)
    assert kept.items() < more.items() and {more[text] for text in second.asked} == {"one red circle"}
    assert {*second.asked} == more.keys() - kept.keys()


def test_a_text_of_which_nothing_is_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "open_writer", lambda name: Says(""))
    rewriting.rewrite_once(users(), tmp_path, never)
    of = rewritten.read(tmp_path)
    assert of and all(user == rewrite for user, rewrite in of.items())


def test_rewrites_that_the_model_cuts_are_told_and_refused_where_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a very long sentence of which nobody knows the end"
    monkeypatch.setattr(rewriting, "open_writer", lambda name: Says(long))
    with pytest.raises(
        UserError, match=r"expected rewrites of at most 16 tokens.*that are all longer, such as 'a very long"
    ):
        rewriting.rewrite_once(users(), tmp_path, never)
    assert not (tmp_path / rewritten.FILE).exists()

    class Sometimes(Says):
        def rewrites(self, texts: Sequence[str], *, temperature: float) -> list[Rewrite]:
            return [Rewrite(long if place == 0 else "one red circle", 0.0) for place in range(len(texts))]

    monkeypatch.setattr(rewriting, "open_writer", lambda name: Sometimes(""))
    with caplog.at_level(logging.WARNING, "raysuite"):
        rewriting.rewrite_once(users(), tmp_path, never)
    assert f"WARNING: 1 of {len(rewritten.read(tmp_path))} rewrites are cut after the 16 tokens" in caplog.text


def test_rewrites_that_did_not_end_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Sometimes(Says):
        def rewrites(self, texts: Sequence[str], *, temperature: float) -> list[Rewrite]:
            return [Rewrite("one red circle left of", 0.0, ended=place > 1) for place in range(len(texts))]

    monkeypatch.setattr(rewriting, "open_writer", lambda name: Sometimes(""))
    with caplog.at_level(logging.WARNING, "raysuite"):
        rewriting.rewrite_once(users(), tmp_path, never)
    told = f"WARNING: 2 of {len(rewritten.read(tmp_path))} rewrites did not end within 32 tokens and stop there, for example 'one"
    assert told in caplog.text


def test_a_rewrite_is_not_its_own_judge() -> None:
    """Rewards are given what the user typed, and what was meant where the metadata say it; the model is given the rewrite."""
    picture = render(parse("two red circles"), np.random.default_rng(0))[None]
    for text, scene, rewrite, right in (
        ("one blue square", None, "two red circles", 0.0),
        ("two red circles", None, "one blue square", 1.0),
        ("2 crimson discs", "two red circles", "one blue square", 1.0),
    ):
        said = Prompt(text, 0, {"scene": scene} if scene else {}, rewrite=rewrite)
        block = Block(
            update=0,
            index=0,
            prompts=(said.given, "three red squares"),
            prompt_ids=(0, 1),
            samples_per_prompt=1,
            metadata=(said.known, {}),
        )
        assert block.prompt_of_N == (rewrite, "three red squares") and block.asked_of_N == (text, "three red squares")
        pictures = np.concatenate([picture, picture])
        strict = ask_here(Reward(name="scenes_strict"), pictures, block, told=lambda failure: None)
        assert strict.tolist() == [right, 0.0]


def test_another_writer_is_another_run(tmp_path: Path) -> None:
    assert users().identity() != users(prompts__writer="null").identity()
    assert users().identity() != users(prompts__best_of="1").identity()
    writer = tmp_path / "mine" / "writer"
    writer.mkdir(parents=True)
    open_writer(BUNDLED).save(writer)
    config, run = users(prompts__writer=str(tmp_path / "mine")), RunDirectory(tmp_path / "run")
    run.claim(config, ["test"])
    assert "prompts.writer" in json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]
    (tmp_path / "run" / "metrics.jsonl").touch()
    template = writer / "chat_template.jinja"
    template.write_text("Say: " + template.read_text())
    with pytest.raises(UserError, match=r"expected what prompts\.writer names as it was when the run .* began"):
        run.claim(config, ["test"])


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"prompts.writer": "nobody"}, "expected a writer (scenes-writer"),
        ({"prompts.writer": "null", "prompts.best_of": "4"}, "expected prompts.writer with prompts.best_of=4"),
        (
            {"prompts.best_of": "4", "reward_scale": "batch"},
            "expected reward_scale=given with prompts.best_of=4, got batch",
        ),
        (
            {"prompts.training": "FILE", "prompts.held_out": "null"},
            "expected no column user_prompt in prompts.training=",
        ),
    ],
)
def test_refusals(settings: dict[str, str], mentions: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{n} red circles", "scene": "two red circles", TYPED: "x"} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {**SMALL, **{k: v.replace("FILE", str(file)) for k, v in settings.items()}}

    def begun() -> None:
        config = load("scenes-users-ddpo", given)
        launch.preflight(config)
        rewriting.rewrite_once(config, tmp_path, never)

    with pytest.raises(UserError) as refused:
        begun()
    assert mentions in str(refused.value)


def test_what_a_run_without_its_rewrites_says(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected what scenes-writer made of every prompt in .*rewrites\.jsonl, found nothing for"
    ):
        run_prompts(users(), tmp_path)
    (tmp_path / rewritten.FILE).write_text("{")
    with pytest.raises(UserError, match="as the run wrote it, it is damaged"):
        run_prompts(users(), tmp_path)


def test_sets_and_studies_have_no_writer() -> None:
    with pytest.raises(UserError, match=r"expected no prompts\.writer for a set of preferences, .* got scenes-writer"):
        rewrites.refuse_writer(users(), "a set of preferences")
