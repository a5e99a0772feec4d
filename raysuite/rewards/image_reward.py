"""ImageReward: what people preferred among pictures of one prompt, by a BLIP that reads prompt and picture together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from raysuite import places
from raysuite.errors import UserError
from raysuite.rewards.network import Frame, NetworkReward, check_converted, check_network, load, tokenizer_of

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the network's answers on its training pictures: published scores are standardised by them."""
WORDS = 35
"""Tokens of a prompt; the rest is cut off."""
NEEDS = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")


class ImageReward(NetworkReward):
    """Standardised, about -2.3 to 2: 0 is an average picture of its training data.

    Source: Xu et al., "ImageReward", 2023, and its package. Checked against the package's own code on random weights (texts and
    pictures: difference 0); not run on the published weights.

    Args:
        model: directory made by `raysuite rewards convert image_reward`.
        options: as of `NetworkReward`.
    """

    OTHERWISE = (
        "download ImageReward.pt of THUDM/ImageReward, and name the directory that "
        "`raysuite rewards convert image_reward FILE --out DIR` makes of it"
    )

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.check(model)
        super().__init__(str(model), **options)
        directory = places.whole(self.model)
        config = load(
            lambda: json.loads((directory / "config.json").read_text()), "a configuration", self.model, self.OTHERWISE
        )
        network = Network(config["vision"], config["text"])
        load(
            lambda: network.load_state_dict(load_file(directory / "model.safetensors")),
            "weights of ImageReward",
            self.model,
            self.OTHERWISE,
        )
        self._network = self._ready(network)
        self._tokenizer = tokenizer_of(self.model, self.OTHERWISE)
        self._frame = Frame(self.model, self.OTHERWISE, nearest=True)

    @classmethod
    def check(cls, model: str | None, *, precision: str = "float32", batch: int = 32, **options: Any) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        check_converted("image_reward", model, NEEDS, cls.OTHERWISE)
        check_network(str(model), precision, batch)

    def pixels(self, images_N: np.ndarray) -> Tensor:
        """Shortest side to 224, bicubic, centre cropped."""
        return self._frame.pixels(images_N)

    def resized(self, images_NCHW: Tensor) -> Tensor:
        """The same with gradients."""
        return self._frame.resized(images_NCHW)

    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """Standardised scores."""
        tokens = self._tokenizer(
            list(prompts_N), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
        ).to(self.device)
        answers = self._network(pixels_NCHW.to(self.dtype), tokens.input_ids, tokens.attention_mask)
        return (answers.float() - MEAN) / STD


class Network(nn.Module):
    """BLIP's picture encoder, its text encoder that looks at the picture, and five linear layers on the first token."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        seen = BlipVisionConfig(**vision, hidden_act="gelu", layer_norm_eps=1e-6)
        read = BlipTextConfig(
            **text,
            encoder_hidden_size=seen.hidden_size,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            is_decoder=True,  # what builds the attention to the picture
        )
        self.vision, self.text = BlipVisionModel(seen), BlipTextModel(read, add_pooling_layer=False)
        widths = (read.hidden_size, 1024, 128, 64, 16, 1)
        layers: list[nn.Module] = []
        for index, (width, next_width) in enumerate(pairwise(widths)):
            # the published file counts its dropouts
            layers += [nn.Linear(width, next_width), *([nn.Identity()] if index < 3 else [])]
        self.mlp = nn.ModuleDict({"layers": nn.Sequential(*layers)})

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Answers (N,)."""
        seen = self.vision(pixel_values=pixels_NCHW).last_hidden_state
        everywhere = torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=tokens_NL,
            attention_mask=mask_NL,
            encoder_hidden_states=seen,
            encoder_attention_mask=everywhere,
            is_decoder=False,
        ).last_hidden_state
        return self.mlp["layers"](read[:, 0]).squeeze(-1)


_RENAMED = (
    (r"^blip\.", ""),
    (r"^text_encoder\.", "text."),
    (r"^visual_encoder\.", "vision."),
    (r"^vision\.patch_embed\.proj", "vision.embeddings.patch_embedding"),
    (r"^vision\.pos_embed", "vision.embeddings.position_embedding"),
    (r"^vision\.cls_token", "vision.embeddings.class_embedding"),
    (r"^vision\.blocks\.", "vision.encoder.layers."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^(vision\..*)attn\.proj", r"\1self_attn.projection"),
    (r"^(vision\..*)attn\.qkv", r"\1self_attn.qkv"),
    (r"^(vision\..*)norm(\d)\.", r"\1layer_norm\2."),
)


def convert(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the published file under the names of `Network`.

    Raises:
        UserError: it is another file.
    """
    if "mlp.layers.0.weight" not in state or "blip.visual_encoder.cls_token" not in state:
        raise UserError(
            f"expected the weights of ImageReward (blip.visual_encoder.cls_token and so on), got {', '.join(list(state)[:3])}, "
            "...: name ImageReward.pt"
        )
    found = {}
    for name, value in state.items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        if not name.endswith("position_ids") and not name.startswith(("vision_proj", "text_proj")):
            found[name] = value.to(torch.float32).contiguous()
    return found


def configuration(state: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of both encoders, from the weights; heads of 64."""
    patch = state["blip.visual_encoder.patch_embed.proj.weight"]
    words = state["blip.text_encoder.embeddings.word_embeddings.weight"]
    grid = round((state["blip.visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)

    def layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    return {
        "vision": {
            "hidden_size": patch.shape[0],
            "intermediate_size": state["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": layers("blip.visual_encoder.blocks."),
            "num_attention_heads": max(1, patch.shape[0] // 64),
            "image_size": grid * patch.shape[-1],
            "patch_size": patch.shape[-1],
        },
        "text": {
            "vocab_size": words.shape[0],
            "hidden_size": words.shape[1],
            "intermediate_size": state["blip.text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": layers("blip.text_encoder.encoder.layer."),
            "num_attention_heads": max(1, words.shape[1] // 64),
            "max_position_embeddings": state["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0],
        },
    }
