"""Pipelines of diffusers that draw from several pictures and a text: how an order of texts and pictures becomes their arguments.

None of them was run on its real weights. A tiny pipeline of FLUX.2 klein is run by the tests; of the others, what they are given is
held against the signatures of their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.utils import is_torchvision_available
from PIL import Image

from raysuite.config import Model
from raysuite.errors import UserError
from raysuite.families.loading import load_pipeline, named_class

Part = str | np.ndarray
"""A text, or a picture, uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Placement:
    """Where a pipeline wants its pictures."""

    pictures: str
    """The argument."""
    mark: Callable[[int], str]
    """What stands in the text in place of picture number n, from 1."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of the call, without which the class would do something else than its users want."""


PLACEMENTS: Mapping[str, Placement] = {
    # the processor puts each picture where its placeholder is: truly interleaved
    "OmniGenPipeline": Placement("input_images", lambda n: f"<img><|image_{n}|></img>"),
    # the pipeline writes "Picture n: " with each picture before the text, which refers to them; without a negative prompt it leaves
    # guidance out
    "QwenImageEditPlusPipeline": Placement("image", lambda n: f"(Picture {n})", {"negative_prompt": " "}),
    # pictures are conditions in an order, which the text refers to
    "Flux2Pipeline": Placement("image", lambda n: f"(image {n})"),
    "Flux2KleinPipeline": Placement("image", lambda n: f"(image {n})"),
    "GlmImagePipeline": Placement("image", lambda n: f"(image {n})"),
}
"""By class; the place to add one."""


def arguments(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """A call's arguments from texts and pictures in order: the prompt with a mark in the place of each picture, the pictures, and what
    the class needs beside them.
    """
    placement = PLACEMENTS[name]
    pictures = [Image.fromarray(part) for part in parts if not isinstance(part, str)]
    marks = iter(range(1, len(pictures) + 1))
    words = [part.strip() if isinstance(part, str) else placement.mark(next(marks)) for part in parts]
    return {"prompt": " ".join(words), placement.pictures: pictures, **placement.beside}


class InterleavedPipeline:
    """Such a pipeline. Its weights are read when it is first asked.

    Args:
        path: a directory or hub id.
        steps: of its sampler.
        size: height and width of what it draws, in pixels.
        precision: of its weights.
        options: other arguments of its call.

    Raises:
        UserError: there is none, it is of a class that takes pictures in another way, or a package that it needs is not there.
    """

    def __init__(
        self, path: str, *, steps: int = 50, size: int = 1024, precision: str = "bfloat16", **options: Any
    ) -> None:
        model = Model.model_validate({"path": path, "precision": precision})
        self.name = named_class(model)
        if self.name not in PLACEMENTS:
            raise UserError(
                f"expected a pipeline that takes several pictures and a text ({', '.join(PLACEMENTS)}) at {path}, got {self.name}"
            )
        # their processors would miss it when the weights are read
        if self.name in ("OmniGenPipeline", "QwenImageEditPlusPipeline") and not is_torchvision_available():
            raise UserError(
                f"expected torchvision for {self.name}, whose processor uses it, found none: pip install torchvision"
            )
        self.path, self.steps, self.size, self._options, self._model = path, steps, size, options, model

    @cached_property
    def pipeline(self) -> Any:
        """Opened."""
        opened: Any = load_pipeline(self._model, network=getattr(torch, self._model.precision))
        # the VAE, too: these pipelines hand it what the network makes, in the network's type
        opened.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, self._model.precision))
        opened.set_progress_bar_config(disable=True)
        return opened

    @torch.no_grad()
    def __call__(self, parts: Sequence[Part], generator: torch.Generator) -> np.ndarray:
        """What comes after these texts and pictures, uint8 (H, W, 3)."""
        drawn = self.pipeline(
            height=self.size,
            width=self.size,
            num_inference_steps=self.steps,
            generator=generator,
            output_type="pil",
            **{**arguments(self.name, parts), **self._options},
        )
        return np.asarray(drawn.images[0].convert("RGB"))
