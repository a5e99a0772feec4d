"""What is asked at the command line -> a plan, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from raysuite.errors import UserError
from raysuite.in_context import evaluation
from raysuite.in_context.draw import EPISODES, Named, PolicyDrawer, named
from raysuite.in_context.evaluation import Plan, Progress
from raysuite.in_context.judges import Exact
from raysuite.in_context.policies import scenes_rows
from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import SHOTS


def numbers(shots: str) -> tuple[int, ...]:
    """Numbers of demonstrations, ascending, from "2,4".

    Raises:
        UserError: they are others than can be asked for.
    """
    found = [word.strip() for word in shots.split(",")]
    known = {str(number): number for number in SHOTS}
    if wrong := [word for word in found if word not in known]:
        raise UserError(f"expected --shots of {', '.join(known)}, got {wrong[0]!r}: put commas between them")
    return tuple(sorted({known[word] for word in found}))


def scenes(
    models: Sequence[str], *, episodes: int, shots: tuple[int, ...], nuisance: bool, misread: float, seed: int
) -> tuple[Plan, list[Named]]:
    """An evaluation in the bundled world.

    Raises:
        UserError: a model is not there.
    """
    if not 0 < episodes < EPISODES:
        raise UserError(f"expected --episodes from 1 to {EPISODES - 1}, got {episodes}")
    world = ScenesWorld(seed, nuisance=nuisance)
    rows = scenes_rows(seed, world.caption, misread)
    return Plan(world, Exact(world), rows, episodes, shots, seed), named(models)


def evaluate(plan: Plan, drawers: Sequence[Named], directory: Path, command: Sequence[str], progress: Progress) -> None:
    """Do it, or what of it is missing.

    Raises:
        UserError: the directory holds something else, or a model does not fit.
    """
    evaluation.claim(plan, [one.settings() for one in drawers], directory, command)
    opened = [(one.label, partial(PolicyDrawer, one, plan.seed, size=plan.world.size)) for one in drawers]
    evaluation.evaluate(plan, directory, opened, progress)
