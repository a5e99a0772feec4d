from __future__ import annotations

import itertools

import numpy as np
import pytest

from raysuite.kernel.diversity import components, likeness, pairwise_distance, thumbnails


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


# density and coverage

LINE = np.array([[0.0], [1.0], [3.0], [7.0]])
"""Distances to the nearest other point: 1, 1, 2, 4; to the second nearest: 3, 2, 3, 6."""


@pytest.mark.parametrize(
    ("drawn", "neighbours", "density", "coverage"),
    [
        ([0.5], 1, 2.0, 0.5),  # within 1 of 0 and of 1
        ([0.5, 100.0], 1, 1.0, 0.5),  # a picture far off halves the one, and leaves the other
        ([2.0], 1, 1.0, 0.25),  # 1 from 1, which is not less than its radius, and 1 from 3
        ([100.0], 1, 0.0, 0.0),
        ([1.5, 4.0], 2, (4 + 2) / (2 * 2), 1.0),  # 1.5 is near to all four, 4 to the last two
    ],
)
def test_density_and_coverage_by_hand(drawn: list[float], neighbours: int, density: float, coverage: float) -> None:
    found = likeness(LINE, np.array(drawn)[:, None], neighbours=neighbours)
    assert (found.density, found.coverage) == (pytest.approx(density), pytest.approx(coverage))


def test_two_samples_of_one_distribution_have_the_density_and_coverage_that_are_expected() -> None:
    rng, real, drawn, k = np.random.default_rng(0), 12, 30, 3
    found = [likeness(rng.normal(size=(real, 2)), rng.normal(size=(drawn, 2)), neighbours=k) for _ in range(2000)]
    assert np.mean([each.density for each in found]) == pytest.approx(1, abs=0.02)
    missed = np.prod([(real - 1 - i) / (real - 1 + drawn - i) for i in range(k)])  # the k nearest are all real
    assert np.mean([each.coverage for each in found]) == pytest.approx(1 - missed, abs=0.01)


def test_a_mode_that_is_not_drawn_is_not_covered_however_dense_the_other() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(-50, 1, (100, 4)), rng.normal(50, 1, (100, 4))
    found = likeness(np.concatenate([left, right]), rng.normal(-50, 1, (200, 4)))
    assert found.density == pytest.approx(1, abs=0.15) and found.coverage == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("real", "drawn", "neighbours", "message"),
    [
        ((4, 2), (3, 2), 4, "expected neighbours from 1 to 3"),
        ((4, 2), (3, 2), 0, "expected neighbours from 1 to 3"),
        ((4, 2), (3, 5), 1, r"expected drawn pictures with features \(2,\)"),
        ((4, 2), (0, 2), 1, "expected drawn pictures"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(
    real: tuple[int, int], drawn: tuple[int, int], neighbours: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        likeness(np.zeros(real), np.ones(drawn), neighbours=neighbours)


def test_the_parts_of_a_crossed_design_are_those_it_was_made_of() -> None:
    """Pixels 100 + a + b + c: variances over two draws, over three noises, and of what only both decide, unbiased."""
    draw_D, noise_E = np.array([-10, 10]), np.array([-20, 0, 20])
    both_DE = np.array([[3, -6, 3], [-3, 6, -3]])
    pixel_DE = 100 + draw_D[:, None] + noise_E + both_DE
    images = np.broadcast_to(pixel_DE[..., None, None, None], (2, 3, 2, 2, 3)).astype(np.uint8)
    found = components(images)
    interaction = (both_DE**2).sum() / 2  # over (2 - 1)(3 - 1) degrees of freedom
    expected = (draw_D.var(ddof=1) - interaction / 3, noise_E.var(ddof=1) - interaction / 2, interaction)
    assert (found.draw, found.noise, found.interaction) == pytest.approx(expected)


def test_averages_are_rounded_to_the_nearest_level() -> None:
    checked = np.zeros((1, 128, 128, 3), np.uint8)
    checked[:, ::2], checked[:, 1::2, ::2] = 100, 103
    assert set(thumbnails(checked).ravel().tolist()) == {76}  # (100 + 100 + 103 + 0) / 4 = 75.75
