"""The scenes world's verifier as rewards.

They judge against what was meant: the sentence in a prompt's metadata under `scene` where there is one (users speak as they please),
what the user typed where that was rewritten (a rewrite must not be its own judge), and the prompt itself elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.verify import Verdict, verify


@dataclass(frozen=True)
class Verified:
    """A reward that reads each picture and compares it with what was meant."""

    worth: Callable[[Verdict], float]

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        meant = _meant(prompts, metadata)
        return np.array(
            [self.worth(verify(image, parse(sentence))) for image, sentence in zip(images, meant, strict=True)]
        )

    @staticmethod
    def check_prompts(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Find what cannot be judged.

        Raises:
            UserError: a sentence is none of the world's, or no text.
        """
        for sentence in _meant(prompts, metadata):
            try:
                parse(sentence)
            except (ValueError, TypeError) as error:  # what is no sentence, or no text at all
                raise UserError(
                    "expected prompts that the rewards scenes and scenes_strict can judge, such as 'three red circles', got "
                    f"{sentence!r}: say under scene in its row what is meant, or name another reward"
                ) from error


def _meant(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    return [known.get("scene") or prompt for prompt, known in zip(prompts, metadata, strict=True)]


scenes = Verified(lambda verdict: verdict.score)
"""How far each picture shows what was meant, in [0, 1]."""

scenes_strict = Verified(lambda verdict: float(verdict.passed))
"""1 where a picture shows exactly what was meant, else 0."""
