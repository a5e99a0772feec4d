"""The bundled world's tasks: episodes, what descriptions mean, and a judge that is exact."""

from __future__ import annotations

import numpy as np
import pytest

from raysuite.in_context.scenes import FIRST, SECOND, ScenesWorld
from raysuite.in_context.tasks import Episode, Judgement, Task, Variant, judged
from raysuite.worlds.scenes import grammar

WORLDS = {"plain": ScenesWorld(0), "nuisance": ScenesWorld(0, nuisance=True)}
TASKS = [pytest.param(world, task, id=f"{name}-{task.name}") for name, world in WORLDS.items() for task in world.tasks]


def content(episode: Episode) -> list[object]:
    shown = [(d.text, d.cell, d.caption, d.picture.tobytes()) for d in episode.demos]
    return [episode.query, episode.request, episode.cell, shown]


@pytest.mark.parametrize(("world", "task"), TASKS)
@pytest.mark.parametrize("variant", ["default", "exact", "misleading"])
def test_an_episode_is_a_function_of_its_coordinates(world: ScenesWorld, task: Task, variant: Variant) -> None:
    again = ScenesWorld(0, nuisance=world.nuisance)
    shots = max(task.shots)
    wanted = content(world.episode(task, shots, 7, variant))
    assert content(again.episode(task, shots, 7, variant)) == wanted
    assert content(ScenesWorld(1, nuisance=world.nuisance).episode(task, shots, 7, variant)) != wanted


@pytest.mark.parametrize(("world", "task"), TASKS)
def test_texts_differ_the_latent_does_not_and_the_query_is_a_new_combination(world: ScenesWorld, task: Task) -> None:
    held_out = set(grammar.held_out_prompts())
    for index in range(10):
        episode = world.episode(task, max(task.shots), index)
        texts = [*(demo.text for demo in episode.demos), episode.query]
        assert len({*texts}) == len(texts) and {*texts} <= {*task.requests}
        assert {task.latent(demo.cell) for demo in episode.demos} == {task.latent(episode.cell)}
        assert [task.request(demo.cell) for demo in episode.demos] == texts[:-1]
        assert task.request(episode.cell) == episode.request == episode.query
        assert world.sentence(task.theme, episode.cell) in held_out


@pytest.mark.parametrize("name", WORLDS)
def test_no_cell_that_is_asked_for_is_taught(name: str) -> None:
    """Neither by its own theme nor by another whose prompts describe it; each theme asks for about a quarter, or half of ten pairs."""
    world = WORLDS[name]
    for theme in world.themes:
        assert not {*theme.tests} & {*world.lessons[theme.name]}
        assert not {world.meaning(theme, prompt) for prompt in world.training} & {*theme.tests}
        assert 1 / 6 < len(theme.tests) / len(theme.cells) <= 1 / 2


@pytest.mark.parametrize(("world", "task"), TASKS)
def test_fewer_shots_are_the_same_question(world: ScenesWorld, task: Task) -> None:
    most = world.episode(task, max(task.shots), 3)
    for shots in task.shots:
        fewer = world.episode(task, shots, 3)
        assert fewer.cell == most.cell and fewer.query == most.query
        assert [d.caption for d in fewer.demos] == [d.caption for d in most.demos[:shots]]


@pytest.mark.parametrize(("world", "task"), TASKS)
def test_variants_write_the_latent_or_another(world: ScenesWorld, task: Task) -> None:
    shots = max(task.shots)
    plain, exact, misleading = (world.episode(task, shots, 5, v) for v in ("default", "exact", "misleading"))
    latent = task.latent(plain.cell)
    assert exact.query == f"{plain.query} {latent}"
    assert [d.text for d in exact.demos] == [f"{d.text} {latent}" for d in plain.demos]
    for text, before in zip([d.text for d in misleading.demos], plain.demos, strict=True):
        wrong = text.removeprefix(f"{before.text} ")
        assert wrong in task.latents and wrong != latent
    assert [d.picture.tobytes() for d in misleading.demos] == [d.picture.tobytes() for d in plain.demos]


