from __future__ import annotations

import itertools

import numpy as np
import pytest

from raysuite.kernel.diversity import pairwise_distance, thumbnails


@pytest.mark.parametrize("n", [2, 3, 8])
def test_distance_is_the_mean_over_pairs_of_the_root_mean_square(n: int):
    images = np.random.default_rng(0).integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)
    pairs = itertools.combinations(images.astype(float), 2)
    assert pairwise_distance(images) == pytest.approx(np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in pairs]))


def test_the_same_picture_is_at_distance_zero_and_extremes_at_255():
    same = np.full((4, 64, 64, 3), 255, np.uint8)
    assert pairwise_distance(same) == 0.0
    assert pairwise_distance(np.stack([same[0], np.zeros_like(same[0])])) == 255.0


def test_one_picture_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least two"):
        pairwise_distance(np.zeros((1, 8, 8, 3), np.uint8))


def test_thumbnails_average_patches_and_leave_small_pictures_alone():
    small = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
    assert thumbnails(small) is small
    large = np.repeat(np.repeat(small, 3, axis=1), 3, axis=2)
    assert np.array_equal(thumbnails(large), small)
    checked = np.zeros((1, 128, 128, 3), np.uint8)
    checked[:, ::2] = 201
    assert set(thumbnails(checked).ravel().tolist()) <= {100, 101}
    assert thumbnails(np.zeros((1, 100, 65, 3), np.uint8)).shape == (1, 50, 32, 3)
