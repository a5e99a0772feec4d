"""Picture -> what is in it -> does it follow the prompt? The ground truth of the scenes world.

Reading is analysis by synthesis: pixels are assigned to the palette by the direction in which they leave
the ground colour (which anti-aliased edges keep), connected regions of one colour become things, and a
thing has the shape whose rendering, at the region's own area and centroid, overlaps the region best.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from raysuite.worlds.scenes.grammar import COLOURS, SHAPES, Scene, Thing
from raysuite.worlds.scenes.render import GROUND, SIZE, coverage, size_for_area

SPECK_AREA = 8.0
"""Regions under this many square pixels are specks, not things (the smallest rendered thing covers 50)."""
SHAPE_OVERLAP = 0.72
"""A region whose best overlap (intersection over union) with every shape is below this is a blob."""

_NAMES = tuple(COLOURS)
_RAYS = GROUND - np.array([COLOURS[name] for name in _NAMES], dtype=float)
_LENGTHS = np.linalg.norm(_RAYS, axis=1)
_UNIT_RAYS = _RAYS / _LENGTHS[:, None]


@dataclass(frozen=True)
class Found:
    """One region of a picture: its colour, its shape (or "blob"), and its centroid (y, x) in pixels."""

    colour: str
    shape: str
    centroid_yx: tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """How well a picture follows a prompt: `score` in [0, 1]; `passed` exactly when nothing is wrong."""

    score: float
    passed: bool
    found: tuple[Found, ...]


def read(image: np.ndarray) -> tuple[Found, ...]:
    """The things in `image`, uint8 of shape (SIZE, SIZE, 3), ordered by colour and then by area.

    Raises:
        ValueError: the image has another shape or type.
    """
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image of shape ({SIZE}, {SIZE}, 3), got {image.dtype} {image.shape}")
    away = GROUND - image.astype(float)
    along = away @ _UNIT_RAYS.T  # (SIZE, SIZE, colours), in units of RGB distance
    nearest = along.argmax(axis=-1)
    covered = np.clip(along / _LENGTHS, 0, 1)
    found = []
    for index, colour in enumerate(_NAMES):
        regions, number = ndimage.label((nearest == index) & (covered[..., index] >= 0.5))
        for region in range(1, number + 1):
            mask = regions == region
            # the half-covered rim belongs to the region too
            alpha = covered[..., index] * ndimage.binary_dilation(mask)
            area = float(alpha.sum())
            if mask.sum() < SPECK_AREA:
                continue
            centroid = np.array(ndimage.center_of_mass(alpha)) + 0.5
            found.append((area, Found(colour, _shape(alpha, area, centroid), (float(centroid[0]), float(centroid[1])))))
    found.sort(key=lambda pair: (pair[1].colour, -pair[0]))
    return tuple(thing for _, thing in found)


def _shape(alpha: np.ndarray, area: float, centroid: np.ndarray) -> str:
    """The shape that overlaps the region best, or "blob"."""
    overlaps = {}
    for shape in SHAPES:
        ideal = coverage(shape, centroid, size_for_area(shape, area))
        overlaps[shape] = np.minimum(alpha, ideal).sum() / np.maximum(alpha, ideal).sum()
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= SHAPE_OVERLAP else "blob"


def verify(image: np.ndarray, scene: Scene) -> Verdict:
    """Grade a picture against the scene that was asked for.

    Things asked for are matched to things found so that the score is highest; a match earns half for its
    colour and half for its shape, and the sum is divided by the larger of the two numbers, so that missing
    and surplus things cost alike. Where a relation was asked for it is a third of the score.
    """
    found = read(image)
    number = max(len(scene.things), len(found))
    if scene.relation is None:
        best = sorted((_agreement(scene.things[0], thing) for thing in found), reverse=True)[: len(scene.things)]
        score = sum(best) / number
    elif len(found) == 1:
        score = 2 / 3 * max(_agreement(wanted, found[0]) for wanted in scene.things) / number
    else:
        score = max(
            (
                (2 * sum(map(_agreement, scene.things, pair)) / number + holds(scene.relation, *pair)) / 3
                for pair in permutations(found, 2)
            ),
            default=0.0,
        )
    return Verdict(score, score == 1.0, found)


def _agreement(wanted: Thing, thing: Found) -> float:
    return 0.5 * (wanted.colour == thing.colour) + 0.5 * (wanted.shape == thing.shape)


def holds(relation: str, first: Found, second: Found) -> bool:
    """Whether `first` lies in `relation` to `second`: mostly along the relation's axis, at least 4 pixels apart."""
    dy, dx = np.subtract(first.centroid_yx, second.centroid_yx)
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return bool(sign * along >= 4 and abs(along) >= abs(across))
