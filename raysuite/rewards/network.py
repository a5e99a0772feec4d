"""What rewards that are networks have in common: made once in a process, asked often, with gradients to pixels on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from raysuite import places
from raysuite.errors import UserError

Loaded = TypeVar("Loaded")
ELSEWHERE = {"preprocessor_config.json": "processor_config.json"}
"""Where transformers 5 saves what earlier versions saved under another name."""
PRECISIONS = ("float32", "bfloat16", "float16")


class NetworkReward(ABC):
    """A reward that is a network. Subclasses say how pictures become its pixels, and how those are scored.

    Args:
        model: hub id, or a directory with weights in safetensors, tokenizer and image processor.
        device: where the network is.
        precision: what it runs in, `float32`, `bfloat16` or `float16`; scores are float32 in any case.
        batch: pictures that go through it at once.
    """

    def __init__(self, model: str, *, device: str = "cpu", precision: str = "float32", batch: int = 32) -> None:
        check_network(model, precision, batch)
        self.model, self.device, self.batch = model, torch.device(device), batch
        self.dtype: torch.dtype = getattr(torch, precision)

    @abstractmethod
    def pixels(self, images_N: np.ndarray) -> Tensor:
        """Pictures, uint8 (N, H, W, 3), as the network's input (N, 3, h, w), float32: resized and normalised as published."""

    @abstractmethod
    def resized(self, images_NCHW: Tensor) -> Tensor:
        """The same of pictures in [0, 1], (N, 3, H, W), with gradients; rounding to grey levels is left out."""

    @abstractmethod
    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """Scores (N,), float32, of what `pixels` or `resized` gives."""

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,) of pictures, uint8 (N, H, W, 3), for their prompts."""
        batches = [slice(first, first + self.batch) for first in range(0, len(images), self.batch)]
        return np.concatenate(
            [self.scores(self.pixels(images[b]).to(self.device), prompts[b]).float().cpu().numpy() for b in batches]
        )

    def differentiable(self, images_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (N,) of pictures in [0, 1], (N, 3, H, W), float32, with gradients to them.

        Equal to the call but for the rounding of resized pictures to grey levels.
        """
        return self.scores(self.resized(images_NCHW.to(self.device)), prompts)

    def _ready(self, network: torch.nn.Module) -> Any:
        return network.to(self.device, self.dtype).requires_grad_(False).eval()


def load(make: Callable[[], Loaded], what: str, model: str, otherwise: str) -> Loaded:
    """What `make` reads from a hub id or a directory.

    Raises:
        UserError: it is not there, or is something else.
    """
    try:
        return make()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"expected {what} at {model}, could not read it ({first[0]}): {otherwise}") from error


def tokenizer_of(model: str, otherwise: str) -> Any:
    """The tokenizer of a hub id or a directory."""
    return load(lambda: AutoTokenizer.from_pretrained(_place(model)), "a tokenizer", model, otherwise)


def processor_of(model: str, otherwise: str) -> Any:
    """The image processor of a hub id or a directory, as it computes on PIL's pictures.

    Where torchvision is installed transformers would take another, whose pixels differ: scores would depend on the machine.
    """
    return load(
        lambda: AutoImageProcessor.from_pretrained(_place(model), backend="pil"), "an image processor", model, otherwise
    )


def network_of(
    kind: Any, model: str, what: str, otherwise: str, *, needless: Sequence[str] = (), **options: Any
) -> Any:
    """A network of transformers from a hub id or a directory with safetensors, which need not have the `needless` parameters.

    Raises:
        UserError: it is not there, is something else, or lacks weights, which transformers would draw at random.
    """
    network, found = load(
        lambda: kind.from_pretrained(_place(model), use_safetensors=True, output_loading_info=True, **options),
        what,
        model,
        otherwise,
    )
    parameters = {name for name, _ in network.named_parameters()} - set(needless)
    if lacking := sorted(parameters & set(found["missing_keys"])):
        raise UserError(
            f"expected all weights of {what} at {model}, found none for {len(lacking)} of its parameters, such as {lacking[0]}: "
            f"{otherwise}"
        )
    return network


