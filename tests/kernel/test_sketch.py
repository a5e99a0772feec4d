"""Sketches keep inner products: without bias, with the stated error, the same from everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raysuite.kernel.sketch import Sketch, parameter_blocks

SIZES = {"a.0.w": 300, "a.0.b": 40, "b.w": 200}
BLOCKS = parameter_blocks(list(SIZES))


def sketch(width: int, seed: int = 0) -> Sketch:
    return Sketch(SIZES, BLOCKS, width=width, generator=lambda n: torch.Generator().manual_seed(1000 * seed + n))


def gradients(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def test_blocks_are_the_first_parts_of_names() -> None:
    assert sketch(8).blocks == ("a.0", "b")


def test_inner_products_are_unbiased_with_the_stated_error() -> None:
    """400 sketches of width 64: the mean within 5 standard errors, the spread within 20 % of the formula's, by block."""
    x, y = gradients(0), gradients(1)
    y = {name: y[name] + 0.3 * x[name] for name in x}
    products = []
    for seed in range(400):
        s = sketch(64, seed)
        products.append((s(x) * s(y)).sum(1).numpy())
    for row, names in enumerate((("a.0.w", "a.0.b"), ("b.w",))):
        xs, ys = (torch.cat([g[name] for name in names]).double().numpy() for g in (x, y))
        truth = xs @ ys
        variance = ((xs @ xs) * (ys @ ys) + truth**2 - 2 * np.sum(xs**2 * ys**2)) / 64
        found = np.array([p[row] for p in products])
        assert abs(found.mean() - truth) < 5 * np.sqrt(variance / 400)
        assert abs(found.std() / np.sqrt(variance) - 1) < 0.2


def test_sketches_are_linear_and_reproducible() -> None:
    x, y = gradients(0), gradients(1)
    both = sketch(16)({name: x[name] + 2 * y[name] for name in x})
    torch.testing.assert_close(both, sketch(16)(x) + 2 * sketch(16)(y), rtol=1e-5, atol=1e-5)
    assert torch.equal(sketch(16)(x), sketch(16)(x))
    assert not torch.equal(sketch(16)(x), sketch(16, seed=1)(x))


def test_parameters_that_are_not_there_are_zero() -> None:
    x = gradients(0)
    assert sketch(16)({"b.w": x["b.w"]})[0].abs().max() == 0
