"""PickScore: what people preferred on Pick-a-Pic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raysuite.rewards.clip import ClipReward


class PickScore(ClipReward):
    """The cosine times the model's learned scale (100 in the published weights): about 15 to 26.

    Source: Kirstain et al., "Pick-a-Pic", 2023. Its tables print this number; some codebases divide it by 26 or by 100. The
    probability that one of two pictures is preferred is the sigmoid of the difference of their scores.
    """

    MODEL = "yuvalkirstain/PickScore_v1"

    def _ready(self, network: torch.nn.Module) -> Any:
        self._scale = math.exp(float(network.logit_scale.detach()))  # type: ignore[operator]  # before bfloat16 rounds it by 1 %
        return super()._ready(network)

    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """The cosine times the learned scale."""
        return self._scale * self.cosines(pixels_NCHW, prompts_N)