def check_network(model: str, precision: str, batch: int) -> None:
    """Refuse options that make no sense.

    Raises:
        UserError: one does not.
    """
    if precision not in PRECISIONS:
        raise UserError(f"expected precision of float32, bfloat16 or float16 for {model}, got {precision!r}")
    if type(batch) is not int or batch < 1:
        raise UserError(f"expected batch of at least 1 for {model}, got {batch!r}")


def _place(model: str) -> str:
    return str(places.whole(model)) if model.startswith("~") else model


def check_directory(model: str, needs: Sequence[str], otherwise: str) -> None:
    """Look at a model before anything slow begins. A hub id can only be tried.

    Raises:
        UserError: it is a directory that lacks something, or a path to nothing.
    """
    path = places.whole(model)
    if path.is_dir():
        lacking = [
            name for name in needs if not any((path / file).is_file() for file in (name, ELSEWHERE.get(name, name)))
        ]
        if lacking:
            raise UserError(f"expected {', '.join(needs)} in {model}, found no {lacking[0]}: {otherwise}")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"expected a directory at {model}, found none: {otherwise}")


def check_converted(reward: str, model: str | None, needs: Sequence[str], otherwise: str) -> None:
    """The same for a reward whose weights are published as a pickled file, and so are on no hub as they are read here.

    Raises:
        UserError: no model is named, or as above.
    """
    if model is None:
        raise UserError(f"expected a model for the reward {reward}, which is published as a pickled file: {otherwise}")
    if not places.whole(model).is_dir():
        raise UserError(f"expected a directory at {model} for the reward {reward}, found none: {otherwise}")
    check_directory(model, needs, otherwise)


def processed(processor: Any, images_N: np.ndarray, **options: Any) -> Any:
    """What an image processor makes of pictures, uint8 (N, H, W, 3). Told of no channels it would guess, and take a picture three
    pixels high for one whose channels come first.
    """
    return processor(images=list(images_N), return_tensors="pt", input_data_format="channels_last", **options)


class Frame:
    """How a CLIP-like image processor frames a picture: shortest side resized, centre cropped, normalised.

    Args:
        model: hub id or directory with its image processor.
        nearest: whether the crop begins at the nearest pixel, as torchvision's, where transformers' begins at the one before. Of the
            usual sizes that matters for 832 x 1216 alone.
    """

    def __init__(self, model: str, otherwise: str, *, nearest: bool = False) -> None:
        self._nearest = nearest
        self._processor = processor_of(model, otherwise)
        crop = self._processor.crop_size
        self.side, self.crop = int(self._processor.size["shortest_edge"]), (int(crop["height"]), int(crop["width"]))
        self._mean = torch.tensor(self._processor.image_mean).view(3, 1, 1)
        self._std = torch.tensor(self._processor.image_std).view(3, 1, 1)

    def pixels(self, images_N: np.ndarray) -> Tensor:
        """As published: pictures uint8 (N, H, W, 3) through the processor itself."""
        if not self._nearest:
            return processed(self._processor, images_N)["pixel_values"]
        return self._cropped(processed(self._processor, images_N, do_center_crop=False)["pixel_values"])

    def resized(self, images_NCHW: Tensor) -> Tensor:
        """The same of pictures in [0, 1], with gradients."""
        height, width = images_NCHW.shape[2:]
        size = (
            (self.side, int(self.side * width / height))
            if height <= width
            else (int(self.side * height / width), self.side)
        )
        images_NCHW = F.interpolate(images_NCHW, size, mode="bicubic", antialias=True, align_corners=False)
        cropped = self._cropped(images_NCHW).clamp(0, 1)
        return (cropped - self._mean.to(cropped)) / self._std.to(cropped)

    def _cropped(self, images_NCHW: Tensor) -> Tensor:
        beyond = (have - want for have, want in zip(images_NCHW.shape[2:], self.crop, strict=True))
        top, left = (round(more / 2) if self._nearest else more // 2 for more in beyond)
        return images_NCHW[:, :, top : top + self.crop[0], left : left + self.crop[1]]
