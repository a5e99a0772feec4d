"""CLIP: how well a picture goes with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from raysuite.rewards.network import Frame, NetworkReward, check_directory, check_network, network_of, tokenizer_of

NEEDS = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")


class ClipReward(NetworkReward):
    """A `CLIPModel` of transformers: cosines of pictures and prompts."""

    MODEL: str
    """Hub id of the published weights."""
    OTHERWISE = "name the hub id of a CLIP model, or a directory that it was saved to with its processor"

    def __init__(self, model: str | None = None, **options: Any) -> None:
        super().__init__(model or self.MODEL, **options)
        check_directory(self.model, NEEDS, self.OTHERWISE)
        self._tokenizer = tokenizer_of(self.model, self.OTHERWISE)
        self.clip = self._ready(network_of(CLIPModel, self.model, "a CLIP model", self.OTHERWISE))
        self._frame = self._framed()

    @classmethod
    def check(cls, model: str | None, *, precision: str = "float32", batch: int = 32, **options: Any) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        check_directory(model or cls.MODEL, NEEDS, cls.OTHERWISE)
        check_network(model or cls.MODEL, precision, batch)

    def _framed(self) -> Any:
        return Frame(self.model, self.OTHERWISE)

    def pixels(self, images_N: np.ndarray) -> Tensor:
        """Through the model's own image processor."""
        return self._frame.pixels(images_N)

    def resized(self, images_NCHW: Tensor) -> Tensor:
        """The same with gradients."""
        return self._frame.resized(images_NCHW)

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """Features (N, D) of length 1, float32."""
        found = self.clip.get_image_features(pixel_values=pixels_NCHW.to(self.dtype)).pooler_output
        return F.normalize(found.float(), dim=-1)

    def text_features(self, texts_N: Sequence[str]) -> Tensor:
        """Features (N, D) of length 1, float32; what a text encoder cannot take is cut off."""
        tokens = self._tokenizer(
            list(texts_N),
            padding=True,
            truncation=True,
            max_length=self.clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        found = self.clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(found.pooler_output.float(), dim=-1)

    def cosines(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """Of pictures with their prompts (N,), float32."""
        return (self.image_features(pixels_NCHW) * self.text_features(prompts_N)).sum(-1)


class ClipScore(ClipReward):
    """100 times the cosine, about 15 to 40: as torchmetrics and most papers print it (which cut it off at 0).

    Source: Hessel et al., "CLIPScore", 2021, whose own number is 2.5 times the cosine with ViT-B/32 and the words "A photo depicts"
    before the prompt.
    """

    MODEL = "openai/clip-vit-large-patch14"

    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """100 times the cosine."""
        return 100 * self.cosines(pixels_NCHW, prompts_N)
