"""Tiny random pipelines of every class that raysuite promises, built offline: real code, real schedulers, toy sizes.

A random network hardly hears its prompt, and a test that compares pictures would then not see the prompt lost. So tokenizers
know the words of `CORPUS` (and the prefixes that pipelines cut off again), and `loud` scales the layers that let text in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers as df
import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    f"a {kind} of a {colour} {thing}"
    for kind in ("photo", "drawing", "emoji", "painting")
    for colour in ("red", "green", "blue", "yellow", "small", "large")
    for thing in ("cat", "dog", "car", "circle", "square", "apple", "house")
]
QWEN_PREFIX = (
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:\nuser\n"
)
"""Qwen-Image and Krea 2 cut their template's first 34 tokens off: a tokenizer that does not know it would lose the prompt."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """A module with weights of its own seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def loud(network: Any, *layers: str, factor: float = 10.0) -> Any:
    """The network with some layers scaled."""
    for name in layers:
        network.get_submodule(name).weight.data.mul_(factor)
    return network


# tokenizers


def _learned(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]


@cache
def clip_tokenizer() -> Any:
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"initial_alphabet": letters, "end_of_word_suffix": "</w>", "show_progress": False}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, **options))
    learned = _learned(tokenizer)
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    tokens += [letter + "</w>" for letter in letters if letter + "</w>" not in learned["vocab"]] + [bos, eos]
    return tf.CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=77,
    )


@cache
def t5_tokenizer() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=[*map(chr, range(33, 127)), "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = [tuple(piece) for piece in _learned(tokenizer)["vocab"]]
    return tf.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=77)


@cache
def gemma_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    learned = _learned(tokenizer)
    merges = [tuple(pair) for pair in learned["merges"]]
    return tf.GemmaTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=300)


@cache
def qwen_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(CORPUS + [QWEN_PREFIX] * 50, trainer)
    learned = _learned(tokenizer)
    found = tf.Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=512,
        padding_side="right",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    found.chat_template = CHAT
    return found


def plain_tokenizer(*, start: bool = False, **options: Any) -> Any:
    """Qwen's vocabulary under the common class; with `start` no prompt is of no tokens, as GLM's tokenizer has it."""
    backend = Tokenizer.from_str(qwen_tokenizer()._tokenizer.to_str())
    if start:
        first = ("<|im_start|>", backend.token_to_id("<|im_start|>"))
        backend.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[first])
    ends = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "model_max_length": 512}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **ends, **options)


# text encoders: two layers of width 32 and 16 a head


def _language(tokenizer: Any, **options: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **options,
    }


def clip_text(*, projected: bool = False, seed: int = 0) -> Any:
    tokenizer = clip_tokenizer()
    config = tf.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: (tf.CLIPTextModelWithProjection if projected else tf.CLIPTextModel)(config), seed)


