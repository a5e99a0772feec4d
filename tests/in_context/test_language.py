"""The small language model that reads episodes: what it is taught, that it learns, and that it is taught once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysuite.in_context import language
from raysuite.in_context.language import LanguageModel, Lesson, learned, model_per_task, question, reply, written
from raysuite.in_context.policies import given_captions
from raysuite.in_context.scenes import ScenesWorld
from raysuite.worlds.scenes import grammar

WORLD = ScenesWorld(0)
SHORT = 160_000
"""Tokens: a few seconds of training."""


def test_an_episode_in_words() -> None:
    asked = question(["red", "blue", "black"], ["three red circles", ""])
    assert asked == "red : three red circles ; blue : ? ; black :"
    assert reply("three black circles", "three circles", thought=False) == "three black circles"
    assert (
        reply("three black circles", "three circles", thought=True)
        == "same : three circles ; next : three black circles"
    )


@pytest.mark.parametrize("nuisance", [False, True])
@pytest.mark.parametrize("thought", [False, True])
def test_lessons_have_no_combination_that_is_asked_for_later(nuisance: bool, thought: bool) -> None:
    world = ScenesWorld(0, nuisance=nuisance)
    lesson = Lesson(world, thought, None, 0)
    held_out, training = {*grammar.held_out_prompts()}, {*grammar.training_prompts()}
    held_out |= {scene.prompt for theme in world.themes for cell in theme.tests for scene in theme.scenes[cell]}
    rng = np.random.default_rng(0)
    for _ in range(300):
        asked, answer = lesson.draw(rng)
        captions = [shown.split(" : ")[1] for shown in asked.split(" ; ")[:-1]]
        captions.append(answer.rpartition("next : ")[2])
        assert {*captions} <= training and not {*captions} & held_out
        assert len({shown.split(" :")[0] for shown in asked.split(" ; ")}) == len(captions)
        assert ("same" in answer) == thought
        assert len(language.tokens(asked) + language.tokens(answer)) < language.LONGEST


def test_a_theme_that_is_left_out_is_not_taught() -> None:
    lesson = Lesson(WORLD, False, "Relation", 0)
    assert {task.theme.name for task in lesson.tasks} == {"Colour", "Count", "Shape", "Partner"}


def right(model: object, theme: str) -> float:
    tasks = [task for task in WORLD.tasks if task.theme.name == theme]
    episodes = [WORLD.episode(task, 2, index) for task in tasks for index in range(20)]
    generator = LanguageModel(lambda task: model, given_captions, {})  # type: ignore[arg-type, return-value]
    answers = generator.answers(WORLD, episodes)
    return float(
        np.mean(
            [WORLD.meaning(e.task.theme, a.description or "") == e.cell for e, a in zip(episodes, answers, strict=True)]
        )
    )


@pytest.mark.slow
def test_it_learns_and_is_taught_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one theme; untrained it is right at most one time in twenty."""
    monkeypatch.setattr(Lesson, "tasks", WORLD.tasks[:2])
    lesson = Lesson(WORLD, False, None, 0, SHORT)
    model = learned(lesson, tmp_path / "model.safetensors")
    assert right(language.untrained(0).eval(), "Colour") <= 0.05
    assert right(model, "Colour") > 0.3
    monkeypatch.setattr(language, "trained", lambda lesson: pytest.fail("trained twice"))
    again = learned(lesson, tmp_path / "model.safetensors")
    asked = [question(["red", "blue", "black"], ["three red circles", "three blue circles"])] * 2
    assert written(again, asked) == written(model, asked)


def test_answers_do_not_depend_on_what_else_is_asked() -> None:
    model = language.untrained(3).eval()
    texts = ["red :", question(["red", "blue", "black"], ["three red circles", "three blue circles"])]
    assert written(model, texts) == [written(model, [text])[0] for text in texts]


def test_a_thought_is_not_part_of_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "same : three circles ; next : three black circles"
    monkeypatch.setattr(language, "written", lambda model, asked: [said for _ in asked])
    generator = LanguageModel(lambda task: language.untrained(0), given_captions, {})
    answer = generator.answer(WORLD, WORLD.episode(WORLD.tasks[0], 2, 0))
    assert answer.description == "three black circles" and answer.transcript == said
    assert answer.tokens > len(said.split())


def test_each_task_has_a_model_that_has_not_seen_its_theme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons: list[Lesson] = []

    def learn(lesson: Lesson, file: Path) -> object:
        lessons.append(lesson)
        return file.name

    monkeypatch.setattr(language, "learned", learn)
    model_for = model_per_task(WORLD, tmp_path, thought=True, left_out=True, seed=0, budget=SHORT)
    found = [model_for(task) for task in WORLD.tasks]
    assert found[:3] == [*["cot-without-Colour.safetensors"] * 2, "cot-without-Count.safetensors"]
    assert [lesson.without for lesson in lessons] == ["Colour", "Count", "Shape", "Relation", "Partner"]
