"""U-Net families: any diffusers `StableDiffusionPipeline` (SD 1.x, 2.x, the bundled scenes), predicting noise or v."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from raysuite.config import Model, Parameters, Sampler
from raysuite.errors import UserError
from raysuite.families.parameters import AllWeights, Lora, Trained
from raysuite.families.policy import Policy
from raysuite.families.sharding import share_of
from raysuite.kernel.schedule import variance_preserving_schedule

REMEMBERED_PROMPTS = 4_096
"""Prompt embeddings kept per process (about 1 GB for SD 1.5 at most)."""
LORA_FILE = "pytorch_lora_weights.safetensors"


class StableDiffusionPolicy(Policy):
    """A `StableDiffusionPipeline` with guidance and the DDIM sampler of `kernel.schedule`.

    The network never drops out, so that the same inputs give the same outputs in rollouts and in learning.
    """

    def __init__(
        self, *, model: Model, sampler: Sampler, parameters: Parameters, seed: int, device: torch.device
    ) -> None:
        self.device = device
        self.guidance = sampler.guidance
        self.evaluations_per_prediction = 1 if sampler.guidance == 1 else 2
        self.dtype = getattr(torch, model.precision)
        self.pipeline = _load_pipeline(model)
        unet: UNet2DConditionModel = self.pipeline.unet
        # trained weights stay in float32 (autocast casts them as they are used); frozen ones are stored in `precision`
        unet.to(dtype=self.dtype if parameters.kind == "lora" else torch.float32)
        self.trained: Trained
        if parameters.kind == "lora":
            self.trained = Lora(unet, parameters, seed=seed)
        else:
            self.trained = AllWeights(unet, lambda: _stored(_load_pipeline(model).unet, self.dtype).to(device).eval())
        self.pipeline.text_encoder.to(dtype=self.dtype)
        for module in (unet, self.pipeline.vae, self.pipeline.text_encoder):
            module.to(device).eval()
        for module in (self.pipeline.vae, self.pipeline.text_encoder):
            module.requires_grad_(False)
        factor = self.pipeline.vae_scale_factor
        side = model.size // factor if model.size else unet.config.sample_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        self.latent_shape = (unet.config.in_channels, height, width)
        self.image_size = (height * factor, width * factor)
        scheduler = self.pipeline.scheduler
        self.schedule = variance_preserving_schedule(
            scheduler.alphas_cumprod.double(),
            steps=sampler.steps,
            spacing=sampler.spacing or scheduler.config.get("timestep_spacing", "leading"),
            offset=scheduler.config.get("steps_offset", 0),
            prediction=scheduler.config.prediction_type,
            dtype=torch.float32,
            **sampler.noise.model_dump(),
        ).to(device)
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()

    def predict(
        self,
        x_N: Tensor,
        t_N: Tensor,
        prompts_N: Sequence[str],
        *,
        reference: bool = False,
        base: bool = False,
        guided: bool = True,
    ) -> Tensor:
        """The guided output e_uncond + w (e_cond - e_uncond), through which gradients flow in both branches, or e_cond."""
        states_N = torch.stack([self._embedding(prompt) for prompt in prompts_N])
        if not (reference or base):
            return self._output(self.trained.network, x_N, t_N, states_N, guided)
        with torch.no_grad(), self.trained.base() if base else self.trained.reference() as network:
            return self._output(network, x_N, t_N, states_N, guided)

    def _output(
        self, network: UNet2DConditionModel, x_N: Tensor, t_N: Tensor, states_N: Tensor, guided: bool
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            if self.guidance == 1 or not guided:
                return network(x_N, t_N, states_N, return_dict=False)[0].float()
            empty_N = self._embedding("").expand_as(states_N)
            both = network(
                torch.cat([x_N, x_N]), torch.cat([t_N, t_N]), torch.cat([empty_N, states_N]), return_dict=False
            )[0]
        unconditional, conditional = both.float().chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    @torch.no_grad()
    def _embedding(self, prompt: str) -> Tensor:
        """Text states (tokens, width). Prompts are encoded one at a time, so that no state depends on its neighbours."""
        if prompt not in self._embeddings:
            states, _ = self.pipeline.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
            self.remember({prompt: states[0]})
        self._embeddings.move_to_end(prompt)
        return self._embeddings[prompt]

    def text_states(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """The text encoder's last hidden states, in the precision it runs in."""
        return {prompt: self._embedding(prompt) for prompt in prompts}

    def remember(self, text_states: Mapping[str, Tensor]) -> None:
        """Keep states; beyond `REMEMBERED_PROMPTS` the longest unused go."""
        for prompt, states in text_states.items():
            self._embeddings[prompt] = states.to(self.device, self.dtype)
        while len(self._embeddings) > REMEMBERED_PROMPTS:
            self._embeddings.popitem(last=False)

    @torch.no_grad()
    def decode(self, latents_N: Tensor) -> np.ndarray:
        """Through the VAE in float32, rounded as diffusers' image processor does."""
        images = self.pipeline.vae.decode(latents_N / self.pipeline.vae.config.scaling_factor, return_dict=False)[0]
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def encode(self, images_N: np.ndarray) -> Tensor:
        """The mean of the VAE's posterior in float32, scaled: no draw, so that the same image is the same latent."""
        pixels = torch.from_numpy(images_N.copy()).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = self.pipeline.vae.encode(pixels).latent_dist
        return posterior.mode() * self.pipeline.vae.config.scaling_factor

    def replace_reference(self, values: Mapping[str, Tensor]) -> None:
        """Other values for the adapters, or for the frozen copy, that the reference uses."""
        self.trained.set_reference(values)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The U-Net's adapters or weights."""
        return self.trained.named()

    def shard(self) -> None:
        """Spread the U-Net and its frozen copy; text encoder and VAE stay whole."""
        if not isinstance(self.trained, AllWeights):
            super().shard()  # refuses
        else:
            self.trained.shard()

    def write(self, directory: Path, values: Mapping[str, Tensor]) -> None:
        """LoRA: a file for `pipe.load_lora_weights`. All weights: a whole pipeline for `from_pretrained`."""
        if isinstance(self.trained, Lora):
            lora = self.trained.network.peft_config["default"]
            StableDiffusionPipeline.save_lora_weights(
                directory,
                unet_lora_layers=get_peft_model_state_dict(self.trained.network, dict(values)),
                safe_serialization=True,
                # without it readers take alpha to be the rank; sorted, since a set's order differs between processes
                unet_lora_adapter_metadata={
                    "r": lora.r,
                    "lora_alpha": lora.lora_alpha,
                    "target_modules": sorted(lora.target_modules),
                },
            )
        else:
            with _replaced(self.pipeline, _network_of(self.trained.network, values)) as pipeline:
                pipeline.save_pretrained(directory, safe_serialization=True)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote."""
        network = self.trained.network
        if isinstance(self.trained, Lora):
            state = safetensors.torch.load_file(directory / LORA_FILE)
            own = {name.removeprefix("unet."): tensor for name, tensor in state.items() if name.startswith("unet.")}
            outcome = set_peft_model_state_dict(network, own)
            unexpected, missing = outcome.unexpected_keys, [k for k in outcome.missing_keys if "lora_" in k]
            if unexpected or missing:
                raise UserError(
                    f"expected the adapter of this configuration in {directory}, got another: {unexpected or missing}"
                )
        else:
            state = safetensors.torch.load_file(directory / "unet" / "diffusion_pytorch_model.safetensors")
            own = dict(network.named_parameters())
            network.load_state_dict({n: share_of(value, own[n]) if n in own else value for n, value in state.items()})


def pipeline_class(path: str) -> str:
    """The class named by a pipeline's model_index.json, on disk or on the hub.

    Raises:
        UserError: there is no pipeline at `path`.
    """
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise UserError(
            f"expected a diffusers pipeline at model.path={path}, there is no such directory: check the path"
        )
    try:
        if Path(path).is_dir():
            return str(json.loads((Path(path) / "model_index.json").read_text())["_class_name"])
        return str(StableDiffusionPipeline.load_config(path)["_class_name"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"expected a diffusers pipeline (a directory with a model_index.json, or a hub id) at model.path={path}, found "
            f"none: check the path ({str(error).splitlines()[0]})"
        ) from error


def _stored(network: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """The network with the weights in `dtype` that autocast would cast to it at every use, and no others.

    Half the memory of float32, and the same outputs to the bit. Norms run in float32 with float32 weights.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
    return network


def _network_of(like: UNet2DConditionModel, values: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """A network with these weights and no others, on the CPU: `like` may have only a share of its own."""
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(like.config)
    network.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    return network


@contextmanager
def _replaced(pipeline: StableDiffusionPipeline, network: UNet2DConditionModel) -> Iterator[StableDiffusionPipeline]:
    """The pipeline with another U-Net, for the length of a `with`."""
    own = pipeline.unet
    pipeline.unet = network
    try:
        yield pipeline
    finally:
        pipeline.unet = own


def _load_pipeline(model: Model) -> StableDiffusionPipeline:
    for library in (diffusers, transformers):  # bars of files that are read in a second; downloads show their own
        library.utils.logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            model.path,
            variant=model.variant,
            dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"expected a complete pipeline with safetensors weights at model.path={model.path}, could not load it: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise UserError(
            f"expected a text-to-image U-Net at {model.path}, got one with {pipeline.unet.config.in_channels} input channels "
            f"for {pipeline.vae.config.latent_channels} latent channels: inpainting and depth models are not supported"
        )
    return pipeline
