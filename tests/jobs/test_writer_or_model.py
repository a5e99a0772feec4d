"""The experiment's commands: what each method is given and what it costs, and what the tables make of scores worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import writer_or_model
from jobs.writer_or_model import NOTHING, RECIPE, Experiment, markdown, tables
from raysuite import config as configuration

HALF_WAY = Path("half-way")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Command lines by what they make, with no more run than their names."""
    monkeypatch.setattr(Experiment, "_half_way", lambda self, seed: HALF_WAY)
    monkeypatch.setattr(Experiment, "_translate", lambda self, seed: None)
    found = Experiment(tmp_path, settings=("sampler.steps=2",)).trainings(4)
    return {Path(command[command.index("--out") + 1]).name: command for command in found}


def option(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def settings(command: list[str]) -> dict[str, str]:
    return dict(command[place + 1].split("=", 1) for place, word in enumerate(command) if word == "--set")


def test_every_method_has_one_budget_and_both_together_half_of_it_each(commands: dict[str, list[str]]) -> None:
    whole, half = "36864", "18432"
    assert {
        name: option(commands[f"{name}-4"], "budget") for name in ("pairs", "pairs-after", "pairs-half", "grpo")
    } == {
        "pairs": whole,
        "pairs-after": half,
        "pairs-half": half,
        "grpo": whole,
    }
    runs = {name: command for name, command in commands.items() if command[0] == "train"}
    configs = {name: configuration.load(command[1], settings(command)) for name, command in runs.items()}
    assert {name: (c.objective["name"], c.budget, c.seed) for name, c in configs.items()} == {
        "ddpo-4": ("ddpo", int(whole), 4),
        "diffusion-dpo-4": ("diffusion_dpo", int(whole), 4),
        "ddpo-before-4": ("ddpo", int(half), 4),
    }
    for config in configs.values():
        assert config.prompts.training == config.prompts.held_out == "scenes-users"
        assert config.cluster.alone and config.sampler.steps == 2


def test_who_comes_first(commands: dict[str, list[str]], tmp_path: Path) -> None:
    """The writer learns before the base model and stands before the run; or it learns before the run's model half way."""
    assert commands["pairs-half-4"][2] == RECIPE and commands["dpo-half-4"][2] == str(tmp_path / "pairs-half-4")
    assert settings(commands["ddpo-before-4"])["prompts.writer"] == str(tmp_path / "dpo-half-4")
    assert commands["pairs-after-4"][2] == str(HALF_WAY) and "--set" not in commands["pairs-after-4"]
    assert commands["dpo-after-4"][2] == str(tmp_path / "pairs-after-4")


def test_all_methods_are_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Experiment, "_half_way", lambda self, seed: HALF_WAY)
    experiment = Experiment(tmp_path, prompts=5)
    compared = experiment.untrained() | experiment.trained(0)
    said = [experiment.evaluation(place, of) for place, of in compared.items()]
    assert {(option(command, "prompts"), option(command, "pictures")) for command in said} == {("5", "2")}
    assert all(("--set" in command) == (option(command, "model") == RECIPE) for command in said)
    methods = [method for of in compared.values() for method in of.writers]
    assert len({*methods}) == len(methods) == 13 and methods[0] == NOTHING


def rows(method: str, seed: int, passed: list[int]) -> list[dict[str, object]]:
    """Two cells of two prompts with one picture each."""
    known = [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    return [
        dict(zip(writer_or_model.COLUMNS, (method, seed, cell, "plain", prompt, 0, float(strict)), strict=True))
        for (cell, prompt), strict in zip(known, passed, strict=True)
    ]


def test_tables_are_means_over_seeds_and_differences_from_nothing() -> None:
    """Over two seeds writer passes 4 of 8, nothing 1 of 4: +0.25; in cell a 3 of 4 against 1 of 2."""
    found = [*rows(NOTHING, -1, [1, 0, 0, 0]), *rows("writer", 0, [1, 1, 0, 0]), *rows("writer", 1, [1, 0, 0, 1])]
    means, gains = tables(found[::-1])
    assert [line[0] for line in means[1:]] == ["writer", NOTHING]
    cells = means[0][1:]
    of = {(line[0], cell): value.split()[0] for line in means[1:] for cell, value in zip(cells, line[1:], strict=True)}
    assert {key: float(value) for key, value in of.items()} == {
        ("writer", "a"): 0.75,
        ("writer", "b"): 0.25,
        ("writer", "all"): 0.5,
        (NOTHING, "a"): 0.5,
        (NOTHING, "b"): 0.0,
        (NOTHING, "all"): 0.25,
    }
    assert len(gains) == 2 and [float(value.split()[0]) for value in gains[1][1:]] == [0.25] * 3
    assert markdown(means)[1] == "|---|---|---|---|"
