"""What the documents say is true: links lead somewhere, settings and commands exist, code does what its page says."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
import yaml
from accelerate import Accelerator

from raysuite.cli import app
from raysuite.config import RunConfig, load, recipes
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.policy import Policy
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.train import Training
from raysuite.study.declared import declare
from raysuite.sweeps.declared import load as load_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
OBJECTIVE = "weighted.py"
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str) -> Iterator[tuple[Path, str, str]]:
    """Page, title and text of every block in a language."""
    for page in PAGES:
        for kind, title, text in BLOCK.findall(page.read_text()):
            if kind == language:
                yield page, title, text


def code(title: str) -> str:
    (found,) = [text for _, name, text in blocks("python") if name == title]
    assert len([line for line in found.splitlines() if line.strip()]) <= 35, "these pages promise about 30 lines"
    return found


# links


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code-hosting pages make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{named(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{named(page)} links to {target}"


# settings and commands


@pytest.mark.parametrize(("page", "title", "text"), list(blocks("yaml")), ids=str)
def test_yaml_on_a_page_is_a_run_or_a_sweep(page: Path, title: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / (title or "run.yaml")
    file.write_text(text)
    if re.search("^objectives:", text, re.MULTILINE):
        sweep = load_sweep(str(file), {})
        assert all(isinstance(sweep.config(run, sweep.drawn(run.objective, 0)), RunConfig) for run in sweep.runs)
    else:
        assert isinstance(load(str(file)), RunConfig)


def commands() -> Iterator[Any]:
    for page in PAGES:
        for kind, _, text in BLOCK.findall(page.read_text()):
            if kind in ("sh", ""):
                for line in text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True) if line.startswith("raysuite ") else []
                    if words and not {"...", "COMMAND", "DIR", "SOURCE"} & set(words):
                        yield pytest.param(words[1:], id=f"{named(page)}: {line}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_on_a_page_is_one(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(OBJECTIVE, tmp_path, monkeypatch)
    group = typer.main.get_command(app)
    command: Any = group
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), f"expected a command of raysuite, got {words}"
    given = command.make_context("raysuite", list(words)).params  # refuses what is no option or is missing
    run = given.get("run")
    if isinstance(run, str) and given.get("settings") and run in recipes():
        load(run, dict(setting.split("=", 1) for setting in given["settings"]))
    if given.get("along"):
        settings, along = (dict(setting.split("=", 1) for setting in given[name]) for name in ("settings", "along"))
        source = given["source"] if given["source"] in recipes() else "scenes-ddpo"  # a run's directory is not there
        declare(source, objectives=given["objectives"].split(","), settings=settings, along=along)


def test_settings_and_objectives_are_all_on_the_page() -> None:
    made = hooks().settings()
    from raysuite.config.sections import paths

    rows = set(re.findall(r"^\| `([^`]+)` \|", made, re.MULTILINE))
    assert set(paths()) <= rows
    assert {f"### {name}" for name in OBJECTIVES} <= set(made.splitlines())
    assert not re.findall(r"^.*\|  \|$", made, re.MULTILINE), "a setting without a sentence"
    assert "objective.winner_margin" in rows  # inherited fields, too


def test_all_commands_are_on_the_page() -> None:
    made = hooks().commands()
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^## {name}", made, re.MULTILINE), name


def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# code


def module(title: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A page's block as a module of the name that its title has."""
    name = Path(title).stem
    (directory / f"{name}.py").write_text(code(title))
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def two_updates(config: RunConfig, directory: Path, policy: Policy | None = None) -> Training:
    """Train in this process, through the interfaces that runs go through."""
    policy = policy or open_policy(config, torch.device("cpu"))
    RunDirectory(directory).claim(config, ["test"])
    run = Training(config, directory, policy, LocalCollector(policy, config), Accelerator(cpu=True))
    before = policy.weights()
    run.train()
    assert run.state.updates == 2
    assert np.isfinite(policy.weights()).all() and not np.array_equal(policy.weights(), before)
    return run


def test_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = module("mine.py", tmp_path, monkeypatch)
    images = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    assert mine.brightness(images, ["a", "b"], [{}, {"brightness": 1.0}]).tolist() == [0.5, 1.0]
    two_updates(load("toy-ddpo", {"updates": "2", "rewards": "[{name: 'mine:brightness'}]"}), tmp_path / "run")


def test_the_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(OBJECTIVE, tmp_path, monkeypatch)
    config = load("toy-ddpo", {"updates": "2", "objective": "{name: 'weighted:WeightedRegression', temperature: 1.0}"})
    run = two_updates(config, tmp_path / "run")
    assert "learn/error" in (tmp_path / "run/metrics.jsonl").read_text()
    assert run.state.training.backward == 2 * 32  # a unit for each of 32 pictures
    with pytest.raises(UserError, match=r"objective\.temperature above 0"):
        load("toy-ddpo", {"objective": "{name: 'weighted:WeightedRegression', temperature: 0}"})


def test_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("toy-ddpo", {"updates": "2"})
    schedule = open_policy(config, torch.device("cpu")).schedule
    policy = module("raysuite/families/grey.py", tmp_path, monkeypatch).GreyPolicy(schedule)
    latents = torch.tensor([[0.5, -0.25, 1.0]])
    assert torch.equal(policy.encode(policy.decode(latents)), latents)
    two_updates(config, tmp_path / "run", policy)
    metrics = (tmp_path / "run/metrics.jsonl").read_text()
    assert re.search(r'"update": 0, "name": "learn/ratio", "value": 1\.0\b', metrics)
    trained = policy.weights()
    policy.set_weights(np.zeros_like(trained))
    policy.load(tmp_path / "run/checkpoints/000002/model")
    assert np.array_equal(policy.weights(), trained)


def test_recipes_on_pages_exist() -> None:
    for page, _, text in blocks("yaml"):
        base = yaml.safe_load(text).get("extends")
        assert base is None or base in recipes(), page
