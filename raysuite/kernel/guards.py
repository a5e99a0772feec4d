"""What must not be overlooked as a run goes on: numbers in, a sentence or None out.

Each decision names what it saw and its limit; what to do is in `REMEDIES`, which the report prints too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysuite.kernel.stats import Interval

REMEDIES = {
    "held_out": "what was learned does not carry over. Prefer an earlier checkpoint, learn with a lower learning rate, or from "
    "more prompts.",
    "watched": "the trained reward is being gamed. Prefer an earlier checkpoint (checkpoints.best may name the watched reward), train "
    "on both, or hold the policy nearer to where it began.",
    "diversity": "the policy draws the same picture again and again. Prefer an earlier checkpoint, lower learn.learning_rate, or "
    "reward differences.",
    "kl": "the model has moved far from where it began, and pictures may break in ways that the reward does not see. Look at "
    "them; lower learn.learning_rate, or stop earlier.",
    "ratio": "rollouts and learner do not compute the same densities, so importance weights mean nothing. Give both the same "
    "device and precision, and keep learn.microbatch at the size of a block.",
    "spread": "there is nothing to learn from them. Choose a reward that tells the pictures of one prompt apart, prompts that are "
    "neither hopeless nor certain, or more rollouts.samples.",
    "prompts": "all soft prompts are becoming one, and draws of it alike. Raise parameters.prompts.orthogonality, lower "
    "learn.learning_rate, or stop earlier.",
    "finite": "a number overflowed or was divided by zero. Lower learn.learning_rate, or use model.precision=float32.",
}
"""What each guard's alarm means and what to do about it."""


def held_out(*, training: Interval, held_out: Interval) -> str | None:
    """Whether the trained reward rose on training prompts while it fell on held-out ones, both since the beginning."""
    if not (training.estimate > 0 > held_out.high):
        return None
    return (
        f"the trained reward changed by {training.estimate:+.3g} on training prompts and by {held_out.estimate:+.3g} "
        f"[{held_out.low:.3g}, {held_out.high:.3g}] on held-out ones"
    )


def watched(*, trained: Interval, watched: Mapping[str, Interval]) -> str | None:
    """Whether the trained reward rose while one fell that is only watched, both since the beginning on the same pictures."""
    fell = [name for name, change in watched.items() if change.high < 0]
    if not (trained.low > 0 and fell):
        return None
    change = watched[fell[0]]
    return (
        f"the trained reward rose by {trained.estimate:.3g} [{trained.low:.3g}, {trained.high:.3g}] and {fell[0]}, which is only "
        f"watched, changed by {change.estimate:.3g} [{change.low:.3g}, {change.high:.3g}]"
    )


def diversity(*, now: float, base: float, share: float) -> str | None:
    """Whether pictures of one prompt (mean RMS distance, grey levels) are less than `share` as different as at first."""
    if not now < share * base:
        return None
    return (
        f"pictures of one prompt differ by {now:.3g} grey levels, {now / base:.0%} of the {base:.3g} at the beginning"
    )


def kl(*, nats: float, limit: float) -> str | None:
    """Whether the KL from the model as it came, per trajectory, is beyond the limit."""
    return f"the KL is {nats:.4g} nats a trajectory, more than {limit:g}" if nats > limit else None


def ratio(*, ratio: float, clipped: float, tolerance: float) -> str | None:
    """Whether importance ratios before the first step of an update, each of which ought to be 1, are off: their mean by more than the
    tolerance, or a larger share of them clipped. A clip may be far narrower than what a mean shows.
    """
    if abs(ratio - 1) > tolerance:
        return f"the first importance ratio is {ratio:.6g}, not 1"
    if clipped > tolerance:
        return f"{clipped:.0%} of the first importance ratios are so far off 1 that they are clipped"
    return None


def spread(*, without: float, groups: float) -> str | None:
    """Whether the pictures of most prompts of an update had the same reward within the prompt, but for rounding."""
    return f"the pictures of {without:g} of {groups:g} prompts had equal rewards" if without > groups / 2 else None


def prompts(*, now: float, share: float) -> str | None:
    """Whether the spread of soft prompts, as a share of what it was in the beginning, is below `share`."""
    return f"the spread of the soft prompts is {now:.0%} of what it was at the beginning" if now < share else None


def finite(metrics: Mapping[str, float]) -> str | None:
    """Whether all metrics are numbers."""
    names = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{names[0]} is {metrics[names[0]]}" if names else None
