"""Prompts of the scenes world: every sentence, what it means, and the split into training and held-out.

Two kinds of sentence compose count, colour, shape and position:

    "three red circles"                        72 of them: 4 counts x 6 colours x 3 shapes
    "a blue square left of a green triangle"   1,224 of them: 306 ordered pairs x 4 relations

Held-out prompts are new *combinations*: a held-out (count, colour, shape) never occurs in training, and
neither does a held-out pair of things in any order or relation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 45, 40),
    "green": (45, 160, 75),
    "blue": (45, 85, 205),
    "yellow": (240, 190, 30),
    "purple": (145, 55, 175),
    "black": (35, 35, 40),
}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT_EVERY = 4  # one combination in four is held out


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: the things, in the order named, and how the first lies to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """The sentence that asks for this scene."""
        first = self.things[0]
        if self.relation is not None:
            second = self.things[1]
            return f"a {first.colour} {first.shape} {self.relation} a {second.colour} {second.shape}"
        count = len(self.things)
        return f"{COUNTS[count - 1]} {first.colour} {first.shape}{'s' if count > 1 else ''}"


@cache
def _things() -> tuple[Thing, ...]:
    return tuple(Thing(colour, shape) for colour, shape in product(COLOURS, SHAPES))


@cache
def _splits() -> tuple[dict[str, Scene], dict[str, Scene]]:
    """Scenes by prompt, (training, held-out).

    The held-out combinations lie on diagonals of the table of combinations, so that every colour, shape
    and count is still seen in training beside most of its partners.
    """
    splits: tuple[dict[str, Scene], dict[str, Scene]] = ({}, {})

    def add(scene: Scene, held_out: bool) -> None:
        splits[held_out][scene.prompt] = scene

    for index, thing in enumerate(_things()):
        for count in range(1, len(COUNTS) + 1):
            add(Scene((thing,) * count), held_out=(index + count) % HELD_OUT_EVERY == 0)
    for index, pair in enumerate(combinations(_things(), 2)):
        for things, relation in product((pair, pair[::-1]), RELATIONS):
            add(Scene(things, relation), held_out=index % HELD_OUT_EVERY == 0)
    return splits


@cache
def training_prompts() -> tuple[str, ...]:
    """Prompts that training may use."""
    return tuple(_splits()[0])


@cache
def held_out_prompts() -> tuple[str, ...]:
    """Prompts of combinations that no training prompt contains."""
    return tuple(_splits()[1])


@cache
def held_out_halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The held-out prompts in two halves that share no combination: to choose by, and to report."""
    halves: tuple[list[str], list[str]] = ([], [])
    combinations_seen: dict[tuple[int, frozenset[Thing]], int] = {}
    for prompt, scene in _splits()[1].items():
        combination = (len(scene.things) if scene.relation is None else 0, frozenset(scene.things))
        place = combinations_seen.setdefault(combination, len(combinations_seen))
        halves[place % 2].append(prompt)
    return tuple(halves[0]), tuple(halves[1])


def balanced(prompts: tuple[str, ...], number: int) -> tuple[str, ...]:
    """`number` of `prompts`, evenly spaced, half of them counts and half relations (without repetition)."""
    kinds = ([p for p in prompts if parse(p).relation is None], [p for p in prompts if parse(p).relation is not None])
    chosen = []
    for wanted, kind in zip((number // 2, number - number // 2), kinds, strict=True):
        if wanted > len(kind):
            raise ValueError(f"expected at most {len(kind)} prompts of one kind, got {wanted}: ask for fewer prompts")
        chosen += [kind[i * len(kind) // wanted] for i in range(wanted)]
    return tuple(chosen)


def parse(prompt: str) -> Scene:
    """The scene a prompt asks for.

    Raises:
        ValueError: the prompt is not a sentence of this world.
    """
    for split in _splits():
        if prompt in split:
            return split[prompt]
    raise ValueError(
        f"expected a prompt of the scenes world such as 'three red circles' or 'a blue square left of a green "
        f"triangle', got {prompt!r}: use a prompt from raysuite.worlds.scenes.grammar"
    )


@cache
def confusions(prompt: str) -> tuple[tuple[str, ...], ...]:
    """Training prompts that differ from `prompt` in one attribute, grouped by the attribute that differs."""
    scene = parse(prompt)
    training = _splits()[0]

    def others(things: Thing, attribute: str) -> list[Thing]:
        colour, shape = things.colour, things.shape
        if attribute == "colour":
            return [Thing(other, shape) for other in COLOURS if other != colour]
        return [Thing(colour, other) for other in SHAPES if other != shape]

    groups: list[list[Scene]] = []
    if scene.relation is None:
        thing, count = scene.things[0], len(scene.things)
        groups.append([Scene((thing,) * n) for n in range(1, len(COUNTS) + 1) if n != count])
        groups += [[Scene((o,) * count) for o in others(thing, attribute)] for attribute in ("colour", "shape")]
    else:
        first, second = scene.things
        groups.append([Scene(scene.things, relation) for relation in RELATIONS if relation != scene.relation])
        for attribute in ("colour", "shape"):
            changed = [Scene((o, second), scene.relation) for o in others(first, attribute)]
            groups.append(changed + [Scene((first, o), scene.relation) for o in others(second, attribute)])
    prompts = (tuple(s.prompt for s in group if s.prompt in training) for group in groups)
    return tuple(group for group in prompts if group)
