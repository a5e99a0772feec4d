"""Pipelines of released models' sizes, as directories of configurations: networks and VAEs have no weights there.

The numbers of networks, VAEs and schedulers are those of the released configurations, which reproduce their counts of parameters
(tests/jobs/test_bench_gpu.py). Text encoders are of the real width and one small layer, with random weights: text states have the
released models' shapes, and their encoders' bytes are left out, as with cluster.encode_once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as df
import torch
import transformers as tf
from tokenizers.pre_tokenizers import ByteLevel

START, END = "<|startoftext|>", "<|endoftext|>"
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD3_VAE = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
TINY_VAE = {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 8}


@dataclass(frozen=True)
class Released:
    """One model."""

    pipeline: str
    network: tuple[str, Mapping[str, Any]]
    """Class and configuration."""
    tiny: Mapping[str, Any]
    """What differs in a network of the same kind for a dry run."""
    vae: Mapping[str, Any]
    scheduler: tuple[str, Mapping[str, Any]]
    encoders: Mapping[str, tuple[str, int]]
    """Kind and width by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a run, where they depart from the benchmark's."""


MODELS: Mapping[str, Released] = {
    "SD 1.5": Released(
        pipeline="StableDiffusionPipeline",
        network=(
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
                "layers_per_block": 2,
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
        ),
        tiny={
            "block_out_channels": [8, 16, 16, 16],
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "layers_per_block": 1,
        },
        vae={**VAE, "latent_channels": 4, "scaling_factor": 0.18215, "sample_size": 512},
        scheduler=("DDIMScheduler", {**NOISE, "set_alpha_to_one": False}),
        encoders={"text_encoder": ("clip", 768)},
        settings={"sampler": {"noise": {"kind": "ddim", "level": 1.0}}, "parameters": {"checkpointing": False}},
    ),
    "SD3.5-M": Released(
        pipeline="StableDiffusion3Pipeline",
        network=(
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "qk_norm": "rms_norm",
                "dual_attention_layers": list(range(13)),
            },
        ),
        tiny={
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "dual_attention_layers": [0],
        },
        vae={**VAE, **SD3_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024},
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        encoders={
            "text_encoder": ("clip_projected", 768),
            "text_encoder_2": ("clip_projected", 1280),
            "text_encoder_3": ("t5", 4096),
        },
    ),
    "SDXL": Released(
        pipeline="StableDiffusionXLPipeline",
        network=(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "layers_per_block": 2,
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        tiny={
            "block_out_channels": [8, 16, 16],
            "norm_num_groups": 4,
            "attention_head_dim": [1, 2, 2],
            "transformer_layers_per_block": [1, 1, 1],
            "layers_per_block": 1,
        },
        vae={**VAE, "latent_channels": 4, "scaling_factor": 0.13025, "sample_size": 1024},
        scheduler=("EulerDiscreteScheduler", {n: v for n, v in NOISE.items() if n != "clip_sample"}),
        encoders={"text_encoder": ("clip", 768), "text_encoder_2": ("clip_projected", 1280)},
        settings={"sampler": {"noise": {"kind": "ddim", "level": 1.0}}},
    ),
    "FLUX.1-dev": Released(
        pipeline="FluxPipeline",
        network=(
            "FluxTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
                "axes_dims_rope": [16, 56, 56],
            },
        ),
        tiny={
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "axes_dims_rope": [4, 6, 6],
        },
        vae={**VAE, **SD3_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024},
        scheduler=(
            "FlowMatchEulerDiscreteScheduler",
            {
                "shift": 3.0,
                "use_dynamic_shifting": True,
                "base_image_seq_len": 256,
                "max_image_seq_len": 4096,
                "base_shift": 0.5,
                "max_shift": 1.15,
            },
        ),
        encoders={"text_encoder": ("clip", 768), "text_encoder_2": ("t5", 4096)},
        # four of its steps are learned from, of fewer pictures: it has thirty times the arithmetic of SD 1.5
        settings={
            "sampler": {"embedded_guidance": 3.5, "window": {"size": 4}},
            "rollouts": {"samples": 4},
            "learn": {"microbatch": 4},
        },
    ),
}


def write(model: Released, directory: Path, *, tiny: bool = False) -> None:
    """Write a pipeline's directory: configurations, tokenizers, encoders.

    Args:
        model: which.
        directory: new or empty.
        tiny: a network and a VAE of a few thousand weights, for a dry run.
    """
    components: dict[str, Any] = {}
    for name, (kind, width) in model.encoders.items():
        components[name], components[name.replace("text_encoder", "tokenizer")] = ENCODERS[kind](width)
    cls, config = model.network
    part = "unet" if cls.startswith("UNet") else "transformer"
    with torch.device("meta"):
        components[part] = getattr(df, cls)(**{**config, **(model.tiny if tiny else {})})
        components["vae"] = df.AutoencoderKL(**{**model.vae, **(TINY_VAE if tiny else {})})
    scheduler, options = model.scheduler
    components["scheduler"] = getattr(df, scheduler)(**options)
    if model.pipeline == "StableDiffusionPipeline":
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(df, model.pipeline)(**components)
    pipeline.save_config(directory)
    for name, component in components.items():
        if name in (part, "vae"):
            component.save_config(directory / name)
        elif hasattr(component, "save_pretrained"):
            component.save_pretrained(directory / name)


def _clip(width: int, *, projected: bool = False) -> tuple[Any, Any]:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    config = tf.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=8,
        projection_dim=width,
        bos_token_id=tokens.index(START),
        eos_token_id=tokens.index(END),
    )
    numbers = {token: number for number, token in enumerate(tokens)}
    made = (tf.CLIPTextModelWithProjection if projected else tf.CLIPTextModel)(config)
    return made, tf.CLIPTokenizer(vocab=numbers, merges=[], model_max_length=77)


def _t5(width: int) -> tuple[Any, Any]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    config = tf.T5Config(vocab_size=len(pieces), d_model=width, d_kv=64, d_ff=64, num_layers=1, num_heads=1)
    tokenizer = tf.T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=512)
    return tf.T5EncoderModel(config), tokenizer


ENCODERS: Mapping[str, Callable[[int], tuple[Any, Any]]] = {
    "clip": _clip,
    "clip_projected": lambda width: _clip(width, projected=True),
    "t5": _t5,
}
