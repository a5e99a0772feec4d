"""How different the pictures of one prompt are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 64
"""Pixels: larger pictures are averaged down to at most this before they are compared, so that they are cheap to move."""


def thumbnails(images_N: np.ndarray) -> np.ndarray:
    """Pictures at most `SIDE` pixels on a side, by averaging square patches.

    Args:
        images_N: uint8 (N, H, W, 3).

    Returns:
        uint8 (N, H / f, W / f, 3), rounded down, with the smallest whole factor f that fits. A margin that does not fill
        a patch is left out.

    Example:
        >>> thumbnails(np.zeros((2, 512, 768, 3), np.uint8)).shape
        (2, 42, 64, 3)
    """
    count, height, width, channels = images_N.shape
    factor = -(-max(height, width) // SIDE)
    if factor == 1:
        return images_N
    rows, columns = height // factor, width // factor
    whole = images_N[:, : rows * factor, : columns * factor]
    patches = whole.reshape(count, rows, factor, columns, factor, channels)
    return patches.mean((2, 4)).round().astype(np.uint8)


def pairwise_distance(images_N: np.ndarray) -> float:
    """The mean over all pairs of N pictures of their root-mean-square distance over pixels and channels.

    Args:
        images_N: uint8 (N, H, W, 3), N at least 2.

    Returns:
        Grey levels, 0 (all the same) to 255. Sums are of whole numbers, so that the order in which they are added, and with
        it the number of threads, changes nothing.

    Raises:
        ValueError: there are fewer than two pictures.

    Example:
        >>> black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
        >>> round(pairwise_distance(np.concatenate([black, black, white])), 6)  # pairs: 0, 255, 255
        170.0
    """
    if len(images_N) < 2:
        raise ValueError(f"expected at least two pictures to compare, got {len(images_N)}")
    flat_ND = images_N.reshape(len(images_N), -1).astype(np.float64)  # exact: sums stay far below 2**53
    products_NN = flat_ND @ flat_ND.T
    squares_N = np.diag(products_NN)
    first, second = np.triu_indices(len(images_N), k=1)
    squared = (squares_N[first] + squares_N[second] - 2 * products_NN[first, second]) / flat_ND.shape[1]
    return float(np.sqrt(squared).mean())


@dataclass(frozen=True)
class Components:
    """What makes pictures of one prompt differ, as variances of a pixel's channel, grey levels squared."""

    draw: float
    """Of what the draw of the prompt alone decides."""
    noise: float
    """Of what the noise alone decides."""
    interaction: float
    """Of what only both together decide."""


def components(images_DE: np.ndarray) -> Components:
    """The split of a crossed design: every draw of a prompt with every noise.

    With a pixel of draw d and noise e as m + a_d + b_e + c_de, the mean squared distance of two pictures with another noise is
    2 (Var b + Var c), with another draw 2 (Var a + Var c), with both 2 (Var a + Var b + Var c). Estimates are unbiased, and so may be
    below 0 where a component is small.

    Args:
        images_DE: uint8 (draws, noises, H, W, 3), at least two of each.
    """
    draws, noises = images_DE.shape[:2]
    if draws < 2 or noises < 2:
        raise ValueError(f"expected at least two draws and two noises, got {draws} and {noises}")
    flat = images_DE.reshape(draws * noises, -1).astype(np.float64)
    products = flat @ flat.T
    squares = np.diag(products)
    distance = (squares[:, None] + squares[None] - 2 * products) / flat.shape[1]
    draw, noise = np.divmod(np.arange(draws * noises), noises)
    same_draw, same_noise = draw[:, None] == draw, noise[:, None] == noise
    other_noise = float(distance[same_draw & ~same_noise].mean()) / 2
    other_draw = float(distance[~same_draw & same_noise].mean()) / 2
    both = float(distance[~same_draw & ~same_noise].mean()) / 2
    return Components(both - other_noise, both - other_draw, other_noise + other_draw - both)
