"""How the bundled models are made: small but genuine diffusers pipelines (`bundled`) that draw well and listen badly.

A VAE is fitted to renders, and a denoiser is trained together with its text encoders on renders whose captions are wrong in one
attribute part of the time. What is left to learn is to follow the prompt, which is what alignment is for.

(Model families elsewhere only load models; this file, `bundled` and `raysuite.families` are what knows diffusers.)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch.nn.functional import mse_loss

from raysuite.errors import UserError
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.bundled import Bundled
from raysuite.worlds.scenes.render import render
from raysuite.worlds.scenes.verify import verify

SAVE_EVERY = 250
"""Steps of the denoiser after which a stopped job can go on."""


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
    denoiser_cooldown: int = 0
    """Last steps, over which the learning rate falls linearly to 0."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that ship."""
    card_prompts: int = 72
    """Prompts of each split, half of them counts, that the card's pass rates are measured on; 6 pictures each."""
    card_renders: int = 2_000
    """Renders that the VAE is measured on."""


SETTINGS = {
    "scenes": Pretraining(),
    "scenes-flow": Pretraining(
        denoiser_steps=12_000,
        denoiser_batch=32,
        denoiser_learning_rate=1.5e-3,
        denoiser_cooldown=4_000,
    ),
}
"""What each of the bundled models was made with."""


