"""Cal-DPO on denoising errors: implicit rewards are pinned to a scale, not only to an order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raysuite.kernel.objectives.pairs import Judged, PairObjective, linked, require


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

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.share < 1, "share", "above 0 and below 1", self.share)
        require(self.weight >= 0, "weight", "of at least 0", self.weight)

    def terms(self, judged: Judged) -> Tensor:
        """Order and calibration."""
        goal_U = self.share * 0.5 * self.beta * judged.reference_error_UM[:, 0]
        return calibrated(judged.reward_UM[:, 0], judged.reward_UM[:, 1], goal_U, weight=self.weight)


def calibrated(preferred: Tensor, rejected: Tensor, goal: Tensor, *, weight: float) -> Tensor:
    """The loss of implicit rewards (U,) with goals +`goal` and -`goal`."""
    order = linked(preferred - rejected, link="logistic", smoothing=0.0)
    return order + weight * ((preferred - goal) ** 2 + (rejected + goal) ** 2)
