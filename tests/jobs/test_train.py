"""Where a submitted run goes that was given no place."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.train import with_place


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["scenes-ddpo", "--set", "updates=3"], "scenes-ddpo"),
        (["--set", "updates=3", "scenes-ddpo"], "scenes-ddpo"),
        (["--keep-rollouts", "--set=updates=3", "own/recipe.yaml"], "recipe"),
    ],
)
def test_a_run_is_called_by_its_recipe_wherever_that_stands(arguments: list[str], name: str) -> None:
    assert with_place(arguments) == [*arguments, "--out", str(Path.home() / "raysuite-runs" / name)]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["scenes-ddpo", "--out", "here"], ["--out=here", "scenes-ddpo"]])
def test_a_place_that_is_named_or_of_no_recipe_stays_as_it_is(arguments: list[str]) -> None:
    assert with_place(arguments) == arguments
