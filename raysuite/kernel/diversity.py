"""How different the pictures of one prompt are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

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


@dataclass(frozen=True)
class Likeness:
    """How a set of drawn pictures lies to a set of real ones, in the space of their features."""

    density: float
    """How many real pictures' neighbourhoods a drawn picture lies in, as a share of what is expected of another real picture: above
    1 where drawn pictures crowd together where real ones are dense."""
    coverage: float
    """The share of real pictures that have a drawn one in their neighbourhood, 0 to 1."""


def likeness(real_ND: np.ndarray, drawn_MD: np.ndarray, *, neighbours: int = 5) -> Likeness:
    """Density and coverage.

    With B_i the open ball around real picture i that reaches to its k-th nearest real neighbour,

        density  = sum_ij 1[drawn_j in B_i] / (k M)
        coverage = sum_i 1[some drawn_j in B_i] / N

    Two samples of one distribution have density 1 on average, and coverage

        1 - prod_{l=0}^{k-1} (N - 1 - l) / (N - 1 + M - l),

    about 1 - 2^-k where both are large and N = M. Both depend on N, M and k: compare numbers of equal ones.

    Source: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020, section 3.

    Args:
        real_ND: features of N real pictures.
        drawn_MD: features of M drawn ones.
        neighbours: k, at least 1 and below N.

    Raises:
        ValueError: there are too few pictures, or widths differ.

    Example:
        >>> likeness(np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [9.0]]), neighbours=1)  # radii 1, 1, 2
        Likeness(density=1.0, coverage=0.6666666666666666)
    """
    real_ND, drawn_MD = np.asarray(real_ND, np.float64), np.asarray(drawn_MD, np.float64)
    if not 1 <= neighbours < len(real_ND):
        raise ValueError(
            f"expected neighbours from 1 to {len(real_ND) - 1}, one less than real pictures, got {neighbours}"
        )
    if not len(drawn_MD) or real_ND.shape[1:] != drawn_MD.shape[1:]:
        raise ValueError(f"expected drawn pictures with features {real_ND.shape[1:]}, got {drawn_MD.shape}")
    radius_N = np.sort(cdist(real_ND, real_ND), axis=1)[:, neighbours]  # the nearest is the picture itself
    inside_NM = cdist(real_ND, drawn_MD) < radius_N[:, None]
    return Likeness(float(inside_NM.sum() / (neighbours * len(drawn_MD))), float(inside_NM.any(1).mean()))
