"""Diffusion-DPO: direct preference optimisation through denoising errors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raysuite.kernel.objectives.interface import require
from raysuite.kernel.objectives.pairs import Judged, Link, PairObjective, linked


@dataclass(frozen=True, kw_only=True)
class DiffusionDpo(PairObjective):
    """Term = -log sigma(u), u = h_preferred - h_rejected (see `PairObjective`), or another link of the same logit.

    At policy = reference it is log 2, and its gradient is beta / 4 times that of m_preferred - m_rejected.

    Source: Wallace et al., "Diffusion Model Alignment Using Direct Preference Optimization", 2024, equation 14. This is
    the released code's loss: beta absorbs T omega(lambda_t), the timestep is uniform, and both members share their noise
    (`shared_noise: false` is the paper). Published learning rates differ by a factor of 2500 between paper and
    launcher: find yours.
    """

    link: Link = "logistic"
    """`logistic` (DPO), `ipo` or `hinge`."""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "beta", "above 0, where there is something to learn", self.beta)
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", "of at least 0 and below 0.5", self.label_smoothing)

    def terms(self, judged: Judged) -> Tensor:
        """The link of the logit."""
        return linked(judged.reward_UM[:, 0] - judged.reward_UM[:, 1], link=self.link, smoothing=self.label_smoothing)
