"""How often intervals of directions hold the truth, in simulated studies: `python -m tests.kernel.coverage [STUDIES]`.

A unit's gradient is scale (mean + noise e), where e is partly the same under both objectives. Gaussian e and equal scales are the easy
case; the others have Student's t with 3 degrees of freedom, or scales spread lognormally.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raysuite.kernel.directions import (
    Gram,
    expected_cosine,
    has_direction,
    power,
    signal_to_noise,
    squared_norm,
    unequal,
)
from raysuite.kernel.stats import Interval

DIMENSIONS = 40


@dataclass(frozen=True, kw_only=True)
class World:
    """Where gradients come from. The mean has length 1 under both objectives."""

    cosine: float = 0.0
    n: int = 48
    noise: float = 0.5
    shared: float = 0.7
    spread: float = 0.0
    """Standard deviation of the logarithm of a unit's scale, whose mean is 1."""
    heavy: bool = False
    """Student's t with 3 degrees of freedom, of variance 1, in place of normal noise."""

    @property
    def snr(self) -> float:
        """The true one."""
        return 1 / (np.exp(self.spread**2) * (1 + self.noise**2 * DIMENSIONS) - 1)

    def grams(self, rng: np.random.Generator) -> tuple[Gram, Gram, Gram]:
        """One study: K of a with a, b with b, a with b."""

        def noise() -> np.ndarray:
            shape = (self.n, DIMENSIONS)
            return rng.standard_t(3, shape) / np.sqrt(3) if self.heavy else rng.normal(size=shape)

        a, b = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
        a[0], b[0], b[1] = 1.0, self.cosine, np.sqrt(1 - self.cosine**2)
        common, scale = noise(), rng.lognormal(-(self.spread**2) / 2, self.spread, (self.n, 1))
        g = [
            scale * (mean + self.noise * (self.shared * common + np.sqrt(1 - self.shared**2) * noise()))
            for mean in (a, b)
        ]
        return Gram.of(g[0], g[0]), Gram.of(g[1], g[1]), Gram.of(g[0], g[1])


def holds(interval: Interval, truth: float) -> bool:
    """Whether it does."""
    return interval.low <= truth <= interval.high


WORLDS = {
    **{f"noise {n:g}, cosine {c:g}": World(noise=n, cosine=c) for n in (0.3, 0.5, 1.0) for c in (0.0, 0.5, 0.9, 1.0)},
    **{
        f"shared .95, noise {n:g}, cosine {c:g}": World(noise=n, cosine=c, shared=0.95)
        for n in (1.0, 1.4, 1.6)
        for c in (0.0, 0.5, 0.9, 1.0)
    },
    **{
        f"spread {s:g}, noise {n:g}, cosine {c:g}": World(noise=n, cosine=c, spread=s)
        for s in (0.7, 1.2)
        for n in (0.5, 1.0)
        for c in (0.0, 0.9)
    },
    **{
        f"heavy, noise {n:g}, cosine {c:g}": World(noise=n, cosine=c, heavy=True)
        for n in (0.5, 1.0)
        for c in (0.0, 0.9)
    },
    **{f"n {n}, cosine 0.5": World(n=n, cosine=0.5) for n in (16, 128)},
}


def figures(world: World, studies: int) -> Iterator[tuple[str, float]]:
    """Shares of studies, and of those that find both directions."""
    rng = np.random.default_rng(0)
    drawn = [world.grams(rng) for _ in range(studies)]
    yield "squared norm", float(np.mean([holds(squared_norm(aa), 1.0) for aa, _, _ in drawn]))
    yield "snr", float(np.mean([holds(signal_to_noise(aa), world.snr) for aa, _, _ in drawn]))
    yield "marked", float(np.mean([unequal(aa) for aa, _, _ in drawn]))
    passed = [study for study in drawn if has_direction(study[0]) and has_direction(study[1])]
    yield "found", len(passed) / studies
    if passed:
        cosines = [found for study in passed if (found := expected_cosine(*study))]
        yield "cosine", float(np.mean([holds(found, world.cosine) for found in cosines]))
        yield "estimate", float(np.mean([found.estimate for found in cosines]))
        yield "width", float(np.median([found.high - found.low for found in cosines]))
        weak = [min(power(aa).estimate, power(bb).estimate) < 0.8 for aa, bb, _ in passed]
        yield "low power", float(np.mean(weak))


if __name__ == "__main__":
    for name, world in WORLDS.items():
        print(
            f"{name:<38}",
            "  ".join(f"{what} {value:.2f}" for what, value in figures(world, int(sys.argv[1]))),
            flush=True,
        )