def t5_text(width: int = 32, *, multilingual: bool = False) -> Any:
    options = {"vocab_size": len(t5_tokenizer()), "d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2}
    options |= {"num_heads": 4, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if multilingual:
        return seeded(lambda: tf.UMT5EncoderModel(tf.UMT5Config(**options)))
    return seeded(lambda: tf.T5EncoderModel(tf.T5Config(feed_forward_proj="gated-gelu", **options)))


def gemma_text(layers: int = 2) -> Any:
    tokenizer = gemma_tokenizer()
    options = _language(tokenizer, num_hidden_layers=layers, bos_token_id=tokenizer.bos_token_id)
    return seeded(lambda: tf.Gemma2Model(tf.Gemma2Config(**options)))


def qwen_text(kind: Any = tf.Qwen3Model, layers: int = 2) -> Any:
    options = _language(qwen_tokenizer(), num_hidden_layers=layers, max_position_embeddings=1024)
    return seeded(lambda: kind(tf.Qwen3Config(**options)))


def qwen_sight(kind: Any, config: Any, layers: int = 2, **vision: Any) -> Any:
    """A model that sees as well, as Qwen-Image and Krea 2 use one to read."""
    turns = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}
    text = _language(qwen_tokenizer(), num_hidden_layers=layers, max_position_embeddings=1024, rope_parameters=turns)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    return seeded(lambda: kind(config(text_config=text, vision_config={**size, **vision})))


# decoders of latents


def vae(latent: int = 4, *, blocks: int = 3, kind: Any = df.AutoencoderKL, **options: Any) -> Any:
    """Three blocks make 4 pixels of one latent, four make 8."""
    return seeded(
        lambda: kind(
            latent_channels=latent,
            block_out_channels=(8, *(16,) * (blocks - 1)),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            norm_num_groups=8,
            layers_per_block=1,
            sample_size=32,
            **options,
        )
    )


def flux_vae(latent: int = 16) -> Any:
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    return vae(latent, scaling_factor=0.3611, shift_factor=0.1159, **bare)


def flux2_vae() -> Any:
    made = vae(kind=df.AutoencoderKLFlux2)
    with torch.random.fork_rng(devices=[]):  # statistics as of a trained model: else one that is forgotten goes unseen
        torch.manual_seed(1)
        made.bn.running_mean.uniform_(-0.3, 0.3)
        made.bn.running_var.uniform_(0.5, 1.5)
    return made


def video_vae(kind: Any, base: int, growth: tuple[int, ...]) -> Any:
    """Latents with an axis of time, and a mean and spread of each channel."""
    return seeded(
        lambda: kind(
            base_dim=base,
            z_dim=4,
            dim_mult=list(growth),
            num_res_blocks=1,
            temperal_downsample=[False, *(True,) * (len(growth) - 2)],
            latents_mean=[0.0, 0.1, 0.2, 0.3],
            latents_std=[1.0, 1.5, 2.0, 2.5],
        )
    )


def flow(**options: Any) -> Any:
    return df.FlowMatchEulerDiscreteScheduler(**options)


SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
QWEN_FLOW = {"base_shift": 0.5, "use_dynamic_shifting": True}


# pipelines


def _unet(**options: Any) -> Any:
    return seeded(
        lambda: df.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=(1, 2),
            **options,
        )
    )


def sd15() -> Any:
    first, last = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return df.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=_unet(cross_attention_dim=32, down_block_types=first, up_block_types=last),
        scheduler=df.DDIMScheduler(**SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    network = _unet(
        cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return df.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True, seed=1),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=df.EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading"),
    )


def sd3() -> Any:
    network = seeded(
        lambda: df.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
        )
    )
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    return df.StableDiffusion3Pipeline(
        transformer=network,
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, **bare),
        text_encoder=clip_text(projected=True),
        text_encoder_2=clip_text(projected=True, seed=1),
        text_encoder_3=t5_text(64),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        scheduler=flow(shift=3.0),
    )


def flux() -> Any:
    network = seeded(
        lambda: df.FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        )
    )
    return df.FluxPipeline(
        transformer=network,
        vae=flux_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
    )


def chroma() -> Any:
    network = seeded(
        lambda: df.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        )
    )
    return df.ChromaPipeline(
        transformer=network,
        vae=flux_vae(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
        scheduler=flow(shift=1.0),
    )


def _flux2(embedded: bool) -> Any:
    return seeded(
        lambda: df.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=96,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=embedded,
        )
    )


def flux2_klein() -> Any:
    return df.Flux2KleinPipeline(
        transformer=_flux2(embedded=False),
        vae=flux2_vae(),
        text_encoder=qwen_text(tf.Qwen3ForCausalLM, layers=4),
        tokenizer=qwen_tokenizer(),
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        is_distilled=False,
    )


