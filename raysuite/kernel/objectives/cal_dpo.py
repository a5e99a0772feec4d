"""Cal-DPO on denoising errors: implicit rewards are pinned to a scale, not only to an order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raysuite.kernel.objectives.interface import require
from raysuite.kernel.objectives.pairs import Judged, Link, PairObjective, linked


@dataclass(frozen=True, kw_only=True)
class CalDpo(PairObjective):
    """Term = -log sigma(h_preferred - h_rejected) + weight [(h_preferred - M)^2 + (h_rejected + M)^2].

    DPO fixes only the difference of the implicit rewards h (see `PairObjective`), so that both errors may grow; here
    each is regressed to +M or -M.

    Source: Xiao et al., "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment", 2024, whose target
    is the constant 1 / (2 beta) for h = log-ratio. The released code leaves beta out of the first term and puts a factor
    1/2 before the second. The port to denoising errors is ours, and so is the target: since m cannot fall below 0, h_preferred
    cannot exceed beta / 2 m_ref, which is small where noise is easy to predict; a constant target is out of reach at
    those timesteps. M = share beta / 2 m_ref(preferred) asks for the same relative gain at every timestep: an error of
    1 - share of the reference's.
    """

    share: float
    """Of the preferred member's error under the reference that should vanish, in (0, 1)."""
    weight: float = 1.0
    """Of the calibration; 0 is Diffusion-DPO."""
    link: Link = "logistic"
    """Of the first term: `logistic`, `ipo` or `hinge`."""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong, in the first term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "beta", "above 0, where there is something to learn", self.beta)
        require(0 < self.share < 1, "share", "above 0 and below 1", self.share)
        require(self.weight >= 0, "weight", "of at least 0", self.weight)
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", "of at least 0 and below 0.5", self.label_smoothing)

    def terms(self, judged: Judged) -> Tensor:
        """Order and calibration."""
        goal_U = self.share * 0.5 * self.beta * judged.reference_error_UM[:, 0]
        preferred_U, rejected_U = judged.reward_UM.unbind(1)
        order_U = linked(preferred_U - rejected_U, link=self.link, smoothing=self.label_smoothing)
        return order_U + self.weight * calibration(preferred_U, rejected_U, goal_U)


def calibration(preferred_U: Tensor, rejected_U: Tensor, goal_U: Tensor) -> Tensor:
    """How far implicit rewards lie from +goal and -goal, squared, (U,)."""
    return (preferred_U - goal_U) ** 2 + (rejected_U + goal_U) ** 2
