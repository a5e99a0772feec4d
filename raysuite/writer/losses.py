"""What a writer is trained by, and limits that decide whether it can work. Nothing here needs TRL.

h is log pi(y|x) - log pi_ref(y|x) of a whole completion, w the preferred one of a pair and l the other, Delta = h_w - h_l.

    sigmoid    -log sigma(beta Delta)                                                   (Rafailov et al., 2023, eq. 7)
    cal_dpo    -log sigma(Delta) + weight [(h_w - target_w)^2 + (h_l - target_l)^2]   (Xiao et al., 2024; their code has weight 1/2)
    ipo        (Delta / tokens - 1 / (2 beta))^2, each h by its own number of tokens    (Azar et al., 2024, eq. 17, as TRL has it)
    apo_zero   1 - sigma(beta h_w) + sigma(beta h_l)                                    (D'Oosterlinck et al., 2024)
    sft        -log pi(y_w) a token, mean over all tokens of the preferred completions of a batch
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from raysuite.errors import UserError

Kind = Literal["sigmoid", "cal_dpo", "ipo", "apo_zero", "sft"]
Targets = Literal["plain", "normalised"]
LOG_2 = math.log(2)


@dataclass(frozen=True)
class PairLoss:
    """A loss of preference pairs.

    Raises:
        UserError: there is no such loss, or a number is out of its range.
    """

    kind: Kind = "sigmoid"
    beta: float = 0.1
    """How much a nat away from the reference costs."""
    targets: Targets = "plain"
    """Of cal_dpo: 1 / (2 beta) and its negative, or those that a writer can have: both lower by log cosh(1 / (2 beta))."""
    weight: float = 1.0
    """Of cal_dpo's calibration. At beta 1 it is TRL's `loss_type=["sigmoid", "sppo_hard"]` with `loss_weights=[1, weight]`."""

    def __post_init__(self) -> None:
        for name, value, known in (("--loss", self.kind, Kind), ("--targets", self.targets, Targets)):
            if value not in get_args(known):
                raise UserError(f"expected {name} of {', '.join(get_args(known))}, got {value!r}: name one of them")
        if self.kind != "cal_dpo" and (self.targets, self.weight) != ("plain", 1.0):
            raise UserError(
                f"expected --targets and --weight with --loss cal_dpo alone, got them with {self.kind}: leave them out"
            )
        if self.kind == "sft" and self.beta != PairLoss.beta:
            raise UserError(
                f"expected no --beta with --loss sft, which compares with no reference, got {self.beta:g}: leave it out"
            )
        if not self.beta > 0 or not self.weight >= 0:
            raise UserError(
                f"expected --beta above 0 and --weight of at least 0, got {self.beta:g} and {self.weight:g}: correct them"
            )

    @property
    def target(self) -> tuple[float, float]:
        """H of the preferred and of the rejected completion that cal_dpo pulls to, nats.

        With truth r = 1/2 for winners and -1/2 for losers, as many of them, pi = pi_ref exp(r / beta) / Z has h = r / beta - log Z and
        Z = cosh(1 / (2 beta)). Plain targets leave out log Z, so that no distribution has them.
        """
        half = 1 / (2 * self.beta)
        log_z = half + math.log1p(math.exp(-2 * half)) - LOG_2 if self.targets == "normalised" else 0.0
        return half - log_z, -half - log_z


def cal_dpo(loss: PairLoss, h_w: Tensor, h_l: Tensor) -> Tensor:
    """Calibrated DPO, the mean over pairs: see the head of this module.

    Args:
        loss: its targets and weight.
        h_w: log-ratios (N,) of the preferred completions, nats.
        h_l: of the rejected ones.
    """
    target_w, target_l = loss.target
    calibration = (h_w - target_w) ** 2 + (h_l - target_l) ** 2
    return -logsigmoid(h_w - h_l).mean() + loss.weight * calibration.mean()


def warnings(loss: PairLoss, logp_w: Tensor) -> list[str]:
    """What is to be told of a loss before it is trained with.

    Two bounds hold for h_w of any writer. log pi is at most 0, so h_w is at most -log pi_ref(y_w). And the mean of pi / pi_ref under
    pi_ref is 1, so that where a share q of the reference's own mass is preferred the mean of h_w is at most log(1 / q): log 2 for
    pairs drawn from the reference, as often winner as loser, whatever beta.

    Args:
        loss: the loss.
        logp_w: log pi_ref (N,) of the preferred completions, nats.
    """
    if loss.kind != "cal_dpo":
        return []
    told, wanted = [], loss.target[0]
    room = float(-logp_w.median())
    if wanted > room:
        told.append(
            f"beta {loss.beta:g} pulls h of preferred rewrites to {wanted:.3g} nats, and half of them have at most {room:.3g}, where "
            "their probability is 1: the calibration is a constant push. Raise --beta"
            + (f" to {_upwards(1 / (2 * room)):g} or more." if loss.targets == "plain" and room > 0 else ".")
        )
    if wanted > LOG_2:
        told.append(
            f"beta {loss.beta:g} pulls h of preferred rewrites to {wanted:.3g} nats; for pairs that the reference drew, as often "
            f"preferred as not, their mean cannot exceed log 2 = {LOG_2:.3f}: only the rejected ones are held. "
            f"--targets normalised asks for what a writer can have, and so does --beta {_upwards(1 / (2 * LOG_2)):g} or more."
        )
    return told


def _upwards(value: float) -> float:
    """To two digits, upwards: what is advised is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def summary(h_w: Tensor, h_l: Tensor, logp_w: Tensor) -> dict[str, float]:
    """What training did, for any loss: means over pairs, and shares of them."""
    return {
        "h_preferred": float(h_w.mean()),
        "h_rejected": float(h_l.mean()),
        "preferred_above_0": float((h_w > 0).double().mean()),
        "accuracy": float((h_w > h_l).double().mean()),
        "logp_preferred": float(logp_w.mean()),
    }
