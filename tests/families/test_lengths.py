"""How much of a prompt a model reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from raysuite.config import Model
from raysuite.families import cut_prompts

SHORT, LONG = "three red circles", "a red circle above a blue square " * 4


@pytest.mark.parametrize(("path", "tokens"), [("scenes", 16), ("scenes-flow", 10)])
def test_prompts_that_are_cut_are_found(path: str, tokens: int) -> None:
    """Words of the bundled vocabulary are one token each, with two for the ends."""
    exactly = " ".join(["red"] * (tokens - 2))
    assert cut_prompts(Model(path=path), [SHORT, LONG, exactly, f"{exactly} red"]) == ([LONG, f"{exactly} red"], tokens)
    assert cut_prompts(Model(path=path), [SHORT]) == ([], tokens)


def cached(pipeline: Path, cache: Path, *left_out: str) -> Path:
    """A hub's cache that has a pipeline as `nobody/model`."""
    model = cache / "models--nobody--model"
    shutil.copytree(pipeline, model / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns(*left_out))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    return cache


def test_prompts_of_a_hubs_model_are_looked_at_in_its_cache(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as of its directory; without its tokenizers there is nothing to tell."""
    pipeline = tiny("sd15")
    prompts = [SHORT, LONG * 4]
    assert cut_prompts(Model(path=str(pipeline)), prompts) == (prompts[1:], 77)
    for place, left_out, found in (
        ("whole", ["*.safetensors"], (prompts[1:], 77)),
        ("part", ["*.safetensors", "tokenizer"], ([], 0)),
    ):
        cache = cached(pipeline, tmp_path / place, *left_out)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        assert cut_prompts(Model(path="nobody/model"), prompts) == found


def test_models_whose_tokenizers_are_not_at_hand_are_not_looked_at() -> None:
    assert cut_prompts(Model(path="toy"), [LONG]) == ([], 0)
    assert cut_prompts(Model(path="nobody/model"), [LONG]) == ([], 0)
