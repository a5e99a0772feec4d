"""What was published of the same ten tasks, to stand beside an evaluation on the same data.

Shares of right answers to 1,000 prompts for each task and number of demonstrations, as the authors' judge saw them. Pictures and
descriptions are read off the bar charts of the authors' notebook (July 2024), by the heights of bars, to within about 0.003. Some
numbers changed between versions of the notebook: GPT-4V's of Background-I had been 0.807 with two demonstrations.

Source: Zeng et al., "Can MLLMs Perform Text-to-Image In-Context Learning?", COLM 2024, and the notebook analysis/plot.ipynb of its
released code at commit a787be5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SHOTS = (2, 4, 6, 8)
SOURCE = (
    "Zeng et al., 2024: 1,000 prompts for each task and number of demonstrations, the authors' judge; read off the bar charts of "
    "their notebook of July 2024 to within about 0.003"
)
Output = Literal["pictures", "descriptions"]
Shares = tuple[float, float, float, float]
"""By number of demonstrations, as `SHOTS`."""


@dataclass(frozen=True)
class Published:
    """A model's shares of right answers."""

    model: str
    output: Output
    variant: str
    tasks: Mapping[str, Shares]

    @property
    def mean(self) -> Shares:
        """Over the ten tasks."""
        two, four, six, eight = (sum(of[place] for of in self.tasks.values()) / len(self.tasks) for place in range(4))
        return two, four, six, eight


def _table(kind_one: Mapping[str, Shares], kind_two: Mapping[str, Shares]) -> Mapping[str, Shares]:
    return {f"{theme}-{kind}": of[theme] for theme in kind_one for kind, of in (("I", kind_one), ("II", kind_two))}


PUBLISHED = (
    Published(
        "SEED-LLaMA",
        "pictures",
        "default",
        _table(
            {
                "Color": (0.681, 0.608, 0.553, 0.541),
                "Background": (0.350, 0.125, 0.070, 0.027),
                "Style": (0.204, 0.073, 0.076, 0.024),
                "Action": (0.182, 0.055, 0.131, 0.170),
                "Texture": (0.198, 0.125, 0.201, 0.207),
            },
            {
                "Color": (0.289, 0.252, 0.456, 0.489),
                "Background": (0.468, 0.076, 0.453, 0.398),
                "Style": (0.298, 0.271, 0.334, 0.319),
                "Action": (0.261, 0.210, 0.252, 0.271),
                "Texture": (0.164, 0.106, 0.146, 0.170),
            },
        ),
    ),
    Published(
        "SEED-LLaMA",
        "pictures",
        "misleading",
        _table(
            {
                "Color": (0.535, 0.438, 0.529, 0.526),
                "Background": (0.067, 0.049, 0.055, 0.076),
                "Style": (0.109, 0.128, 0.146, 0.109),
                "Action": (0.024, 0.018, 0.046, 0.040),
                "Texture": (0.122, 0.067, 0.085, 0.091),
            },
            {
                "Color": (0.021, 0.067, 0.094, 0.146),
                "Background": (0.228, 0.198, 0.271, 0.298),
                "Style": (0.146, 0.188, 0.222, 0.246),
                "Action": (0.182, 0.125, 0.173, 0.207),
                "Texture": (0.070, 0.049, 0.073, 0.103),
            },
        ),
    ),
    Published(
        "Gemini",
        "descriptions",
        "default",
        _table(
            {
                "Color": (0.867, 0.905, 0.957, 0.960),
                "Background": (0.795, 0.909, 0.929, 0.936),
                "Style": (0.315, 0.542, 0.634, 0.610),
                "Action": (0.518, 0.737, 0.867, 0.874),
                "Texture": (0.706, 0.864, 0.929, 0.888),
            },
            {
                "Color": (0.555, 0.710, 0.871, 0.854),
                "Background": (0.586, 0.775, 0.881, 0.912),
                "Style": (0.360, 0.487, 0.614, 0.600),
                "Action": (0.727, 0.819, 0.909, 0.909),
                "Texture": (0.343, 0.555, 0.706, 0.723),
            },
        ),
    ),
    Published(
        "GPT-4V",
        "descriptions",
        "default",
        _table(
            {
                "Color": (0.843, 0.693, 0.459, 0.425),
                "Background": (0.651, 0.453, 0.285, 0.099),
                "Style": (0.271, 0.237, 0.151, 0.058),
                "Action": (0.648, 0.531, 0.566, 0.603),
                "Texture": (0.511, 0.483, 0.593, 0.449),
            },
            {
                "Color": (0.206, 0.291, 0.223, 0.398),
                "Background": (0.675, 0.713, 0.655, 0.425),
                "Style": (0.439, 0.415, 0.442, 0.552),
                "Action": (0.490, 0.490, 0.442, 0.525),
                "Texture": (0.350, 0.357, 0.425, 0.518),
            },
        ),
    ),
    Published(
        "Claude",
        "descriptions",
        "default",
        _table(
            {
                "Color": (0.521, 0.648, 0.624, 0.576),
                "Background": (0.185, 0.360, 0.566, 0.699),
                "Style": (0.154, 0.223, 0.247, 0.247),
                "Action": (0.480, 0.645, 0.658, 0.576),
                "Texture": (0.360, 0.531, 0.569, 0.590),
            },
            {
                "Color": (0.305, 0.391, 0.456, 0.501),
                "Background": (0.679, 0.830, 0.819, 0.950),
                "Style": (0.449, 0.535, 0.569, 0.583),
                "Action": (0.422, 0.473, 0.439, 0.432),
                "Texture": (0.281, 0.377, 0.415, 0.435),
            },
        ),
    ),
    Published(
        "Qwen-VL",
        "descriptions",
        "default",
        _table(
            {
                "Color": (0.477, 0.562, 0.552, 0.278),
                "Background": (0.315, 0.459, 0.154, 0.058),
                "Style": (0.381, 0.573, 0.154, 0.048),
                "Action": (0.466, 0.682, 0.717, 0.367),
                "Texture": (0.339, 0.456, 0.463, 0.384),
            },
            {
                "Color": (0.459, 0.569, 0.614, 0.463),
                "Background": (0.381, 0.367, 0.370, 0.717),
                "Style": (0.261, 0.343, 0.346, 0.250),
                "Action": (0.391, 0.549, 0.480, 0.651),
                "Texture": (0.319, 0.435, 0.442, 0.216),
            },
        ),
    ),
)
