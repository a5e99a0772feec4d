"""Ten tasks of in-context generation in the scenes world, with a judge that is exact.

    theme     details             objects                   free with nuisance (objects are then)
    Colour    6 colours           12 (count, shape)         count (3 shapes)
    Count     4 counts            18 (colour, shape)        colour (3 shapes)
    Shape     3 shapes            24 (count, colour)        count (6 colours)
    Relation  4 relations         10 pairs of things        the second thing (9 first things)
    Partner   9 second things     9 first things            the relation ("left of" without nuisance)

Episodes are functions of coordinates: there are as many as one wants, and no model has seen them. The query is a cell of a
combination that no training prompt has. With nuisance most cells have scenes of both kinds: one cell in four is then asked for, and
none of its scenes is taught. An episode of four shots begins with the demonstrations of the one of two, so that shots are
compared on the same questions. With nuisance an attribute that neither text nor latent holds fixed varies over the demonstrations:
what is common has to be found among what is not.

Of the 18 things nine may be the first of a pair and the other nine the second: which of two things in a picture is which is then never
a matter of opinion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import cast

import numpy as np

from raysuite.in_context.tasks import Cell, Demo, Episode, Judgement, Task, Theme, Variant, World, texts_of, written
from raysuite.rng import Stage, numpy_generator
from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.grammar import COLOURS, COUNTS, RELATIONS, SHAPES, Scene, Thing
from raysuite.worlds.scenes.render import SIZE, render
from raysuite.worlds.scenes.verify import Found, holds, read

THINGS = tuple(Thing(colour, shape) for colour, shape in product(COLOURS, SHAPES))
FIRST, SECOND = (tuple(f"a {thing.colour} {thing.shape}" for thing in THINGS[half::2]) for half in (0, 1))
"""Things that may be named first and second in a pair; both have every colour and every shape."""
PAIRS_OF_A_KIND = 5
"""Of the ten pairs of Relation, as many are held out as are not."""
VALUES: Mapping[str, tuple[str, ...]] = {
    "count": COUNTS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "relation": RELATIONS,
    "first": FIRST,
    "second": SECOND,
}
"""Attributes of a scene and their values: the first three of things that are alike, the others of a pair."""

Attributes = Mapping[str, str]


@dataclass(frozen=True)
class SceneTheme(Theme):
    """A theme, and what its sides are made of."""

    detail: str
    """The attribute of the one side."""
    object: tuple[str, ...]
    """Those of the other."""
    free: str | None
    """The attribute that is on no side, if one is."""
    fixed: Attributes
    """Attributes that are the same in all of its pictures."""

    def side(self, attributes: Sequence[str], values: Mapping[str, str | None]) -> str | None:
        """The option that has these values; None where one is missing or there is no such option."""
        if any(values.get(name) is None for name in attributes):
            return None
        option = worded({name: cast(str, values[name]) for name in attributes})
        return option if option in (*self.details, *self.objects) else None

    def judgement(self, values: Mapping[str, str | None]) -> Judgement:
        """The options that have these values."""
        if any(values.get(name) != value for name, value in self.fixed.items()):
            values = {}
        return Judgement(self.side((self.detail,), values), self.side(self.object, values))

    @cached_property
    def scenes(self) -> Mapping[Cell, tuple[Scene, ...]]:
        """The scenes that a cell may be: one, or as many as what is free has values; those of held-out combinations first."""
        held_out = set(grammar.held_out_prompts())
        found: dict[Cell, list[Scene]] = {cell: [] for cell in self.cells}
        names = [self.detail, *self.object, *([self.free] if self.free else [])]
        for values in product(*(VALUES[name] for name in names)):
            attributes = {**self.fixed, **dict(zip(names, values, strict=True))}
            detail, thing = self.judgement(attributes)
            if detail is not None and thing is not None:
                found[Cell(detail, thing)].append(scene_of(attributes))
        return {cell: tuple(sorted(of, key=lambda s: s.prompt not in held_out)) for cell, of in found.items()}

    @cached_property
    def tests(self) -> tuple[Cell, ...]:
        """Cells of combinations that no training prompt has: what is asked for. Where what is free leaves every cell a training
        prompt, every fourth on diagonals of the table, as combinations are held out; a table turned on its side has the same.
        """
        held_out = set(grammar.held_out_prompts())
        whole = tuple(cell for cell, of in self.scenes.items() if all(scene.prompt in held_out for scene in of))
        return whole or tuple(
            cell
            for cell, of in self.scenes.items()
            if (self.details.index(cell.detail) + self.objects.index(cell.object)) % grammar.HELD_OUT_EVERY == 0
            and of[0].prompt in held_out
        )

    def described(self, prompts: Collection[str]) -> Mapping[Cell, tuple[str, ...]]:
        """Cells that some of these prompts describe, and which."""
        found = {cell: tuple(s.prompt for s in of if s.prompt in prompts) for cell, of in self.scenes.items()}
        return {cell: own for cell, own in found.items() if own}

    @cached_property
    def texts(self) -> Mapping[str, Judgement]:
        """What texts of episodes say: an option alone, or one of each side in either order."""
        alone = {detail: Judgement(detail, None) for detail in self.details}
        alone |= {thing: Judgement(None, thing) for thing in self.objects}
        both = {written(*order): Judgement(*cell) for cell in self.cells for order in (cell, cell[::-1])}
        return both | alone


def worded(values: Attributes) -> str:
    """Values of attributes in words: three circles, red circle, three red, a red circle and a blue square."""
    if "first" in values and "second" in values:
        return f"{values['first']} and {values['second']}"
    words = [values[name] for name in ("count", "colour", "shape", "relation", "first", "second") if name in values]
    plural = "s" if "shape" in values and values.get("count", "one") != "one" else ""
    return " ".join(words) + plural


def scene_of(values: Attributes) -> Scene:
    """The scene that has these values."""
    if "relation" in values:
        first, second = (Thing(*values[name].removeprefix("a ").split()) for name in ("first", "second"))
        return Scene((first, second), values["relation"])
    return Scene((Thing(values["colour"], values["shape"]),) * (1 + COUNTS.index(values["count"])))


def values_of(scene: Scene) -> dict[str, str]:
    """The inverse."""
    if scene.relation is not None:
        first, second = (f"a {thing.colour} {thing.shape}" for thing in scene.things)
        return {"relation": scene.relation, "first": first, "second": second}
    thing = scene.things[0]
    return {"count": COUNTS[len(scene.things) - 1], "colour": thing.colour, "shape": thing.shape}


def seen(found: Sequence[Found]) -> dict[str, str | None]:
    """Attributes of what was found in a picture, of things that are alike and of a pair; None where there is no saying."""
    colours, shapes = {thing.colour for thing in found}, {thing.shape for thing in found}
    values: dict[str, str | None] = {
        "count": COUNTS[len(found) - 1] if 0 < len(found) <= len(COUNTS) else None,
        "colour": colours.pop() if len(colours) == 1 else None,
        "shape": shapes.pop() if len(shapes) == 1 else None,
    }
    return values | (_pair(found) if len(found) == 2 else {})


def _pair(found: Sequence[Found]) -> dict[str, str | None]:
    """The same of two things. Which is the first can be said where one of them can only be the one or the other."""
    names = [f"a {thing.colour} {thing.shape}" for thing in found]
    firsts, seconds = ([place for place in (0, 1) if names[place] in half] for half in (FIRST, SECOND))
    if len(firsts) != 1 and len(seconds) != 1:
        return {}
    first = firsts[0] if len(firsts) == 1 else 1 - seconds[0]
    relations = [relation for relation in RELATIONS if holds(relation, found[first], found[1 - first])]
    return {
        "first": names[first],
        "second": names[1 - first],
        "relation": relations[0] if len(relations) == 1 else None,
    }


def themes(nuisance: bool) -> tuple[SceneTheme, ...]:
    """The five, with or without an attribute that is free."""
    relation_pairs = ("first",) if nuisance else ("first", "second")
    made: tuple[tuple[str, str, tuple[str, ...], str, Attributes], ...] = (
        ("Colour", "colour", ("shape",) if nuisance else ("count", "shape"), "count", {}),
        ("Count", "count", ("shape",) if nuisance else ("colour", "shape"), "colour", {}),
        ("Shape", "shape", ("colour",) if nuisance else ("count", "colour"), "count", {}),
        ("Relation", "relation", relation_pairs, "second", {}),
        ("Partner", "second", ("first",), "relation", {} if nuisance else {"relation": "left of"}),
    )
    found = []
    for name, detail, thing, free, fixed in made:
        objects = [
            worded(dict(zip(thing, values, strict=True))) for values in product(*(VALUES[side] for side in thing))
        ]
        found.append(
            SceneTheme(
                name,
                VALUES[detail],
                _ten_pairs() if name == "Relation" and not nuisance else tuple(objects),
                detail=detail,
                object=thing,
                free=free if nuisance else None,
                fixed=fixed,
            )
        )
    return tuple(found)


def _ten_pairs() -> tuple[str, ...]:
    """Pairs of things, evenly spaced among those that are held out in every relation, and among those that are not."""
    held_out = set(grammar.held_out_prompts())
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for first, second in product(FIRST, SECOND):
        pair = {"first": first, "second": second}
        kinds[scene_of({"relation": "left of", **pair}).prompt in held_out].append(worded(pair))
    spaced = (of[place * len(of) // PAIRS_OF_A_KIND] for of in kinds.values() for place in range(PAIRS_OF_A_KIND))
    return tuple(spaced)


class ScenesWorld(World):
    """The bundled world, without end.

    Args:
        seed: of the episodes.
        nuisance: whether an attribute is free that neither text nor latent holds fixed.
    """

    def __init__(self, seed: int = 0, *, nuisance: bool = False) -> None:
        self.name, self.size, self.seed, self.nuisance = "scenes", (SIZE, SIZE), seed, nuisance
        self.themes = themes(nuisance)
        self._shown: dict[tuple[int, int, int], tuple[str, np.ndarray]] = {}
        pairs = product(self.themes, ("I", "II"))
        self.tasks = tuple(
            Task(number, theme, "I" if kind == "I" else "II") for number, (theme, kind) in enumerate(pairs, start=1)
        )

    @cached_property
    def lessons(self) -> Mapping[str, Mapping[Cell, tuple[str, ...]]]:
        """Training prompts by theme and cell, without those of any cell that is asked for, whichever theme asks."""
        asked = {s.prompt for theme in self.themes for cell in theme.tests for s in theme.scenes[cell]}
        known = set(grammar.training_prompts()) - asked
        return {theme.name: theme.described(known) for theme in self.themes}

    @property
    def training(self) -> tuple[str, ...]:
        """All of these, each once: what a model may be taught to draw beforehand."""
        return tuple(sorted({prompt for cells in self.lessons.values() for of in cells.values() for prompt in of}))

    def settings(self) -> Mapping[str, object]:
        """What decides the episodes."""
        return {"name": self.name, "seed": self.seed, "nuisance": self.nuisance}

    def episode(self, task: Task, shots: int, index: int, variant: Variant = "default") -> Episode:
        """The episode at these coordinates: its demonstrations are the first of one order, whatever the number of shots.

        Raises:
            ValueError: the task has too few texts for so many shots.
        """
        theme = self._theme(task.theme)
        if not 0 < shots < len(task.requests):
            raise ValueError(f"expected 1 to {len(task.requests) - 1} shots of {task.name}, got {shots}")
        rng = self._generator(task, index)
        cell = theme.tests[rng.integers(len(theme.tests))]
        request, latent = cast(str, task.request(cell)), cast(str, task.latent(cell))
        others = [str(other) for other in rng.permutation([r for r in task.requests if r != request])][:shots]
        wrong = [str(other) for other in rng.permutation([other for other in task.latents if other != latent])]
        texts = texts_of(variant, [*others, request], latent, [wrong[place % len(wrong)] for place in range(shots + 1)])
        demos = tuple(
            self._demo(task, text, task.cell(other, latent), index, place)
            for place, (text, other) in enumerate(zip(texts[:-1], others, strict=True))
        )
        return Episode(task, index, variant, demos, texts[-1], request, cell)

    def sentence(self, theme: Theme, cell: Cell) -> str:
        """The prompt of the cell's scene; of several, of one that is held out."""
        return self._theme(theme).scenes[cell][0].prompt

    def meaning(self, theme: Theme, description: str) -> Judgement:
        """What a sentence of the world says, or a text with or without its latent; nothing, of anything else."""
        own = self._theme(theme)
        if description in own.texts:
            return own.texts[description]
        try:
            scene = grammar.parse(description)
        except ValueError:
            return Judgement(None, None)
        return own.judgement(values_of(scene))

    def judge(self, theme: Theme, picture: np.ndarray) -> Judgement:
        """What a picture, uint8 (SIZE, SIZE, 3), shows: exact, by `worlds.scenes.verify.read`."""
        return self._theme(theme).judgement(seen(read(picture)))

    def picture(self, theme: Theme, cell: Cell, rng: np.random.Generator) -> np.ndarray:
        """A picture of a cell, uint8 (SIZE, SIZE, 3)."""
        scenes = self._theme(theme).scenes[cell]
        return render(scenes[rng.integers(len(scenes))], rng)

    def caption(self, picture: np.ndarray, rng: np.random.Generator, errors: float) -> str:
        """A sentence of the world that says what a picture shows; nothing where it shows no scene of this world.

        Args:
            picture: uint8 (SIZE, SIZE, 3).
            rng: drawn from as often whatever the picture shows.
            errors: the chance, for each attribute, that it is misread as another value of its own.
        """
        wrong, shifts = rng.random(len(VALUES)) < errors, rng.random(len(VALUES))
        values = seen(read(picture))
        names = ("relation", "first", "second") if values.get("relation") else ("count", "colour", "shape")
        said = {}
        for place, (name, options) in enumerate(VALUES.items()):
            if name in names:
                if values[name] not in options:
                    return ""
                at = options.index(cast(str, values[name]))
                said[name] = options[(at + wrong[place] * (1 + int(shifts[place] * (len(options) - 1)))) % len(options)]
        return scene_of(said).prompt

    def _demo(self, task: Task, text: str, cell: Cell, index: int, place: int) -> Demo:
        """A demonstration; its picture is the same in every variant and number of shots, and made once."""
        at = task.number, index, place
        if at not in self._shown:
            rng = self._generator(task, index, 1 + place)
            scenes = self._theme(task.theme).scenes[cell]
            scene = scenes[rng.integers(len(scenes))]
            self._shown[at] = scene.prompt, render(scene, rng)
        caption, picture = self._shown[at]
        return Demo(text, cell, caption, lambda: picture)

    def _generator(self, task: Task, index: int, place: int = 0) -> np.random.Generator:
        return numpy_generator(seed=self.seed, stage=Stage.IN_CONTEXT, update=place, prompt=task.number, sample=index)

    def _theme(self, theme: Theme) -> SceneTheme:
        return next(own for own in self.themes if own.name == theme.name)
