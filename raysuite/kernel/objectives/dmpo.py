"""DMPO: match the policy's preference to a nearly certain one, by the reverse divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from raysuite.kernel.objectives.interface import require
from raysuite.kernel.objectives.pairs import Judged, PairObjective


@dataclass(frozen=True, kw_only=True)
class Dmpo(PairObjective):
    """Term = KL(Bernoulli(p) || Bernoulli(1 - doubt)), p = sigma(u), u = h_preferred - h_rejected (see `PairObjective`).

    DPO's term is the other direction of this divergence, and never ends. This one pulls the logit to log((1 - doubt) / doubt),
    4.6 for a doubt of 0.01, and back from beyond: its derivative in u is p (1 - p) (u - log((1 - doubt) / doubt)). Pairs that the
    policy gets badly wrong hardly count, since p (1 - p) is small there too.

    Source: Li, Xu, Dang and Ermon, "Divergence Minimization Preference Optimization for Diffusion Model Alignment", 2025, as
    the released code of Diffusion-SDPO has it: doubt 0.01, beta 2000 (SD 1.5) or 6000 (SDXL). With that code's safeguard it
    is `winner_margin`: 0.9 for SD 1.5.
    """

    doubt: float = 0.01
    """The probability that a label is wrong, above 0 and below 1/2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "beta", "above 0, where there is something to learn", self.beta)
        require(0 < self.doubt < 0.5, "doubt", "above 0 and below 0.5", self.doubt)

    def terms(self, judged: Judged) -> Tensor:
        """The divergence."""
        u = judged.reward_UM[:, 0] - judged.reward_UM[:, 1]
        preferred, rejected = logsigmoid(u), logsigmoid(-u)
        return preferred.exp() * (preferred - math.log1p(-self.doubt)) + rejected.exp() * (
            rejected - math.log(self.doubt)
        )