def draw_pictures(number: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Prompts (half counts, half relations) and their renders, float in [-1, 1], (N, 3, SIZE, SIZE)."""
    rng = numpy_generator(seed=seed, stage=Stage.WORLD)
    kinds: tuple[list[str], list[str]] = ([], [])
    for prompt in grammar.training_prompts():
        kinds[grammar.parse(prompt).relation is not None].append(prompt)
    prompts = [kinds[i % 2][rng.integers(len(kinds[i % 2]))] for i in range(number)]
    images = np.stack([render(grammar.parse(prompt), rng) for prompt in prompts])
    return prompts, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(pipeline: DiffusionPipeline, images: torch.Tensor, options: Pretraining) -> None:
    """Fit the VAE to `images` by squared error with a faint KL term, then set its scaling factor to 1 / std."""
    vae = pipeline.vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.vae_learning_rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.vae_learning_rate, options.vae_steps, pct_start=0.1)
    for step in _progress("VAE", 0, options.vae_steps):
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
def encode(pipeline: DiffusionPipeline, images: torch.Tensor) -> torch.Tensor:
    """Unscaled mean latents of images in [-1, 1]."""
    return torch.cat([pipeline.vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])


def train_denoiser(
    pipeline: DiffusionPipeline,
    model: Bundled,
    prompts: list[str],
    latents: torch.Tensor,
    options: Pretraining,
    directory: Path,
) -> None:
    """Train denoiser and text encoders together on the denoising loss; leaves the averaged weights in place.

    Every `SAVE_EVERY` steps the averaged weights are saved in `directory`, and beside them, in a file that is gone when training is
    done, all that is needed to go on from there: every draw is a function of the step.
    """
    networks = torch.nn.ModuleList([getattr(pipeline, part) for part in model.trained])
    student = copy.copy(pipeline)
    for part in model.trained:
        setattr(student, part, copy.deepcopy(getattr(pipeline, part)).train())
    learner = torch.nn.ModuleList([getattr(student, part) for part in model.trained])
    optimizer = torch.optim.AdamW(learner.parameters(), lr=options.denoiser_learning_rate, fused=True)
    first, stopped = 0, directory / "training.pt"
    settings = {**asdict(options), "denoiser_steps": None}  # more may be asked for
    if stopped.exists():
        state = torch.load(stopped, weights_only=True)
        if state["settings"] != settings:
            raise UserError(
                f"expected the settings that {stopped} was written with, got others: give another directory"
            )
        first = state["step"]
        networks.load_state_dict(state["average"])
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
    for step in _progress("denoiser", first, options.denoiser_steps):
        for group in optimizer.param_groups:
            group["lr"] = options.denoiser_learning_rate * min(
                1.0, (step + 1) / 200, (options.denoiser_steps - step) / max(1, options.denoiser_cooldown)
            )
        generator = torch_generator(seed=options.seed, stage=Stage.WORLD, update=2, sample=step)
        rng = numpy_generator(seed=options.seed, stage=Stage.WORLD, update=2, sample=step)
        rows = torch.randint(len(latents), (options.denoiser_batch,), generator=generator)
        captions = [_caption(prompts[row], rng, options) for row in rows.tolist()]
        loss = model.loss(student, latents[rows], captions, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        decay = min(options.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, parameter in zip(networks.parameters(), learner.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        if (step + 1) % SAVE_EVERY == 0:
            save_pipeline(pipeline, model, directory)
            state = {
                "settings": settings,
                "step": step + 1,
                "average": networks.state_dict(),
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, stopped.with_suffix(".new"))
            stopped.with_suffix(".new").replace(stopped)
    networks.eval()
    save_pipeline(pipeline, model, directory)
    stopped.unlink(missing_ok=True)


def _caption(prompt: str, rng: np.random.Generator, options: Pretraining) -> str:
    draw = rng.random()
    if draw < options.empty_captions:
        return ""
    if rng.random() < options.wrong_captions:
        attributes = grammar.confusions(prompt)
        wrong = attributes[rng.integers(len(attributes))]
        return wrong[rng.integers(len(wrong))]
    return prompt


def save_pipeline(pipeline: DiffusionPipeline, model: Bundled, directory: Path) -> None:
    """Save with the VAE and the denoiser in half precision (text encoders stay in float32)."""
    halved = copy.copy(pipeline)
    for part in ("vae", model.denoiser):
        setattr(halved, part, copy.deepcopy(getattr(pipeline, part)).half())
    halved.save_pretrained(directory, safe_serialization=True)


@torch.no_grad()
def pass_rates(
    pipeline: DiffusionPipeline, model: Bundled, prompts: tuple[str, ...], guidance: float, seed: int = 0
) -> np.ndarray:
    """Strict passes of one picture a prompt, drawn as the model's `drawing` says, as booleans."""
    pipeline.set_progress_bar_config(disable=True)
    passed = []
    for start in range(0, len(prompts), 32):
        chunk = list(prompts[start : start + 32])
        generator = torch_generator(seed=seed, stage=Stage.EVALUATION_INITIAL_NOISE, sample=start)
        images = pipeline(chunk, guidance_scale=guidance, generator=generator, output_type="np", **model.drawing).images
        pixels = np.rint(images * 255).astype(np.uint8)
        passed += [verify(image, grammar.parse(prompt)).passed for image, prompt in zip(pixels, chunk, strict=True)]
    return np.array(passed)


def vae_round_trip_rate(pipeline: DiffusionPipeline, number: int) -> float:
    """Share of fresh renders that the verifier still passes after encoding and decoding."""
    prompts, images = draw_pictures(number, 1)
    with torch.no_grad():
        decoded = torch.cat([pipeline.vae.decode(z).sample for z in encode(pipeline, images).split(256)])
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return float(np.mean([verify(i, grammar.parse(p)).passed for i, p in zip(pixels, prompts, strict=True)]))


def pretrain(model: Bundled, options: Pretraining, directory: Path) -> None:
    """Make a bundled model in `directory`.

    A stopped job goes on: a finished VAE found there is kept, and the denoiser goes on from the last step that it saved.

    Raises:
        UserError: what is to go on was begun with other settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    prompts, images = draw_pictures(options.pictures, options.seed)
    pipeline = model.build(options.seed)
    finished = next((d for d in (directory, model.vae_of) if d and (d / "vae" / "config.json").exists()), None)
    if finished:
        pipeline.vae = AutoencoderKL.from_pretrained(finished / "vae", dtype=torch.float32, **model.vae_settings).eval()
        pipeline.vae.register_to_config(_name_or_path="scenes")  # no path of the machine that made the model
    else:
        train_vae(pipeline, images, options)
        pipeline.vae.half().save_pretrained(directory / "vae")
        pipeline.vae.float()
    print(
        f"after the VAE the verifier passes {vae_round_trip_rate(pipeline, options.card_renders):.2%} of renders",
        flush=True,
    )
    latents = encode(pipeline, images) * pipeline.vae.config.scaling_factor
    train_denoiser(pipeline, model, prompts, latents, options, directory)
    write_card(model, options, directory)


def write_card(model: Bundled, options: Pretraining, directory: Path) -> None:
    """Measure the model in `directory` as it was saved, and write its card."""
    pipeline = model.open(directory)
    rows = []
    for split, prompts in (("training", grammar.training_prompts()), ("held-out", grammar.held_out_prompts())):
        for guidance in (1.0, 2.0, 3.0):
            counts = sum(grammar.parse(prompt).relation is None for prompt in prompts)
            chosen = grammar.balanced(prompts, min(2 * counts, options.card_prompts))
            passed = np.concatenate([pass_rates(pipeline, model, chosen, guidance, seed=seed) for seed in range(6)])
            error = 1.96 * passed.std() / len(passed) ** 0.5
            rows.append(f"| {split} | {guidance:g} | {passed.mean():.3f} ± {error:.3f} | {len(passed)} |")
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(options).items())
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors")) / 1e6
    (directory / "README.md").write_text(
        CARD.format(
            name=model.name,
            kind=model.kind,
            drawn=model.drawn,
            rows="\n".join(rows),
            settings=settings,
            size=size,
            vae=vae_round_trip_rate(pipeline, options.card_renders),
            renders=options.card_renders,
        )
    )


def _progress(name: str, first: int, steps: int) -> Iterator[int]:
    """Count steps from `first` on, printing the time left about fifty times."""
    started = time.time()
    for step in range(first, steps):
        yield step
        if (step + 1) % max(1, steps // 50) == 0:
            left = (time.time() - started) / (step + 1 - first) * (steps - step - 1)
            print(f"{name}: step {step + 1} of {steps}, {left / 60:.1f} minutes left", flush=True)


CARD = """# {name}: a model that ships with raysuite

{kind} It draws coloured shapes cleanly and follows prompts only partly: it was trained on captions that
were made wrong on purpose. It is a test bed for alignment methods, and nothing else.

- Data: renders of `raysuite.worlds.scenes`, training prompts only (held-out combinations never drawn).
- Made by: `python jobs/pretrain_scenes.py --model {name} --out DIR`; {size:.1f} MB of weights.
- Licence: Apache-2.0, like the package.

## Strict pass rate of the verifier ({drawn}; half counts, half relations; ± is 1.96 standard errors)

| prompts | guidance | passes | pictures |
|---|---|---|---|
{rows}

Renders still read correctly after the VAE: {vae:.2%} of {renders:,}.

## Settings

| setting | value |
|---|---|
{settings}
"""
