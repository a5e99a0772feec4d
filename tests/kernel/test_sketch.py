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
    assert sketch(8).spans == {"a.0": slice(0, 8), "b": slice(8, 16)}
    assert sketch(8).coordinates == {"a.0": 340, "b": 200}


def test_small_blocks_are_kept_as_they_are() -> None:
    """A width between the two blocks: b is exact, a.0 is not; a width above both: no error at all."""
    x = gradients(0)
    some, all_of_it = sketch(200), sketch(340)
    assert torch.equal(some(x)[some.spans["b"]], x["b.w"])
    assert some.error == (2 / 200) ** 0.5
    assert torch.equal(all_of_it(x), torch.cat([x["a.0.w"], x["a.0.b"], x["b.w"]]))
    assert all_of_it.error == 0.0


def test_inner_products_are_unbiased_with_the_stated_error() -> None:
    """400 sketches of width 64: the mean within 5 standard errors, the spread within 20 % of the formula's, by block."""
    x, y = gradients(0), gradients(1)
    y = {name: y[name] + 0.3 * x[name] for name in x}
    products = []
    for seed in range(400):
        s = sketch(64, seed)
        product = s(x) * s(y)
        products.append([float(product[span].sum()) for span in s.spans.values()])
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
    s = sketch(16)
    assert s({"b.w": x["b.w"]})[s.spans["a.0"]].abs().max() == 0


def test_parameters_of_a_block_have_places_of_their_own() -> None:
    """The same numbers in two parameters of one block are orthogonal, within five standard errors."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(3))
    s = Sketch({"a.v": 400, "a.w": 400}, {"a.v": "a", "a.w": "a"}, width=64, generator=torch.Generator().manual_seed)
    product = float(s({"a.v": x, "a.w": torch.zeros(400)}) @ s({"a.v": torch.zeros(400), "a.w": x}))
    assert abs(product) < 5 * float(x @ x) / 64**0.5
