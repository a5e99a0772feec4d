"""How the bundled model is made: a small but genuine `StableDiffusionPipeline` that draws well and listens badly.

Three stages: a word-level CLIP tokenizer and text encoder are built, a VAE is fitted to renders, and a U-Net
is trained together with the text encoder on renders whose captions are wrong in one attribute part of the
time. What is left to learn is to follow the prompt, which is what alignment is for.

(Model families elsewhere only load models; this file and `raysuite.families` are the two that know diffusers.)
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.render import SIZE, render
from raysuite.worlds.scenes.verify import verify

PROMPT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a bundled model was made with."""

    seed: int = 0
    pictures: int = 40_000
    """Renders in the training set, half of them counts and half relations."""
    wrong_captions: float = 0.35
    """Share of captions replaced, anew at every step, by one that is wrong in a single attribute."""
    empty_captions: float = 0.1
    """Share of captions left out, for classifier-free guidance."""
    vae_steps: int = 1_500
    vae_batch: int = 32
    vae_learning_rate: float = 2e-3
    denoiser_steps: int = 4_000
    denoiser_batch: int = 64
    denoiser_learning_rate: float = 6e-4
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that ship."""
    card_prompts: int = 72
    """Prompts of each split, half of them counts, that the card's pass rates are measured on; 4 pictures each."""
    card_renders: int = 2_000
    """Renders that the VAE is measured on."""


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer to which every word of the world is one token, with every byte as a fallback."""
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
        model_max_length=PROMPT_TOKENS,
    )


def build_pipeline(seed: int) -> StableDiffusionPipeline:
    """The untrained pipeline: 0.7M-parameter VAE, 0.2M text encoder, 2.8M U-Net, 4x8x8 latents."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed=seed, stage=Stage.PARAMETERS).initial_seed())
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=PROMPT_TOKENS,
                projection_dim=64,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vae = AutoencoderKL(
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


def draw_pictures(number: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Prompts (half counts, half relations) and their renders, float in [-1, 1], (N, 3, SIZE, SIZE)."""
    rng = numpy_generator(seed=seed, stage=Stage.WORLD)
    kinds: tuple[list[str], list[str]] = ([], [])
    for prompt in grammar.training_prompts():
        kinds[grammar.parse(prompt).relation is not None].append(prompt)
    prompts = [kinds[i % 2][rng.integers(len(kinds[i % 2]))] for i in range(number)]
    images = np.stack([render(grammar.parse(prompt), rng) for prompt in prompts])
    return prompts, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(pipeline: StableDiffusionPipeline, images: torch.Tensor, options: Pretraining) -> None:
    """Fit the VAE to `images` by squared error with a faint KL term, then set its scaling factor to 1 / std."""
    vae = pipeline.vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.vae_learning_rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.vae_learning_rate, options.vae_steps, pct_start=0.1)
    for step in _progress("VAE", options.vae_steps):
        generator = torch_generator(seed=options.seed, stage=Stage.WORLD, update=1, sample=step)
        rows = torch.randint(len(images), (options.vae_batch,), generator=generator)
        posterior = vae.encode(images[rows]).latent_dist
        loss = mse_loss(vae.decode(posterior.sample(generator)).sample, images[rows]) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay.step()
    vae.eval()
    vae.register_to_config(scaling_factor=float(1 / encode(pipeline, images[:2048]).std()))


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, images: torch.Tensor) -> torch.Tensor:
    """Unscaled mean latents of images in [-1, 1]."""
    return torch.cat([pipeline.vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    latents: torch.Tensor,
    options: Pretraining,
    save: Callable[[int], None],
) -> None:
    """Train U-Net and text encoder jointly on the noise-prediction loss; leaves the averaged weights in place.

    `save(step)` is called every 1,000 steps with the averaged weights in the pipeline.
    """
    networks = torch.nn.ModuleList([pipeline.unet, pipeline.text_encoder])
    learner = copy.deepcopy(networks).train()
    unet, text_encoder = learner
    optimizer = torch.optim.AdamW(learner.parameters(), lr=options.denoiser_learning_rate, fused=True)
    tokens = {
        p: torch.tensor(
            pipeline.tokenizer(p, padding="max_length", max_length=PROMPT_TOKENS, truncation=True).input_ids
        )
        for p in ("", *grammar.training_prompts())
    }
    for step in _progress("denoiser", options.denoiser_steps):
        for group in optimizer.param_groups:
            group["lr"] = options.denoiser_learning_rate * min(1.0, (step + 1) / 200)
        generator = torch_generator(seed=options.seed, stage=Stage.WORLD, update=2, sample=step)
        rng = numpy_generator(seed=options.seed, stage=Stage.WORLD, update=2, sample=step)
        rows = torch.randint(len(latents), (options.denoiser_batch,), generator=generator)
        captions = [_caption(prompts[row], rng, options) for row in rows.tolist()]
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(1000, (options.denoiser_batch,), generator=generator)
        noisy = pipeline.scheduler.add_noise(latents[rows], noise, timesteps)
        states = text_encoder(torch.stack([tokens[caption] for caption in captions])).last_hidden_state
        loss = mse_loss(unet(noisy, timesteps, states).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        decay = min(options.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, parameter in zip(networks.parameters(), learner.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        if (step + 1) % 1_000 == 0:
            save(step + 1)
    networks.eval()


def _caption(prompt: str, rng: np.random.Generator, options: Pretraining) -> str:
    draw = rng.random()
    if draw < options.empty_captions:
        return ""
    if rng.random() < options.wrong_captions:
        attributes = grammar.confusions(prompt)
        wrong = attributes[rng.integers(len(attributes))]
        return wrong[rng.integers(len(wrong))]
    return prompt


def save_pipeline(pipeline: StableDiffusionPipeline, directory: Path) -> None:
    """Save with the VAE and the U-Net in half precision (the text encoder stays in float32)."""
    copies = {name: copy.deepcopy(getattr(pipeline, name)).half() for name in ("vae", "unet")}
    StableDiffusionPipeline(**{**pipeline.components, **copies}, requires_safety_checker=False).save_pretrained(
        directory, safe_serialization=True
    )


@torch.no_grad()
def pass_rates(
    pipeline: StableDiffusionPipeline, prompts: tuple[str, ...], guidance: float, seed: int = 0
) -> np.ndarray:
    """Strict passes of one 20-step DDIM (eta = 1) picture a prompt, as booleans."""
    pipeline.set_progress_bar_config(disable=True)
    passed = []
    for start in range(0, len(prompts), 32):
        chunk = list(prompts[start : start + 32])
        generator = torch_generator(seed=seed, stage=Stage.EVALUATION_INITIAL_NOISE, sample=start)
        images = pipeline(
            chunk, num_inference_steps=20, guidance_scale=guidance, eta=1.0, generator=generator, output_type="np"
        ).images
        pixels = np.rint(images * 255).astype(np.uint8)
        passed += [verify(image, grammar.parse(prompt)).passed for image, prompt in zip(pixels, chunk, strict=True)]
    return np.array(passed)


def vae_round_trip_rate(pipeline: StableDiffusionPipeline, number: int, seed: int = 1) -> float:
    """Share of fresh renders that the verifier still passes after encoding and decoding."""
    prompts, images = draw_pictures(number, seed)
    with torch.no_grad():
        decoded = torch.cat([pipeline.vae.decode(z).sample for z in encode(pipeline, images).split(256)])
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return float(np.mean([verify(i, grammar.parse(p)).passed for i, p in zip(pixels, prompts, strict=True)]))


def pretrain(options: Pretraining, directory: Path) -> None:
    """Make the bundled model in `directory`; a finished VAE found there is kept, so that a stopped job goes on."""
    directory.mkdir(parents=True, exist_ok=True)
    started = time.time()
    prompts, images = draw_pictures(options.pictures, options.seed)
    pipeline = build_pipeline(options.seed)
    if (directory / "vae" / "diffusion_pytorch_model.safetensors").exists():
        pipeline.vae = AutoencoderKL.from_pretrained(directory / "vae", dtype=torch.float32).eval()
    else:
        train_vae(pipeline, images, options)
        pipeline.vae.half().save_pretrained(directory / "vae")
        pipeline.vae.float()
    print(
        f"after the VAE the verifier passes {vae_round_trip_rate(pipeline, options.card_renders):.2%} of renders",
        flush=True,
    )
    latents = encode(pipeline, images) * pipeline.vae.config.scaling_factor
    train_denoiser(pipeline, prompts, latents, options, lambda step: save_pipeline(pipeline, directory))
    save_pipeline(pipeline, directory)
    write_card(directory, options, minutes=(time.time() - started) / 60)


def write_card(directory: Path, options: Pretraining, minutes: float) -> None:
    """Measure the model in `directory` as it was saved, and write its card."""
    pipeline = StableDiffusionPipeline.from_pretrained(directory, dtype=torch.float32, safety_checker=None)
    rows = []
    for split, prompts in (("training", grammar.training_prompts()), ("held-out", grammar.held_out_prompts())):
        for guidance in (1.0, 3.0):
            counts = sum(grammar.parse(prompt).relation is None for prompt in prompts)
            chosen = grammar.balanced(prompts, min(2 * counts, options.card_prompts))
            passed = np.concatenate([pass_rates(pipeline, chosen, guidance, seed=seed) for seed in range(4)])
            error = 1.96 * passed.std() / len(passed) ** 0.5
            rows.append(f"| {split} | {guidance:g} | {passed.mean():.3f} ± {error:.3f} | {len(passed)} |")
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(options).items())
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors")) / 1e6
    (directory / "README.md").write_text(
        CARD.format(
            rows="\n".join(rows),
            settings=settings,
            size=size,
            minutes=minutes,
            vae=vae_round_trip_rate(pipeline, options.card_renders),
            renders=options.card_renders,
        )
    )


def _progress(name: str, steps: int) -> Iterator[int]:
    """Count steps, printing the time left about fifty times."""
    started = time.time()
    for step in range(steps):
        yield step
        if (step + 1) % max(1, steps // 50) == 0:
            left = (time.time() - started) / (step + 1) * (steps - step - 1)
            print(f"{name}: step {step + 1} of {steps}, {left / 60:.1f} minutes left", flush=True)


CARD = """# scenes: the model that ships with raysuite

A small `StableDiffusionPipeline` (32-pixel pictures, 4x8x8 latents, noise prediction) that draws coloured
shapes cleanly and follows prompts only partly: it was trained on captions that were made wrong on purpose.
It is a test bed for alignment methods, and nothing else.

- Data: renders of `raysuite.worlds.scenes`, training prompts only (held-out combinations never drawn).
- Made by: `python jobs/pretrain_scenes.py --out DIR`, {minutes:.0f} minutes on 2 CPU cores; {size:.1f} MB of weights.
- Licence: Apache-2.0, like the package.

## Strict pass rate of the verifier (20 DDIM steps, eta 1; half counts, half relations; ± is 1.96 standard errors)

| prompts | guidance | passes | pictures |
|---|---|---|---|
{rows}

Renders still read correctly after the VAE: {vae:.2%} of {renders:,}.

## Settings

| setting | value |
|---|---|
{settings}
"""
