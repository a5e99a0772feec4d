"""The two models that ship with the scenes world, untrained: what each is made of, its training loss, and how it is drawn with.

Both are genuine diffusers pipelines on one VAE and one vocabulary. `Epsilon` is a U-Net that predicts the noise, as Stable
Diffusion 1 has it; `Flow` is a transformer over picture and text that predicts a velocity, as Stable Diffusion 3 has it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from raysuite.rng import Stage, torch_generator
from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.render import SIZE

HERE = Path(__file__).parent
PROMPT_TOKENS = 16
FLOW_PROMPT_TOKENS = 10
"""The longest prompt has eight words; each token more is one that every layer of the transformer attends to."""


class Bundled(ABC):
    """One of the two models."""

    name: str
    """As `model.path` has it."""
    kind: str
    """A sentence of the card."""
    pipeline: type[DiffusionPipeline]
    directory: Path
    """Where the trained model lies."""
    denoiser: str
    """The pipeline's part that predicts."""
    vae_of: Path | None = None
    """Another model whose VAE this one has."""
    vae_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings in which that VAE departs."""
    trained: tuple[str, ...]
    """Parts that are trained together, the denoiser first."""
    absent: tuple[str, ...] = ()
    """Parts that diffusers wants to be told are not there."""
    drawing: ClassVar[Mapping[str, Any]]
    """Arguments of a call of the pipeline, as the card's pictures are drawn."""
    drawn: str
    """The same in words."""

    def open(self, directory: Path) -> DiffusionPipeline:
        """The pipeline that was saved in `directory`, in float32."""
        return self.pipeline.from_pretrained(directory, dtype=torch.float32, **dict.fromkeys(self.absent))

    @abstractmethod
    def build(self, seed: int) -> DiffusionPipeline:
        """The untrained pipeline."""

    @abstractmethod
    def loss(
        self,
        pipeline: DiffusionPipeline,
        latents_N: torch.Tensor,
        captions_N: Sequence[str],
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The denoising loss of scaled clean latents (N, 4, 8, 8) with their captions, a mean over everything."""


class Epsilon(Bundled):
    """A `StableDiffusionPipeline`: 0.7M-parameter VAE, 0.2M text encoder, 2.8M U-Net."""

    name = "scenes"
    kind = "A small `StableDiffusionPipeline` (32-pixel pictures, 4x8x8 latents, noise prediction)."
    pipeline = StableDiffusionPipeline
    directory = HERE / "model"
    denoiser = "unet"
    trained = ("unet", "text_encoder")
    drawing: ClassVar[Mapping[str, Any]] = {"num_inference_steps": 20, "eta": 1.0}
    drawn = "20 DDIM steps, eta 1"

    def build(self, seed: int) -> DiffusionPipeline:
        tokenizer = build_tokenizer(PROMPT_TOKENS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(seed=seed, stage=Stage.PARAMETERS).initial_seed())
            text_encoder = CLIPTextModel(_text_config(tokenizer, width=64, layers=2))
            vae = _build_vae()
            unet = UNet2DConditionModel(
                sample_size=SIZE // 4,
                in_channels=4,
                out_channels=4,
                block_out_channels=(64, 96),
                down_block_types=("CrossAttnDownBlock2D",) * 2,
                up_block_types=("CrossAttnUpBlock2D",) * 2,
                layers_per_block=1,
                attention_head_dim=4,  # the number of heads, in this class
                cross_attention_dim=64,
                norm_num_groups=16,
            )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def loss(
        self,
        pipeline: DiffusionPipeline,
        latents_N: torch.Tensor,
        captions_N: Sequence[str],
        generator: torch.Generator,
    ) -> torch.Tensor:
        noise = torch.randn(latents_N.shape, generator=generator)
        timesteps = torch.randint(1000, (len(latents_N),), generator=generator)
        noisy = pipeline.scheduler.add_noise(latents_N, noise, timesteps)
        states, _ = pipeline.encode_prompt(list(captions_N), "cpu", 1, False)
        return mse_loss(pipeline.unet(noisy, timesteps, states).sample, noise)


class Flow(Bundled):
    """A `StableDiffusion3Pipeline` without a T5: the same VAE, 0.2M text encoders, 4.5M transformer on patches of 2 x 2 latents.

    Where there is no T5, the pipeline puts `max_sequence_length` rows of zeros in its place, 256 unless told otherwise. This model
    is trained with one, and drawn with one.
    """

    name = "scenes-flow"
    kind = (
        "A small `StableDiffusion3Pipeline` (32-pixel pictures, 4x8x8 latents, velocity prediction) without a T5: open it "
        "with `text_encoder_3=None, tokenizer_3=None`, and call it with `max_sequence_length=1`."
    )
    pipeline = StableDiffusion3Pipeline
    directory = HERE / "model_flow"
    vae_of = Epsilon.directory
    vae_settings: ClassVar[Mapping[str, Any]] = {"shift_factor": 0.0}  # this pipeline adds it, also where it is None
    denoiser = "transformer"
    trained = ("transformer", "text_encoder", "text_encoder_2")
    absent = ("text_encoder_3", "tokenizer_3")
    drawing: ClassVar[Mapping[str, Any]] = {"num_inference_steps": 12, "max_sequence_length": 1}
    drawn = "12 Euler steps"
    level_mean = 0.5
    """Noise levels are the sigmoid of normal draws with this mean and standard deviation 1 (Esser et al., 2024, section 3.1)."""

    def build(self, seed: int) -> DiffusionPipeline:
        tokenizer = build_tokenizer(FLOW_PROMPT_TOKENS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(seed=seed, stage=Stage.PARAMETERS).initial_seed())
            text_encoder = CLIPTextModelWithProjection(_text_config(tokenizer, width=64, layers=2))
            text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizer, width=32, layers=1))
            vae = _build_vae()
            transformer = SD3Transformer2DModel(
                sample_size=SIZE // 4,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=5,
                num_attention_heads=5,
                attention_head_dim=32,
                caption_projection_dim=160,
                joint_attention_dim=96,
                pooled_projection_dim=96,
                pos_embed_max_size=SIZE // 8,
                qk_norm="rms_norm",
            )
        return StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_3=None,
            tokenizer=tokenizer,
            tokenizer_2=build_tokenizer(FLOW_PROMPT_TOKENS),
            tokenizer_3=None,
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        )

    def loss(
        self,
        pipeline: DiffusionPipeline,
        latents_N: torch.Tensor,
        captions_N: Sequence[str],
        generator: torch.Generator,
    ) -> torch.Tensor:
        noise = torch.randn(latents_N.shape, generator=generator)
        sigma = torch.sigmoid(self.level_mean + torch.randn(len(latents_N), generator=generator))
        states, _, pooled, _ = pipeline.encode_prompt(
            list(captions_N), None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        velocity = pipeline.transformer(
            hidden_states=torch.lerp(latents_N, noise, sigma[:, None, None, None]),
            timestep=1000 * sigma,
            encoder_hidden_states=states,
            pooled_projections=pooled,
        ).sample
        return mse_loss(velocity, noise - latents_N)


BUNDLED: dict[str, Bundled] = {model.name: model for model in (Epsilon(), Flow())}
"""By name."""


def build_tokenizer(length: int) -> CLIPTokenizer:
    """A CLIP tokenizer to which every word of the world is one token, with every byte as a fallback; `length` tokens a prompt."""
    words = {word for p in grammar.training_prompts() + grammar.held_out_prompts() for word in p.split()}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(
        sorted(words), trainers.BpeTrainer(vocab_size=1_000, end_of_word_suffix="</w>", show_progress=False)
    )
    learned = json.loads(bpe.to_str())["model"]
    pieces = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *sorted(learned["vocab"]),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=length,
    )


def _text_config(tokenizer: CLIPTokenizer, *, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIZE,
    )
