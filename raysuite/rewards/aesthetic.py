"""The LAION aesthetic predictor: how much people like a picture, whatever its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raysuite import places
from raysuite.errors import UserError
from raysuite.rewards.clip import ClipReward
from raysuite.rewards.network import check_converted, load

HEAD = "aesthetic.safetensors"


class Aesthetic(ClipReward):
    """Mean rating that people would give, about 1 to 10; pictures of Stable Diffusion have 5 to 6.5.

    Source: Schuhmann, "improved-aesthetic-predictor" (version 2, `sac+logos+ava1-l14-linearMSE`): five linear layers on the
    normalised image embedding of CLIP ViT-L/14, without activations between them. Black et al. (DDPO), 2024, train on it.

    Args:
        model: directory with `aesthetic.safetensors`, made by `raysuite rewards convert aesthetic`.
        clip: hub id or directory of the CLIP that the head was trained on.
        options: as of `NetworkReward`.
    """

    MODEL = "openai/clip-vit-large-patch14"
    HEAD_OTHERWISE = (
        "download sac+logos+ava1-l14-linearMSE.pth of improved-aesthetic-predictor, and name the directory that "
        "`raysuite rewards convert aesthetic FILE --out DIR` makes of it"
    )

    def __init__(self, model: str | None = None, *, clip: str = MODEL, **options: Any) -> None:
        self.check(model, clip=clip)
        super().__init__(clip, **options)
        file = places.whole(str(model)) / HEAD
        weights = load(lambda: load_file(file), "weights of the head", str(file), self.HEAD_OTHERWISE)
        width = self.clip.config.projection_dim
        if weights["layers.0.weight"].shape[1] != width:
            raise UserError(
                f"expected a head for embeddings of {width} numbers (those of {clip}) in {file}, got one for "
                f"{weights['layers.0.weight'].shape[1]}: name the CLIP that it was trained on (options.clip)"
            )
        self._head = head_like(weights)
        self._head.load_state_dict(weights)
        self._head = self._head.to(self.device).requires_grad_(False).eval()

    @classmethod
    def check(cls, model: str | None, *, clip: str = MODEL, **options: Any) -> None:
        """Refuse a directory without a head, and a CLIP that lacks something."""
        check_converted("aesthetic", model, (HEAD,), cls.HEAD_OTHERWISE)
        super().check(clip, **options)

    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """Of the pictures alone."""
        return self._head(self.image_features(pixels_NCHW)).squeeze(-1)


class Head(nn.Module):
    """Linear layers, with dropout that only counts in training; named as in the published file."""

    def __init__(self, widths: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        last = max(widths)
        self.layers = nn.Sequential(*(nn.Linear(*widths[i]) if i in widths else nn.Identity() for i in range(last + 1)))

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        """(N, D) to (N, 1)."""
        return self.layers(embeddings_ND)


def head_like(weights: Mapping[str, Tensor]) -> Head:
    """A head with the layers that these weights are of."""
    shapes = {int(name.split(".")[1]): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}
    return Head({index: (shape[1], shape[0]) for index, shape in shapes.items()})


def convert(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the published file, as they are stored here.

    Raises:
        UserError: it is another file.
    """
    weights = {name: value for name, value in state.items() if name.startswith("layers.")}
    if not weights or len(weights) < len(state) or "layers.0.weight" not in weights:
        raise UserError(
            f"expected the weights of an aesthetic head (layers.0.weight and so on), got {', '.join(list(state)[:3])}, ...: "
            "name sac+logos+ava1-l14-linearMSE.pth"
        )
    return {name: value.to(torch.float32).contiguous() for name, value in weights.items()}