def flux2() -> Any:
    """Mistral 3 with a plain tokenizer in the processor's place: its template takes a list of parts."""
    tokenizer = plain_tokenizer(padding_side="left")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    )
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.Mistral3Config(
        text_config=tf.MistralConfig(**_language(tokenizer, num_hidden_layers=4)),
        vision_config=tf.PixtralVisionConfig(**vision, image_size=28, patch_size=14),
        image_token_index=1,
    )
    hearing = ("double_stream_modulation_img.linear", "double_stream_modulation_txt.linear")
    return df.Flux2Pipeline(
        transformer=loud(_flux2(embedded=True), *hearing),
        vae=flux2_vae(),
        text_encoder=seeded(lambda: tf.Mistral3ForConditionalGeneration(config)),
        tokenizer=tokenizer,
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
    )


def qwen_image() -> Any:
    network = seeded(
        lambda: df.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
    )
    config, reader = tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration
    table = {"max_shift": 0.9, "max_image_seq_len": 8192, "shift": 1.0, "shift_terminal": 0.02}  # as released
    return df.QwenImagePipeline(
        transformer=loud(network, "txt_in", *(f"transformer_blocks.{n}.img_mod.1" for n in range(2))),
        vae=video_vae(df.AutoencoderKLQwenImage, 4, (1, 2, 2)),
        text_encoder=qwen_sight(reader, config, depth=1, fullatt_block_indexes=[0]),
        tokenizer=qwen_tokenizer(),
        scheduler=flow(**QWEN_FLOW, **table),
    )


def krea2() -> Any:
    network = seeded(
        lambda: df.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            timestep_embed_dim=32,
            text_hidden_dim=32,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=64,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        )
    )
    vision = {"depth": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return df.Krea2Pipeline(
        transformer=loud(network, "txt_in.linear_2", *(f"transformer_blocks.{n}.attn.to_out.0" for n in range(2))),
        vae=video_vae(df.AutoencoderKLQwenImage, 4, (1, 2, 2)),
        text_encoder=qwen_sight(tf.Qwen3VLModel, tf.Qwen3VLConfig, layers=4, **vision),
        tokenizer=qwen_tokenizer(),
        text_encoder_select_layers=(1, 3),
        scheduler=flow(**QWEN_FLOW, max_shift=1.15, max_image_seq_len=6400),
    )


def z_image() -> Any:
    network = seeded(
        lambda: df.ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        )
    )
    for token in (network.x_pad_token, network.cap_pad_token):  # made without values
        torch.nn.init.constant_(token, 0.02)
    return df.ZImagePipeline(
        transformer=network,
        vae=flux_vae(),
        text_encoder=qwen_text(),
        tokenizer=qwen_tokenizer(),
        scheduler=flow(shift=3.0),
    )


def lumina2() -> Any:
    network = seeded(
        lambda: df.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 64, 64),
            cap_feat_dim=32,
        )
    )
    return df.Lumina2Pipeline(
        transformer=loud(network, *(f"layers.{n}.norm1.linear" for n in range(2))),
        vae=vae(blocks=4, scaling_factor=0.3611, shift_factor=0.1159),  # the pipeline knows no other than 8 to 1
        text_encoder=gemma_text(),
        tokenizer=gemma_tokenizer(),
        scheduler=flow(shift=6.0),
    )


def sana() -> Any:
    blocks = ("ResBlock", "EfficientViTBlock")
    network = seeded(
        lambda: df.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=32,
        )
    )
    decoder = seeded(
        lambda: df.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
    )
    table = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return df.SanaPipeline(
        transformer=network,
        vae=decoder,
        text_encoder=gemma_text(layers=1),
        tokenizer=gemma_tokenizer(),
        scheduler=df.DPMSolverMultistepScheduler(**table, solver_order=1),
    )


def pixart() -> Any:
    network = seeded(
        lambda: df.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
            caption_channels=32,
            use_additional_conditions=False,
        )
    )
    return df.PixArtSigmaPipeline(
        transformer=network,
        vae=vae(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
        scheduler=df.DPMSolverMultistepScheduler(solver_order=1),
    )


def cogview4() -> Any:
    network = seeded(
        lambda: df.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=32,
            sample_size=8,
        )
    )
    tokenizer = plain_tokenizer(start=True, padding_side="left")
    table = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    return df.CogView4Pipeline(
        transformer=loud(network, "patch_embed.text_proj"),
        vae=vae(),
        text_encoder=seeded(lambda: tf.GlmModel(tf.GlmConfig(**_language(tokenizer)))),
        tokenizer=tokenizer,
        scheduler=flow(**table, use_dynamic_shifting=True),
    )


