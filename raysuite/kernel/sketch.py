"""Gradients too large to keep: a seeded random projection that keeps their inner products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor


class Sketch:
    """Count sketch by blocks of parameters: every coordinate goes, with a random sign, to one random place of its block.

    With S the sketch of a block, E<S x, S y> = <x, y>, and

        var <S x, S y> = (|x|^2 |y|^2 + <x, y>^2 - 2 sum_i x_i^2 y_i^2) / width,

    so that the standard error is at most |x| |y| sqrt(2 / width): 2.2 % of the product of norms for a width of 4,096. A
    block of at most `width` coordinates is kept as it is, without any error.
    A sketch is a function of (seed, order and size of the parameters, width) alone: sketches made anywhere can be compared.

    Source: Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", 2002; the variance as in Weinberger
    et al., "Feature Hashing for Large Scale Multitask Learning", 2009, lemma 2.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        block_of: Mapping[str, str],
        *,
        width: int,
        generator: Callable[[int], torch.Generator],
    ) -> None:
        """Lay out the blocks; places and signs are drawn when first needed.

        Args:
            sizes: number of coordinates of every parameter, in their fixed order.
            block_of: the block of every parameter.
            width: places of a block, at most.
            generator: of the parameter with a given number.
        """
        coordinates: dict[str, int] = {}
        for name, size in sizes.items():
            coordinates[block_of[name]] = coordinates.get(block_of[name], 0) + size
        self.coordinates = coordinates
        """Coordinates of every block."""
        self.spans: dict[str, slice] = {}
        """Where each block lies in a sketch."""
        self.size = 0
        """Length of a sketch."""
        for block, count in coordinates.items():
            self.spans[block] = slice(self.size, self.size + min(count, width))
            self.size += min(count, width)
        self.error = (2 / width) ** 0.5 if max(coordinates.values()) > width else 0.0
        """Standard error of an inner product as a share of the product of norms, at most."""
        self._sizes, self._block_of, self._width, self._generator = sizes, block_of, width, generator

    @cached_property
    def _drawn(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The place of every coordinate of a parameter, and its sign where places are shared."""
        drawn: dict[str, tuple[Tensor, Tensor | None]] = {}
        next_place = {block: span.start for block, span in self.spans.items()}
        for number, (name, size) in enumerate(self._sizes.items()):
            block = self._block_of[name]
            if self.coordinates[block] <= self._width:
                drawn[name] = torch.arange(next_place[block], next_place[block] + size), None
                next_place[block] += size
            else:
                rng = self._generator(number)
                places = self.spans[block].start + torch.randint(self._width, (size,), generator=rng)
                drawn[name] = places, torch.randint(2, (size,), generator=rng, dtype=torch.int8) * 2 - 1
        return drawn

    def __call__(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The sketch of all blocks, (size,) float32 on the CPU. Linear: sketches of sums are sums of sketches."""
        out = torch.zeros(self.size)
        for name, gradient in gradients.items():
            flat = gradient.detach().flatten().float().cpu()
            places, signs = self._drawn[name]
            out.index_add_(0, places, flat if signs is None else flat * signs)
        return out


def parameter_blocks(names: Sequence[str]) -> dict[str, str]:
    """The block of every parameter: the first component of its name, with the number that follows it if one does.

    Example:
        >>> parameter_blocks(["down_blocks.0.resnets.1.weight", "mid_block.resnets.0.weight"])
        {'down_blocks.0.resnets.1.weight': 'down_blocks.0', 'mid_block.resnets.0.weight': 'mid_block'}
    """

    def block(name: str) -> str:
        first, *rest = name.removeprefix("base_model.model.").split(".")
        return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first

    return {name: block(name) for name in names}