def test_ten_tasks_with_the_chances_and_shots_that_their_tables_give() -> None:
    """Cells and texts counted by hand: a task of N texts has at most N - 1 demonstrations."""
    found = {task.name: (round(1 / task.chance), task.shots) for task in WORLDS["plain"].tasks}
    assert found == {
        "Colour-I": (72, (2, 4)),
        "Colour-II": (72, (2, 4, 6, 8)),
        "Count-I": (72, (2,)),
        "Count-II": (72, (2, 4, 6, 8)),
        "Shape-I": (72, (2,)),
        "Shape-II": (72, (2, 4, 6, 8)),
        "Relation-I": (40, (2,)),
        "Relation-II": (40, (2, 4, 6, 8)),
        "Partner-I": (81, (2, 4, 6, 8)),
        "Partner-II": (81, (2, 4, 6, 8)),
    }


def test_first_and_second_things_share_none() -> None:
    assert not {*FIRST} & {*SECOND} and len({*FIRST, *SECOND}) == 18
    for half in (FIRST, SECOND):
        assert {thing.split()[1] for thing in half} == {*grammar.COLOURS}
        assert {thing.split()[2] for thing in half} == {*grammar.SHAPES}


@pytest.mark.parametrize("name", WORLDS)
def test_the_judge_reads_every_cell_of_every_theme(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(0)
    for theme in world.themes:
        for cell in theme.cells:
            assert world.judge(theme, world.picture(theme, cell, rng)) == cell


@pytest.mark.parametrize("name", WORLDS)
def test_sentences_and_texts_mean_their_cells(name: str) -> None:
    world = WORLDS[name]
    for theme in world.themes:
        for cell in theme.cells:
            assert world.meaning(theme, world.sentence(theme, cell)) == cell
            assert world.meaning(theme, f"{cell.object} {cell.detail}") == cell
        assert world.meaning(theme, theme.details[0]) == (theme.details[0], None)
        assert world.meaning(theme, theme.objects[0]) == (None, theme.objects[0])
        assert world.meaning(theme, "a wolf") == (None, None)


def test_a_nuisance_varies_and_decides_nothing() -> None:
    world = WORLDS["nuisance"]
    colour = world.tasks[0]
    captions = {demo.caption.split()[0] for i in range(10) for demo in world.episode(colour, 4, i).demos}
    assert captions == {*grammar.COUNTS}
    assert {world.meaning(colour.theme, f"{n} red square{'s' * (n != 'one')}") for n in grammar.COUNTS} == {
        ("red", "square")
    }


def test_a_picture_of_something_else_is_no_option() -> None:
    world, rng = WORLDS["plain"], np.random.default_rng(0)
    colour, relation = world.themes[0], world.themes[3]
    blank = np.full((32, 32, 3), 245, dtype=np.uint8)
    assert world.judge(colour, blank) == (None, None)
    pair = world.picture(relation, relation.cells[0], rng)
    assert world.judge(colour, pair).object is None
    three = world.picture(colour, colour.cells[2 * len(grammar.SHAPES)], rng)
    assert world.judge(relation, three) == (None, None)


def test_textual_and_visual_swap_between_kinds() -> None:
    first, second = WORLDS["plain"].tasks[:2]
    cell = first.theme.cells[0]
    half = Judgement(cell.detail, None)
    assert judged(first, cell, half) == (True, False)
    assert judged(second, cell, half) == (False, True)


@pytest.mark.parametrize("name", WORLDS)
def test_a_captioner_without_errors_says_what_the_picture_shows(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(0)
    demos = [demo for task in world.tasks for demo in world.episode(task, max(task.shots), 0).demos]
    assert [world.caption(demo.picture, rng, 0.0) for demo in demos] == [demo.caption for demo in demos]
    wrong = [world.caption(demo.picture, rng, 1.0) for demo in demos]
    for caption, demo in zip(wrong, demos, strict=True):
        said, shown = caption.split(), demo.caption.split()
        assert said[0] != shown[0] or said[1:3] != shown[1:3]
        assert grammar.parse(caption) != grammar.parse(demo.caption)
    assert world.caption(np.full((32, 32, 3), 245, dtype=np.uint8), rng, 0.0) == ""