def auraflow() -> Any:
    network = seeded(
        lambda: df.AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=64,
        )
    )
    hearing = ("joint_transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.norm1.linear")
    return df.AuraFlowPipeline(
        transformer=loud(network, *hearing, factor=30.0),
        vae=vae(),
        text_encoder=t5_text(multilingual=True),
        tokenizer=t5_tokenizer(),
        scheduler=flow(shift=1.73),
    )


def hidream() -> Any:
    tokenizer = plain_tokenizer()
    reader = tf.LlamaConfig(**_language(tokenizer, max_position_embeddings=512))
    network = seeded(
        lambda: df.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 32],
            text_emb_dim=64,
            num_routed_experts=2,
            num_activated_experts=2,  # all of them: a choice would make the output jump, and its finite differences with it
            axes_dims_rope=(8, 4, 4),
            max_resolution=(16, 16),
            llama_layers=(0, 1),
        )
    )
    experts = [name for name, _ in network.named_modules() if ".experts." in name and name.endswith("w2")]
    return df.HiDreamImagePipeline(
        transformer=loud(network, *experts, factor=30.0),
        vae=vae(shift_factor=0.0609),
        text_encoder=clip_text(projected=True),
        text_encoder_2=clip_text(projected=True, seed=1),
        text_encoder_3=t5_text(),
        text_encoder_4=seeded(lambda: tf.LlamaForCausalLM(reader)),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        tokenizer_4=tokenizer,
        scheduler=flow(shift=3.0),
    )


def wan() -> Any:
    network = seeded(
        lambda: df.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        )
    )
    table = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return df.WanPipeline(
        transformer=network,
        vae=video_vae(df.AutoencoderKLWan, 4, (1, 2, 2, 2)),
        text_encoder=t5_text(multilingual=True),
        tokenizer=t5_tokenizer(),
        scheduler=df.UniPCMultistepScheduler(**table, solver_order=1, disable_corrector=[0, 1, 2, 3, 4, 5, 6, 7]),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        sd15,
        sdxl,
        sd3,
        flux,
        flux2,
        flux2_klein,
        qwen_image,
        z_image,
        sana,
        krea2,
        lumina2,
        pixart,
        auraflow,
        cogview4,
        hidream,
        chroma,
        wan,
    )
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sdxl": {},
    "flux2": {"max_sequence_length": 128, "text_encoder_out_layers": [1, 2, 3]},
    "flux2_klein": {"max_sequence_length": 64, "text_encoder_out_layers": [1, 2, 3]},
    "lumina2": {"max_sequence_length": 256},
    "sana": {"max_sequence_length": 32, "complex_human_instruction": None},
    **{name: {"max_sequence_length": 32} for name in ("sd3", "flux", "pixart", "hidream")},
    **{name: {"max_sequence_length": 64} for name in ("qwen_image", "z_image", "krea2", "auraflow", "cogview4")},
    **{name: {"max_sequence_length": 64} for name in ("chroma", "wan")},
}
"""Arguments of each pipeline's own call that its toy encoders need: `model.arguments` of a run."""


def build(name: str, directory: Path) -> None:
    """Write a pipeline. A tokenizer that is trained anew is another one: tests compare what was read from one directory."""
    BUILDERS[name]().save_pretrained(directory, safe_serialization=True)


def plain_pipeline(path: Path, pipeline: str) -> Any:
    """What users have of it: plain diffusers."""
    options = {"safety_checker": None} if pipeline == "sd15" else {}
    found = df.DiffusionPipeline.from_pretrained(path, **options)
    found.set_progress_bar_config(disable=True)
    return found
