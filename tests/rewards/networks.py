"""Tiny random networks in the form in which reward models are published, and what they compute, written down independently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

TOKENIZER = Path(__file__).resolve().parents[2] / "raysuite" / "worlds" / "scenes" / "model" / "tokenizer"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pictures."""


def save_clip(directory: Path, *, side: int = 32, seed: int = 0) -> Path:
    """A `CLIPModel` with its processor, as on a hub."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPConfig(
            text_config={**shape, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
            vision_config={**shape, "image_size": side, "patch_size": 8},
            projection_dim=12,
            initializer_factor=4.0,
        )
        CLIPModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(directory)
    return directory


def framed(image: np.ndarray, side: int, *, nearest: bool = False) -> Tensor:
    """CLIP's preprocessing of one picture by PIL alone: shortest side, bicubic; centre crop, which begins at the pixel before, or at
    the nearest; normalised. (3, side, side).
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((more - side) / 2) if nearest else (more - side) // 2 for more in size)
    cropped = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return torch.from_numpy((cropped - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).permute(2, 0, 1)


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights: matrices that keep a signal's size, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and name.endswith("weight")
        state[name] = 1 + 0.1 * drawn if norm else drawn * (0.3 if len(shape) == 1 else 1 / math.sqrt(shape[-1]))
    return state


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: Mapping[str, Tensor], name: str, x: Tensor, epsilon: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    """Attention of (L, D) to (M, D); `allowed` (L, M) where one may look."""
    split = [x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(1, 2) / math.sqrt(q.shape[-1] // heads)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ split[2]).transpose(0, 1).reshape(len(q), -1)


# open_clip, as HPS publishes it

WIDTH, DEPTH, PATCH, SIDE, LENGTH = 64, 2, 8, 32, 16
TOKENS = (SIDE // PATCH) ** 2 + 1


def open_clip_state(words: int) -> dict[str, Tensor]:
    """A checkpoint of open_clip, tiny."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (1,),
        "positional_embedding": (LENGTH, WIDTH),
        "text_projection": (WIDTH, 12),
        "token_embedding.weight": (words, WIDTH),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (TOKENS, WIDTH),
        "visual.proj": (WIDTH, 12),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
    }
    for name in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for tower in ("transformer", "visual.transformer"):
        for layer in range(DEPTH):
            at = f"{tower}.resblocks.{layer}"
            shapes |= {f"{at}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{at}.attn.in_proj_bias": (3 * WIDTH,)}
            for name, out, into in (
                ("attn.out_proj", WIDTH, WIDTH),
                ("mlp.c_fc", 96, WIDTH),
                ("mlp.c_proj", WIDTH, 96),
            ):
                shapes |= {f"{at}.{name}.weight": (out, into), f"{at}.{name}.bias": (out,)}
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{at}.{name}.weight": (WIDTH,), f"{at}.{name}.bias": (WIDTH,)}
    return {**random_state(shapes), "logit_scale": torch.tensor(4.6)}


def open_clip_cosine(state: Mapping[str, Tensor], pixels_CHW: Tensor, tokens: list[int]) -> float:
    """What open_clip computes: pre-norm transformers with exact GELU, the text read at its last token."""

    def tower(name: str, x: Tensor, allowed: Tensor | None) -> Tensor:
        for layer in range(DEPTH):
            at = f"{name}.resblocks.{layer}"
            projected = normed(state, f"{at}.ln_1", x) @ state[f"{at}.attn.in_proj_weight"].T
            q, k, v = (projected + state[f"{at}.attn.in_proj_bias"]).chunk(3, dim=-1)
            x = x + linear(state, f"{at}.attn.out_proj", attended(q, k, v, WIDTH // 64, allowed))
            hidden = F.gelu(linear(state, f"{at}.mlp.c_fc", normed(state, f"{at}.ln_2", x)))
            x = x + linear(state, f"{at}.mlp.c_proj", hidden)
        return x

    patches = F.conv2d(pixels_CHW[None], state["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    seen = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    seen = tower("visual.transformer", normed(state, "visual.ln_pre", seen), None)
    image = normed(state, "visual.ln_post", seen[0]) @ state["visual.proj"]
    read = state["token_embedding.weight"][tokens] + state["positional_embedding"][: len(tokens)]
    read = tower("transformer", read, torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril())
    text = normed(state, "ln_final", read[-1]) @ state["text_projection"]
    return float(F.cosine_similarity(image, text, dim=0))


# ImageReward

READ, LAYERS = 64, 2


def image_reward_state(words: int) -> dict[str, Tensor]:
    """A checkpoint of ImageReward, tiny."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, WIDTH),
        "blip.visual_encoder.pos_embed": (1, TOKENS, WIDTH),
        "blip.visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (words, READ),
        "blip.text_encoder.embeddings.position_embeddings.weight": (48, READ),
    }

    def add(name: str, out: int, into: int | None = None) -> None:
        shapes[f"{name}.weight"] = (out,) if into is None else (out, into)
        shapes[f"{name}.bias"] = (out,)

    add("blip.visual_encoder.norm", WIDTH)
    add("blip.text_encoder.embeddings.LayerNorm", READ)
    for layer in range(LAYERS):
        at = f"blip.visual_encoder.blocks.{layer}"
        for name in ("norm1", "norm2"):
            add(f"{at}.{name}", WIDTH)
        for name, out, into in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 96, WIDTH),
            ("mlp.fc2", WIDTH, 96),
        ):
            add(f"{at}.{name}", out, into)
        at = f"blip.text_encoder.encoder.layer.{layer}"
        for kind, into in (("attention", READ), ("crossattention", WIDTH)):
            for name, width in (("query", READ), ("key", into), ("value", into)):
                add(f"{at}.{kind}.self.{name}", READ, width)
            add(f"{at}.{kind}.output.dense", READ, READ)
            add(f"{at}.{kind}.output.LayerNorm", READ)
        add(f"{at}.intermediate.dense", 96, READ)
        add(f"{at}.output.dense", READ, 96)
        add(f"{at}.output.LayerNorm", READ)
    for index, (out, into) in {0: (1024, READ), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}.items():
        add(f"mlp.layers.{index}", out, into)
    return {
        **random_state(shapes, seed=1),
        "blip.text_encoder.embeddings.position_ids": torch.arange(48)[None],
        "blip.vision_proj.weight": torch.zeros(4, WIDTH),
        "blip.text_proj.weight": torch.zeros(4, READ),
    }


def image_reward_score(state: Mapping[str, Tensor], pixels_CHW: Tensor, tokens: list[int], mask: list[int]) -> float:
    """What ImageReward computes: a pre-norm ViT, a post-norm BERT whose layers also look at the picture, five linear layers."""
    at = "blip.visual_encoder"
    patches = F.conv2d(
        pixels_CHW[None], state[f"{at}.patch_embed.proj.weight"], state[f"{at}.patch_embed.proj.bias"], stride=PATCH
    )
    x = torch.cat([state[f"{at}.cls_token"][0], patches[0].flatten(1).T]) + state[f"{at}.pos_embed"][0]
    for layer in range(LAYERS):
        block = f"{at}.blocks.{layer}"
        q, k, v = linear(state, f"{block}.attn.qkv", normed(state, f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(state, f"{block}.attn.proj", attended(q, k, v, WIDTH // 64))
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", normed(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", hidden)
    seen = normed(state, f"{at}.norm", x, 1e-6)
    at = "blip.text_encoder"
    words = state[f"{at}.embeddings.word_embeddings.weight"][tokens]
    places = state[f"{at}.embeddings.position_embeddings.weight"][: len(tokens)]
    h = normed(state, f"{at}.embeddings.LayerNorm", words + places, 1e-12)
    allowed = torch.tensor(mask, dtype=torch.bool)[None].expand(len(tokens), -1)
    for layer in range(LAYERS):
        block = f"{at}.encoder.layer.{layer}"
        for kind, to, visible in (("attention", None, allowed), ("crossattention", seen, None)):
            source = h if to is None else to
            q = linear(state, f"{block}.{kind}.self.query", h)
            k, v = (linear(state, f"{block}.{kind}.self.{name}", source) for name in ("key", "value"))
            mixed = linear(state, f"{block}.{kind}.output.dense", attended(q, k, v, READ // 64, visible))
            h = normed(state, f"{block}.{kind}.output.LayerNorm", h + mixed, 1e-12)
        hidden = F.gelu(linear(state, f"{block}.intermediate.dense", h))
        h = normed(state, f"{block}.output.LayerNorm", h + linear(state, f"{block}.output.dense", hidden), 1e-12)
    answer = h[0]
    for index in (0, 2, 4, 6, 7):
        answer = linear(state, f"mlp.layers.{index}", answer)
    return float((answer - 0.16717362830052426) / 1.0333394966054072)


def aesthetic_state(width: int) -> dict[str, Tensor]:
    """A checkpoint of the aesthetic head for embeddings of this width."""
    layers = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    shapes: dict[str, Any] = {f"layers.{i}.weight": shape for i, shape in layers.items()}
    return random_state(shapes | {f"layers.{i}.bias": (shape[0],) for i, shape in layers.items()}, seed=2)


# Qwen's vision-language models

SPECIAL = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
"""Their tokens besides letters; a tiny tokenizer has bytes for words."""


def save_qwen(directory: Path, kind: str = "qwen2_vl", *, seed: int = 0) -> Path:
    """A tiny random Qwen-VL with its tokenizer and image processor, as on a hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        PreTrainedTokenizerFast,
        Qwen2VLImageProcessorPil,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token=SPECIAL[0], pad_token=SPECIAL[1],
        additional_special_tokens=[*SPECIAL[2:], "<|video_pad|>"],
    )  # fmt: skip
    tokenizer.save_pretrained(directory)
    patch = 16 if kind == "qwen3_vl" else 14
    sizes = {"min_pixels": (2 * patch) ** 2, "max_pixels": (4 * patch) ** 2}
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
    Qwen2VLImageProcessorPil(patch_size=patch, **sizes, **colours).save_pretrained(directory)
    eyes = {"depth": 2, "num_heads": 2, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen2_vl":
        eyes |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        eyes |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
        eyes |= (
            {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
            if kind == "qwen3_vl"
            else {"fullatt_block_indexes": [1], "window_size": 56}
        )
    words = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096, "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
    }  # fmt: skip
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")
        )
    }  # fmt: skip
    config = AutoConfig.for_model(kind, text_config=words, vision_config=eyes, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    return directory


def qwen_pixels(
    image: np.ndarray, patch: int, least: int, most: int, middle: Any, spread: Any
) -> tuple[Tensor, int, int]:
    """A picture as patches of two equal frames, four neighbours after another, by PIL and loops; with rows and columns of patches."""
    height, width = image.shape[:2]
    step = 2 * patch
    high, wide = max(step, round(height / step) * step), max(step, round(width / step) * step)
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high, wide = (max(step, math.floor(side / shrink / step) * step) for side in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high, wide = (math.ceil(side * grow / step) * step for side in (height, width))
    x = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    x = ((x - np.array(middle, np.float32)) / np.array(spread, np.float32)).transpose(2, 0, 1)
    found = []
    for top in range(0, high, step):
        for left in range(0, wide, step):
            for y in (top, top + patch):
                for z in (left, left + patch):
                    frame = x[:, y : y + patch, z : z + patch]
                    found.append(np.stack([frame, frame], axis=1).ravel())
    return torch.from_numpy(np.stack(found)), high // patch, wide // patch


def qwen_tokens(before: str, after: str, places: int) -> list[int]:
    """A conversation in the tiny tokenizer, by hand: bytes in the order of the byte-level alphabet, then special tokens."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    sign = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    of = {byte: letters.index(letter) for byte, letter in sign.items()}
    special = {token: 256 + index for index, token in enumerate(SPECIAL)}
    found: list[int] = []
    text = before + SPECIAL[5] * places + after
    while text:
        token = next((token for token in SPECIAL if text.startswith(token)), None)
        found += [special[token]] if token else [of[byte] for byte in text[0].encode()]
        text = text[len(token) if token else 1 :]
    return found
