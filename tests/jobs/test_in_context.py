"""The experiment's commands: what is trained on, with which settings, and what is then asked of all runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import in_context
from raysuite import config as configuration
from raysuite.stages.prompts import load_prompts
from raysuite.worlds.scenes import grammar


@pytest.mark.parametrize(("option", "descriptions"), [("--leave-out", 129), ("--nuisance", 232)])
def test_runs_differ_in_objective_and_seed_and_learn_from_descriptions_of_training_cells(
    option: str, descriptions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def run(command: list[str], **options: Any) -> None:
        given.append(command[3:])

    monkeypatch.setattr(subprocess, "run", run)
    in_context.main(["--out", str(tmp_path), "--seeds", "0", "4", "--episodes", "7", "--", option])
    *trained, asked = given
    runs = []
    for command, recipe, *settings in trained:
        assert command == "train"
        chosen = dict(zip(settings[::2], settings[1::2], strict=True)) | {"--set": ""}
        overrides = dict(word.split("=", 1) for word in settings[3::2])
        config = configuration.load(recipe, overrides)
        assert config.budget == 36_864
        runs.append((chosen["--out"], config.objective["name"], config.seed))
        prompts = load_prompts(config.prompts)
        assert len(prompts.training) == descriptions
        assert {prompt.text for prompt in prompts.training} <= {*grammar.training_prompts()}
    assert runs == [
        (str(tmp_path / "ddpo-0"), "ddpo", 0),
        (str(tmp_path / "ddpo-4"), "ddpo", 4),
        (str(tmp_path / "diffusion-dpo-0"), "diffusion_dpo", 0),
        (str(tmp_path / "diffusion-dpo-4"), "diffusion_dpo", 4),
    ]
    models = [out for out, _, _ in runs]
    table = str(tmp_path / "table")
    assert asked == ["in-context", "scenes", *models, "--language", "--episodes", "7", option, "--out", table]
