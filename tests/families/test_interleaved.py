"""Texts and pictures in an order, as pipelines that take both want them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from raysuite.errors import UserError
from raysuite.families import interleaved
from raysuite.families.interleaved import PLACEMENTS, InterleavedPipeline, arguments
from tests.families.pipelines import flux2_klein

DARK, LIGHT = (np.full((64, 64, 3), grey, np.uint8) for grey in (20, 230))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_pictures_stand_where_they_were_and_the_call_takes_them(name: str) -> None:
    found = arguments(name, ["a: ", DARK, "b: ", LIGHT, "c: "])
    pictures = found[PLACEMENTS[name].pictures]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [20, 230]
    mark = PLACEMENTS[name].mark
    assert found["prompt"] == f"a: {mark(1)} b: {mark(2)} c:"
    inspect.signature(getattr(diffusers, name).__call__).bind(
        None, **found, height=8, width=8, num_inference_steps=1, generator=None, output_type="pil"
    )


def test_omnigen_has_its_own_placeholders() -> None:
    assert arguments("OmniGenPipeline", ["red: ", DARK])["prompt"] == "red: <img><|image_1|></img>"


def test_qwen_image_edit_is_guided() -> None:
    """Its pipeline leaves guidance out where there is no negative prompt."""
    assert arguments("QwenImageEditPlusPipeline", ["red: ", DARK])["negative_prompt"] == " "


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_class_is_taken_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it could not be trained, as OmniGen, which has no encode_prompt."""
    monkeypatch.setattr(interleaved, "is_torchvision_available", lambda: True)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert InterleavedPipeline(str(tmp_path)).name == name


@pytest.mark.parametrize("name", ["OmniGenPipeline", "QwenImageEditPlusPipeline"])
def test_a_package_that_is_wanted_is_named_beforehand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleaved, "is_torchvision_available", lambda: False)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=rf"expected torchvision for {name}, .*: pip install torchvision"):
        InterleavedPipeline(str(tmp_path))


def test_a_tiny_flux2_klein_draws_from_its_pictures_in_their_order(tmp_path: Path) -> None:
    flux2_klein().save_pretrained(tmp_path, safe_serialization=True)
    known = InterleavedPipeline(str(tmp_path), steps=2, size=32, precision="float32", text_encoder_out_layers=(1, 2, 3))
    assert known.name == "Flux2KleinPipeline" and "pipeline" not in vars(known)  # it is opened when it is asked
    given = []
    prepared = known.pipeline.prepare_image_latents

    def prepare(images: list[torch.Tensor], **options: object) -> object:
        given.append([float(image.mean()) for image in images])
        return prepared(images=images, **options)

    known.pipeline.prepare_image_latents = prepare

    def draw(*parts: str | np.ndarray) -> np.ndarray:
        return known(parts, torch.Generator().manual_seed(0))

    first = draw("red: ", DARK, "blue: ", LIGHT, "black: ")
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(draw("red: ", DARK, "blue: ", LIGHT, "black: "), first)
    assert not np.array_equal(draw("red: ", LIGHT, "blue: ", DARK, "black: "), first)
    assert [pair[0] < pair[1] for pair in given] == [True, True, False]


def test_another_pipeline_is_refused() -> None:
    from raysuite.config import Model
    from raysuite.families import located

    with pytest.raises(UserError, match="expected a pipeline that takes several pictures and a text"):
        InterleavedPipeline(located(Model(path="scenes")).path)
