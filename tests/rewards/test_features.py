"""Features of pictures by name: grey levels, a function of the user's, networks as on a hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysuite.errors import UserError
from raysuite.rewards.features import features
from tests.rewards.networks import framed, save_clip

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)


def means(images_N: np.ndarray) -> np.ndarray:
    return images_N.mean((1, 2))


def short(images_N: np.ndarray) -> np.ndarray:
    return means(images_N)[:2]


def test_pixels_are_grey_levels() -> None:
    assert np.array_equal(features("pixels", device=CPU)(IMAGES), IMAGES.reshape(3, -1))


def test_a_function_is_asked() -> None:
    assert np.array_equal(features(f"{__name__}:means", device=CPU)(IMAGES), means(IMAGES))
    with pytest.raises(UserError, match=r"expected finite numbers \(3, D\) from .*short for 3 pictures, got \(2, 3\)"):
        features(f"{__name__}:short", device=CPU)(IMAGES)


def test_of_clip_it_is_what_is_compared_with_texts(tmp_path: Path) -> None:
    from transformers import CLIPModel

    directory = save_clip(tmp_path / "clip")
    found = features(str(directory), device=CPU)(IMAGES)
    pixels = torch.stack([framed(image, 32) for image in IMAGES])
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(directory).eval()
        seen = clip.visual_projection(clip.vision_model(pixels).pooler_output)
    np.testing.assert_allclose(found, seen.numpy(), rtol=1e-3, atol=1e-4)


def test_of_a_vision_model_it_is_the_pooled_state(tmp_path: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dino = Dinov2Model(Dinov2Config(**shape)).eval()
    dino.save_pretrained(tmp_path)
    size = {"shortest_edge": 28}
    BitImageProcessor(size=size, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    many = np.concatenate([IMAGES] * 12)  # more than go through at once
    found = features(str(tmp_path), device=CPU)(many)
    assert found.shape == (36, 32)
    np.testing.assert_allclose(found[33:], found[:3], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected config.json, .* in .*, found no config.json: name pixels, package"):
        features(str(tmp_path), device=CPU)
    with pytest.raises(UserError, match="expected a directory at"):
        features("./nothing", device=CPU)
