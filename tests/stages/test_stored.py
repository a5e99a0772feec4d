"""Rollouts that a run keeps, and runs that learn from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.stages import stored
from raysuite.stages.files import RunDirectory, inputs
from raysuite.types import Cost
from tests.stages.worker import begin

SMALL = {"evaluation.samples": "2", "evaluation.final_samples": "2", "checkpoints.every": "1"}


def toy(**settings: str) -> RunConfig:
    return load("toy-ddpo", {**SMALL, **{path.replace("__", "."): value for path, value in settings.items()}})


def kept(directory: Path, **settings: str) -> Path:
    """A finished toy run that kept its rollouts."""
    begin(toy(rollouts__keep="true", **settings), directory).train()
    return directory


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    config = toy(rollouts__keep="true", credit__kind="previews", credit__previews="[5]")
    training = begin(config, tmp_path)
    (first, *_) = training.collect(0)
    stored.keep(tmp_path, first)
    back = stored.read(tmp_path, first.block.update, first.block.index)
    assert back.block == first.block
    assert back.version == first.version
    assert back.cost == Cost()
    for field in dataclasses.fields(first):
        there, here = getattr(first, field.name), getattr(back, field.name)
        if isinstance(there, np.ndarray) and field.name != "thumbnails_N":  # pictures are not kept
            assert np.array_equal(there, here) and there.dtype == here.dtype, field.name
    assert {name: s.tolist() for name, s in back.scores.items()} == {n: s.tolist() for n, s in first.scores.items()}


def test_a_window_comes_back(tmp_path: Path) -> None:
    (first, *_) = begin(toy(sampler__window="{size: 3, first: 2}"), tmp_path).collect(0)
    stored.keep(tmp_path, first)
    back = stored.read(tmp_path, 0, first.block.index)
    assert back.block == first.block and back.block.window == (2, 5)
    assert back.latents_NK is not None and back.latents_NK.shape[1] == 5


def test_replaying_a_runs_own_rollouts_repeats_it(tmp_path: Path) -> None:
    """On-policy DDPO that replays what DDPO drew takes the same steps; only what it cost differs."""
    source = kept(tmp_path / "source")
    again = begin(toy(rollouts__replay=str(source)), tmp_path / "again")
    again.train()
    first = begin(toy(rollouts__keep="true"), source)
    first.resume()
    assert np.array_equal(again.policy.weights(), first.policy.weights())
    assert again.state.training.backward == first.state.training.backward
    drawn = first.state.training.forward - again.state.training.forward
    assert drawn == 5 * 2 * 16 * 10  # updates, prompts, samples and steps of the source


@pytest.mark.parametrize("objective", ["{name: trajectory_dpo, strength: 5.0, discount: 0.9}", "{name: sft}"])
def test_another_objective_learns_from_the_same_rollouts(tmp_path: Path, objective: str) -> None:
    source = kept(tmp_path / "source")
    config = toy(objective=objective, credit="null", rollouts__replay=str(source))
    run = begin(config, tmp_path / "run")
    before = run.policy.weights()
    run.train()
    assert not np.array_equal(run.policy.weights(), before)
    assert run.state.training.images_scored == 0


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"sampler__steps": "9"}, "drawn with another sampler"),
        ({"rollouts__samples": "8"}, "drawn with another rollouts"),
        ({"credit__kind": "previews", "credit__previews": "[5]"}, "drawn with another credit"),
        ({"updates": "6"}, "of 6 updates at .*, found those of 5: ask for as many \\(updates=5;"),
    ],
)
def test_other_rollouts_are_refused(tmp_path: Path, settings: dict[str, str], mentions: str) -> None:
    source = kept(tmp_path / "source")
    with pytest.raises(UserError, match=mentions):
        stored.check_replay(toy(rollouts__replay=str(source), **settings))


def test_an_update_of_which_some_blocks_were_kept_is_not_there(tmp_path: Path) -> None:
    """The last by number may have been kept before others, when the run was killed."""
    source = kept(tmp_path / "source", updates="2")
    (source / "rollouts" / "000001" / "0000.safetensors").unlink()
    stored.check_replay(toy(rollouts__replay=str(source), updates="1"))
    with pytest.raises(UserError, match=r"of 2 updates at .*, found those of 1"):
        stored.check_replay(toy(rollouts__replay=str(source), updates="2"))
    (source / "rollouts" / "000000" / "0000.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected kept rollouts at .*000000/0000.safetensors"):
        stored.check_replay(toy(rollouts__replay=str(source), updates="1"))


@pytest.mark.parametrize(
    ("kept_with", "learned_with", "mentions"),
    [
        ({"writer": "ours"}, {"writer": "copy"}, "could not read them"),  # the same, of which nothing is kept here
        ({"writer": "ours"}, {"writer": "other"}, r"drawn with another prompts\.writer"),
        ({"writer": "ours"}, {}, r"drawn with another prompts\.writer"),
        ({}, {"writer": "ours"}, r"drawn with another prompts\.writer"),
        ({"writer": "ours", "best_of": 2}, {"writer": "ours"}, r"drawn with another prompts\.best_of"),
        ({"writer": "ours", "best_of": 2}, {"writer": "ours", "best_of": 2, "seed": 1}, r"best_of \(or seed"),
        ({"writer": "ours"}, {"writer": "ours", "seed": 1}, "could not read them"),
    ],
)
def test_pictures_of_other_wordings_are_refused(
    kept_with: dict[str, Any], learned_with: dict[str, Any], mentions: str, tmp_path: Path
) -> None:
    """A writer is known by its files, wherever they lie, and pictures may have chosen among its rewrites."""
    for name in ("ours", "copy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"writer": name == "other"}))

    def rewritten(*, writer: str = "", best_of: int = 0, **more: Any) -> RunConfig:
        named = {"prompts.writer": str(tmp_path / writer) if writer else "null", "prompts.best_of": str(best_of)}
        return load("scenes-ddpo", {"updates": "1", **named, **{path: str(value) for path, value in more.items()}})

    source = tmp_path / "source"
    RunDirectory(source).claim(rewritten(**kept_with), ["test"])
    (source / "rollouts").mkdir()
    with pytest.raises(UserError, match=mentions):
        stored.check_replay(rewritten(**learned_with, **{"rollouts.replay": source}))


def test_other_prompts_are_refused_and_the_same_in_another_file_are_not(tmp_path: Path) -> None:
    """Numbers of prompts mean nothing beside another set, where they may be those of prompts that are held out."""
    for name, prompts in {"ours": "left\nright\n", "copy": "left\nright\n", "others": "right\nleft\n"}.items():
        (tmp_path / f"{name}.txt").write_text(prompts)

    def reading(name: str, **settings: str) -> dict[str, str]:
        return {"prompts__training": str(tmp_path / f"{name}.txt"), "prompts__held_out": "null", **settings}

    source = kept(tmp_path / "source", updates="1", **reading("ours"))
    replaying = {"updates": "1", "rollouts__replay": str(source)}
    stored.check_replay(toy(**reading("copy", objective="{name: sft}", credit="null", **replaying)))
    for settings in (reading("others", **replaying), replaying):
        with pytest.raises(UserError, match=r"drawn with another prompts\.training: set the same here"):
            stored.check_replay(toy(**settings))


def test_what_a_run_reads_is_known_again(tmp_path: Path) -> None:
    """Rollouts by when their run began, the LoRA to begin from by its content, in a file or a directory."""
    source, lora = tmp_path / "source", tmp_path / "lora"
    RunDirectory(source).claim(toy(rollouts__keep="true"), ["test"])
    lora.mkdir()
    (lora / "weights.safetensors").write_bytes(b"one")
    for start in (lora, lora / "weights.safetensors"):
        config = toy(rollouts__replay=str(source))
        parameters = config.parameters.model_copy(update={"start": str(start)})  # of a toy, which has none
        config = config.model_copy(update={"parameters": parameters})
        before = inputs(config)
        assert before.keys() == {"rollouts.replay", "parameters.start"} and inputs(config) == before
        (lora / "weights.safetensors").write_bytes(str(start).encode())
        assert inputs(config)["parameters.start"] != before["parameters.start"]
    again = json.loads((source / "provenance.json").read_text())
    (source / "provenance.json").write_text(json.dumps({**again, "date": "2024-01-01T00:00:00+00:00"}))
    assert inputs(config)["rollouts.replay"] != before["rollouts.replay"]


def test_models_are_known_again_by_their_content(tmp_path: Path) -> None:
    """The base of a LoRA, and what scores: the same path may hold another one the next time."""
    for name in ("model", "judge"):
        (tmp_path / name / ".cache").mkdir(parents=True)
        (tmp_path / name / "weights.safetensors").write_bytes(bytes(100))
    rewards = [{"name": "clip_score", "model": str(tmp_path / "judge"), "options": {"clip": str(tmp_path / "judge")}}]
    config = toy(rewards=json.dumps(rewards))
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "model")})})
    before = inputs(config)
    assert before.keys() == {"model.path", "the model of clip_score", "options.clip of clip_score"}
    for file in (".cache/some", "README.md"):
        (tmp_path / "model" / file).write_text("for readers")
    assert inputs(config) == before
    (tmp_path / "model" / "weights.safetensors").write_bytes(bytes(99) + b"1")
    assert {name for name, known in inputs(config).items() if known != before[name]} == {"model.path"}


def test_a_run_without_rollouts_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path).claim(toy(), ["test"])
    with pytest.raises(UserError, match="make one with --keep-rollouts"):
        stored.check_replay(toy(rollouts__replay=str(tmp_path)))
