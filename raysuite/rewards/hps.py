"""Human Preference Score, version 2: what people preferred on HPDv2."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raysuite.errors import UserError
from raysuite.rewards.clip import NEEDS, ClipReward
from raysuite.rewards.network import check_converted

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class HpsV2(ClipReward):
    """The cosine, about 0.15 to 0.35; tables print 100 times that, too (27.9).

    Versions 2.0 and 2.1 are two sets of weights of CLIP ViT-H/14, whose scores do not compare. The longest side of a picture is
    resized, with antialiasing, and the rest filled with black, before normalisation: torchvision's rule for tensors since its
    version 0.17. With older ones the published package did not antialias.

    Source: Wu et al., "Human Preference Score v2", 2023, and the package hpsv2.

    Args:
        model: directory made by `raysuite rewards convert hps_v2`.
        options: as of `NetworkReward`.
    """

    OTHERWISE = (
        "download HPS_v2_compressed.pt or HPS_v2.1_compressed.pt of xswu/HPSv2, and name the directory that "
        "`raysuite rewards convert hps_v2 FILE --out DIR` makes of it"
    )

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.check(model)
        super().__init__(model, **options)

    @classmethod
    def check(cls, model: str | None, **options: Any) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        check_converted("hps_v2", model, NEEDS, cls.OTHERWISE)
        super().check(model, **options)

    def _framed(self) -> Padded:
        return Padded(self.clip.config.vision_config.image_size)

    def scores(self, pixels_NCHW: Tensor, prompts_N: Sequence[str]) -> Tensor:
        """Cosines, with prompts that are mended as open_clip's tokenizer mends them: quotes straight, entities as characters."""
        mended = [html.unescape(html.unescape(ftfy.fix_text(prompt))).strip() for prompt in prompts_N]
        return self.cosines(pixels_NCHW, mended)


class Padded:
    """Longest side resized, the rest black, then normalised: on tensors, so that it is the same with and without gradients."""

    def __init__(self, side: int) -> None:
        self.side = side

    def pixels(self, images_N: np.ndarray) -> Tensor:
        """Pictures uint8 (N, H, W, 3) as input (N, 3, side, side)."""
        return self.resized(torch.from_numpy(images_N.copy()).permute(0, 3, 1, 2).float() / 255)

    def resized(self, images_NCHW: Tensor) -> Tensor:
        """The same of pictures in [0, 1]."""
        height, width = images_NCHW.shape[2:]
        scale = self.side / max(height, width)
        if scale != 1:
            size = (round(height * scale), round(width * scale))
            images_NCHW = F.interpolate(images_NCHW, size, mode="bicubic", antialias=True, align_corners=False)
            down, right = self.side - size[0], self.side - size[1]
            images_NCHW = F.pad(images_NCHW, (right // 2, right - right // 2, down // 2, down - down // 2))
        mean, std = (torch.tensor(numbers).view(3, 1, 1).to(images_NCHW) for numbers in (MEAN, STD))
        return (images_NCHW - mean) / std


def convert(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of an open_clip checkpoint under the names of transformers' `CLIPModel`.

    Raises:
        UserError: it is another file.
    """
    source = state.get("state_dict", state)
    if "visual.conv1.weight" not in source or "ln_final.weight" not in source:
        raise UserError(
            f"expected the weights of an open_clip model (visual.conv1.weight and so on), got {', '.join(list(source)[:3])}, "
            "...: name HPS_v2_compressed.pt or HPS_v2.1_compressed.pt"
        )
    found = {
        "logit_scale": source["logit_scale"],
        "text_projection.weight": source["text_projection"].t(),
        "visual_projection.weight": source["visual.proj"].t(),
        "text_model.embeddings.token_embedding.weight": source["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": source["positional_embedding"],
        "vision_model.embeddings.class_embedding": source["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": source["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": source["visual.positional_embedding"],
    }
    for part in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{part}"] = source[f"ln_final.{part}"]
        found[f"vision_model.pre_layrnorm.{part}"] = source[f"visual.ln_pre.{part}"]  # transformers' own spelling
        found[f"vision_model.post_layernorm.{part}"] = source[f"visual.ln_post.{part}"]
    for tower, name in (("transformer.", "text_model."), ("visual.transformer.", "vision_model.")):
        for layer in range(layers_of(source, tower)):
            old, new = f"{tower}resblocks.{layer}.", f"{name}encoder.layers.{layer}."
            for part in ("weight", "bias"):
                for letter, third in zip("qkv", source[f"{old}attn.in_proj_{part}"].chunk(3), strict=True):
                    found[f"{new}self_attn.{letter}_proj.{part}"] = third
                for theirs, ours in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    found[f"{new}{ours}.{part}"] = source[f"{old}{theirs}.{part}"]
    return {name: value.to(torch.float32).contiguous() for name, value in found.items()}


def layers_of(source: Mapping[str, Any], tower: str) -> int:
    """How many layers a tower of an open_clip checkpoint has."""
    return len({name.split(".")[tower.count(".") + 1] for name in source if name.startswith(f"{tower}resblocks.")})


def configuration(source: Mapping[str, Any]) -> dict[str, Any]:
    """What `CLIPConfig` must say of an open_clip checkpoint: sizes from its weights, heads of 64 (80 in ViT-H's eyes)."""
    source = source.get("state_dict", source)
    text, (vision, _, patch, _) = source["token_embedding.weight"].shape[1], source["visual.conv1.weight"].shape
    grid = round((source["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "projection_dim": source["text_projection"].shape[1],
        "text_config": {
            "hidden_size": text,
            "intermediate_size": source["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": layers_of(source, "transformer."),
            "num_attention_heads": max(1, text // 64),
            "max_position_embeddings": source["positional_embedding"].shape[0],
            "vocab_size": source["token_embedding.weight"].shape[0],
            "hidden_act": "gelu",
        },
        "vision_config": {
            "hidden_size": vision,
            "intermediate_size": source["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": layers_of(source, "visual.transformer."),
            "num_attention_heads": max(1, vision // (80 if vision == 1280 else 64)),
            "image_size": grid * patch,
            "patch_size": patch,
            "hidden_act": "gelu",
        },
    }
