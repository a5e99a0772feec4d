"""DSPO: match the score of the preferred distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysuite.kernel.objectives.forward import mean_square
from raysuite.kernel.objectives.interface import require
from raysuite.kernel.objectives.pairs import Judged, PairObjective


@dataclass(frozen=True, kw_only=True)
class Dspo(PairObjective):
    """Term = mean over D of ((e - target) - beta (1 - sigma(u)) (e - e_ref))^2 at the preferred member.

    e is the network's output; the rejected member enters through u alone. The residual is that of denoising the
    preferred picture, tilted away from the reference by the gradient of log sigma(u). At policy = reference the gradient is
    (1 - beta / 2) times that of supervised fine-tuning on preferred pictures: beta = 2 kills it, more turns it round.

    Source: Zhu, Xiao and Honavar, "DSPO: Direct Score Preference Optimization for Diffusion Model Alignment", 2025, and the SD 1.5
    path of the released code (beta 0.001 to 0.05), which uses beta / 2 inside sigma and beta outside, and lets the
    gradient flow through sigma. Its SDXL path is another loss, with betas of 1000 to 5000: `variant: released_sdxl`.
    There the switch at 0.1 looks at the mean over a device's microbatch, which has 8 pairs in the published launchers for SDXL: one
    switch for all eight. Here each pair is looked at by itself, so that results do not depend on how pairs are grouped.
    """

    variant: Literal["derived", "released_sdxl"] = "derived"
    """`released_sdxl`: ((1 - sigma(u)) (e - e_ref))^2 where e has left e_ref by 0.1 (mean square), (1 - sigma(u))^2 elsewhere."""
    frozen_weight: bool = False
    """Take 1 - sigma(u) as a constant: no gradient reaches the rejected member (not in the released code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.frozen_weight and self.variant == "released_sdxl"),
            "frozen_weight",
            "false with variant released_sdxl, which learns near the reference through that weight alone",
            self.frozen_weight,
        )
        require(
            self.beta > 0 or (self.variant == "derived" and self.winner_margin is None),
            "beta",
            "above 0 with variant released_sdxl, which learns through it alone, or with winner_margin, which scales a part of it",
            self.beta,
        )
        require(
            not (self.frozen_weight and self.winner_margin is not None),
            "winner_margin",
            "null with frozen_weight, which leaves the loser no gradient to scale",
            self.winner_margin,
        )

    def terms(self, judged: Judged) -> Tensor:
        """The squared residual."""
        weight_U = torch.sigmoid(judged.reward_UM[:, 1] - judged.reward_UM[:, 0])  # 1 - sigma(u)
        if self.frozen_weight:
            weight_U = weight_U.detach()
        left_U = judged.prediction_U - judged.reference_prediction_U
        if self.variant == "released_sdxl":
            distance_U = mean_square(left_U, 1)
            return torch.where(distance_U.detach() >= 0.1, weight_U**2 * distance_U, weight_U**2)
        tilt_U = (self.beta * weight_U).reshape(-1, *[1] * (left_U.ndim - 1))
        return mean_square(judged.prediction_U - judged.target_U - tilt_U * left_U, 1)
