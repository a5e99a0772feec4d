"""Scene -> picture. Shapes keep a gap of at least 1.5 pixels, so that a picture can be read back exactly."""

from __future__ import annotations

import numpy as np

from raysuite.worlds.scenes.grammar import COLOURS, Scene

SIZE = 32
"""Pixels on a side."""
GROUND = np.array([245.0, 245.0, 245.0])
"""RGB of the ground, in [0, 255]."""

_GAP = 1.5
_GRID_YX = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij"))
_AREA = {"circle": np.pi, "square": 4 * 0.9**2, "triangle": 2.2}  # at size 1
_EXTENT = {"circle": 1.0, "square": 0.9, "triangle": 1.1}  # half the larger side of the bounding box, at size 1


def size_for_area(shape: str, area: float) -> float:
    """The size of a `shape` that covers `area` square pixels."""
    return float(np.sqrt(area / _AREA[shape]))


def coverage(shape: str, centroid_yx: np.ndarray, size: float) -> np.ndarray:
    """How much of each pixel a shape covers, in [0, 1]: anti-aliased by its signed distance. Shape (SIZE, SIZE)."""
    dy, dx = _GRID_YX - np.asarray(centroid_yx)[:, None, None]
    if shape == "circle":
        distance = np.hypot(dy, dx) - size
    elif shape == "square":
        distance = np.maximum(np.abs(dy), np.abs(dx)) - 0.9 * size
    else:  # upright triangle, base 2.2 and height 2 times the size, centroid a third above the base
        slope = (2 * np.abs(dx) - 1.1 * (dy + 4 / 3 * size)) / np.hypot(2, 1.1)
        distance = np.maximum(dy - 2 / 3 * size, slope)
    return np.clip(0.5 - distance, 0, 1)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A picture of `scene`, uint8 of shape (SIZE, SIZE, 3): sizes and places are drawn from `rng`."""
    image = np.broadcast_to(GROUND, (SIZE, SIZE, 3)).copy()
    sizes = rng.uniform(4.8, 6.0, len(scene.things))
    extents = np.array([_EXTENT[thing.shape] * size for thing, size in zip(scene.things, sizes, strict=True)])
    for thing, size, centre in zip(scene.things, sizes, _places(scene, extents, rng), strict=True):
        # a triangle's bounding box is centred a third of its size above its centroid
        centroid = centre + (np.array([size / 3, 0.0]) if thing.shape == "triangle" else 0.0)
        alpha = coverage(thing.shape, centroid, size)[..., None]
        image = (1 - alpha) * image + alpha * np.array(COLOURS[thing.colour])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _places(scene: Scene, extents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres (y, x) of the bounding boxes, one row a thing."""
    number, half = len(scene.things), SIZE / 2
    if scene.relation is not None:
        # along the axis of the relation one thing fills each half; across it they differ by at most 8 pixels
        cells = (
            np.array([[0.0, 0.0], [0.0, 1.0]])
            if scene.relation in ("left of", "above")
            else np.array([[0.0, 1.0], [0.0, 0.0]])
        )
        along = (cells[:, 1] + 0.5) * half + _jitter(extents, rng)
        across = half + rng.uniform(-4, 4) + np.array([-1, 1]) * rng.uniform(-4, 4)
        return np.stack([across, along] if "of" in scene.relation else [along, across], axis=1)
    if number == 1:
        slack = half - 0.5 - extents[0]
        return rng.uniform(half - slack, half + slack, (1, 2))
    cells = rng.permutation(4)[:number]
    corners = np.stack([cells // 2, cells % 2], axis=1)
    return (corners + 0.5) * half + np.stack([_jitter(extents, rng), _jitter(extents, rng)], axis=1)


def _jitter(extents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Displacements that keep each thing inside its half of the picture, with half a gap to the border."""
    return rng.uniform(-1, 1, len(extents)) * (SIZE / 4 - _GAP / 2 - extents)
