"""Any diffusers text-to-image pipeline as a policy: U-Nets and transformers, noise, v and velocity, through one adapter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from raysuite.config import Model, Parameters, Sampler
from raysuite.errors import UserError, in_a_line
from raysuite.families import tables
from raysuite.families.compiled import check_compiler, prepared
from raysuite.families.driver import PARTS, Drawn, Driver
from raysuite.families.facts import facts_of
from raysuite.families.loading import ENCODER, UNREADABLE, check_start, load_pipeline, modules_of
from raysuite.families.parameters import AllWeights, Lora, Trained
from raysuite.families.policy import Policy
from raysuite.families.sharding import share_of
from raysuite.families.soft_prompts import SoftPrompts
from raysuite.families.text import TextMemory, TextStates
from raysuite.kernel.schedule import Schedule

LORA_FILE = "pytorch_lora_weights.safetensors"
PIXELS_AT_ONCE = 2**22
"""That go through the VAE together, at most: four pictures of 1024 x 1024."""


class PipelinePolicy(Policy):
    """A pipeline's network with guidance and the sampler's table, through the pipeline's own call.

    The network never drops out, so that the same inputs give the same outputs in rollouts and in learning.
    """

    def __init__(
        self,
        *,
        model: Model,
        sampler: Sampler,
        parameters: Parameters,
        seed: int,
        device: torch.device,
        texts: Path | None = None,
        encoders: bool = True,
        weights: bool = True,
        table: bool = True,
    ) -> None:
        """Open a pipeline.

        Args:
            model: which.
            sampler: its steps, noise and guidance.
            parameters: what is trained.
            seed: of a new adapter.
            device: where everything is to be.
            texts: a directory for text states: what is there is read, and what is missing is encoded and written.
            encoders: whether to load text encoders; without them all text states must be there.
            weights: whether to load the network; without it the policy can encode prompts and pictures, and nothing else.
            table: whether to make the sampler's table; who encodes data has no sampler, and could not mend one.

        Raises:
            UserError: it cannot be opened, or does not do what the settings say.
        """
        if model.compile and weights:
            check_compiler(device)
        self.device = device
        self.guidance = sampler.guidance
        self.evaluations_per_prediction = sampler.evaluations_per_prediction
        self.model, self.dtype = model, getattr(torch, model.precision)
        # trained weights stay in float32 (autocast casts them as they are used); frozen ones are stored in `precision`
        network_type = torch.float32 if parameters.kind == "all" else self.dtype
        names = () if encoders else (ENCODER, *(f"{ENCODER}_{number}" for number in range(2, 5)))
        self.pipeline = load_pipeline(model, network=network_type, without=names, hollow=not weights)
        self.name = type(self.pipeline).__name__
        self.facts = facts_of(self.name)
        self.part = next(part for part in PARTS if getattr(self.pipeline, part, None) is not None)
        self.soft: SoftPrompts | None = None
        if weights:
            self.trained = self._trained(model, parameters, seed)
            self.soft = self.trained if isinstance(self.trained, SoftPrompts) else None
        self.draws_prompts = self.soft is not None
        for name, module in modules_of(self.pipeline).items():
            if weights or name != self.part:
                module.to(device)
        self._check(sampler)
        self.driver = Driver(
            self.pipeline,
            self.facts,
            arguments=model.arguments,
            size=model.height_and_width,
            negative=sampler.negative_prompt,
            embedded=sampler.embedded_guidance,
            memory=TextMemory(directory=texts),
            encoders=encoders,
            device=device,
            soft=self.soft,
        )
        self.latent_shape = tuple(self.driver.template.shape[1:])
        self.image_size = self._image_size(model.height_and_width)
        if table:
            self.schedule = self._schedule(sampler).to(device)
        if weights:  # at last: until here calls were left before the network
            prepared(self.trained.network, self.part, model)

    # opening

    def _trained(self, model: Model, parameters: Parameters, seed: int) -> Trained:
        network = getattr(self.pipeline, self.part)
        if parameters.checkpointing:
            if self.facts.no_checkpointing:
                raise UserError(
                    f"expected parameters.checkpointing=false with {self.name}: {self.facts.no_checkpointing}"
                )
            network.enable_gradient_checkpointing()
        if parameters.kind == "all":
            if parameters.start is not None:
                self._start(parameters.start)
                self.pipeline.fuse_lora()
                self.pipeline.unload_lora_weights()
            return AllWeights(network, lambda: self._reload(model, parameters))
        if parameters.kind == "prompts":
            return SoftPrompts(self.pipeline, network, parameters.prompts, seed=seed, device=self.device)
        if not (hasattr(self.pipeline, "save_lora_weights") and hasattr(network, "add_adapter")):
            raise UserError(
                f"expected parameters.kind=all with {self.name}, for which diffusers reads no LoRA: set it (to evaluate it as it is, "
                "--model '{path: DIR, kind: all}')"
            )
        if parameters.start is not None:
            self._start(parameters.start)
            kind = network.peft_config["default"].peft_type.value
            if kind != "LORA":
                raise UserError(
                    f"expected a LoRA at parameters.start={parameters.start}, got {kind}, which is not trained here: fuse it into the "
                    "model beforehand"
                )
            return Lora.started(network.to(self.device))  # its values are copied where they will be used
        return Lora.fresh(network, parameters, targets=parameters.targets or self.facts.targets, seed=seed)

    def _start(self, file: str) -> None:
        """Load the LoRA that the user begins from."""
        check_start(file)
        path = Path(file)
        try:
            self.pipeline.load_lora_weights(
                str(path.parent) if path.is_file() else file,
                adapter_name="default",
                **({"weight_name": path.name} if path.is_file() else {}),
            )
        except UNREADABLE as error:
            hint = "" if path.exists() else "; check the id, or download it where there is a network and name its file"
            raise UserError(
                f"expected a LoRA of this model at parameters.start={file}, could not load it: {in_a_line(error, 300)}{hint}"
            ) from error
        found = set(self.pipeline.get_list_adapters())
        if found != {self.part}:
            raise UserError(
                f"expected a LoRA of the {self.part} alone at parameters.start={file}, got {sorted(found) or 'none'}: "
                "fuse what it has of text encoders into the model beforehand"
            )

    def _reload(self, model: Model, parameters: Parameters) -> Any:
        """The network as it came, for the reference."""
        fresh = load_pipeline(model, part=self.part)
        network = getattr(fresh, self.part)
        if parameters.start is not None:
            own, self.pipeline = self.pipeline, fresh
            try:
                self._start(parameters.start)
            finally:
                self.pipeline = own
            fresh.fuse_lora()
            fresh.unload_lora_weights()
        return prepared(_stored(network, self.dtype).to(self.device), self.part, model)

    def _check(self, sampler: Sampler) -> None:
        """Refuse guidance that the pipeline would leave out without a word."""
        pipeline, network = self.pipeline, getattr(self.pipeline, self.part)
        if network.config.get("time_cond_proj_dim") is not None:
            raise UserError(
                f"expected a network that is not told its guidance by time, got a latent consistency model: {self.name}"
            )
        inputs = network.config.get("in_channels")
        latent = getattr(pipeline.vae.config, "latent_channels", None) if self.part == "unet" else None
        if latent is not None and inputs != latent:
            raise UserError(
                f"expected a text-to-image U-Net, got one with {inputs} input channels for {latent} latent channels: inpainting and "
                "depth models are not supported"
            )
        distilled = pipeline.config.get("is_distilled", False)
        if sampler.guidance > 1 and (self.facts.guidance is None or distilled):
            instead = ", and set sampler.embedded_guidance" if self.facts.embedded else ""
            raise UserError(
                f"expected sampler.guidance=1 with {self.name} as it is here, got {sampler.guidance:g}: it has no classifier-free "
                f"guidance; leave it out{instead}"
            )

    def _schedule(self, sampler: Sampler) -> Schedule:
        return tables.read(self.driver, sampler)

    def _image_size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of a picture in pixels.

        Raises:
            UserError: the pipeline would draw another size than was asked for.
        """
        unit = getattr(self.pipeline, "vae_scale_factor", None) or self.pipeline.vae_scale_factor_spatial
        if len(self.latent_shape) > 2:
            drawn = (self.latent_shape[-2] * unit, self.latent_shape[-1] * unit)
        else:  # a token is a patch of 2 x 2 latents
            unit, tokens = 2 * unit, self.latent_shape[0]
            height, width = asked or (math.isqrt(tokens) * unit,) * 2
            cut = (height // unit * unit, width // unit * unit)
            filled = (-(-height // unit) * unit, -(-width // unit) * unit)  # as Krea 2 does
            drawn = cut if cut[0] * cut[1] == tokens * unit**2 else filled
            assert drawn[0] * drawn[1] == tokens * unit**2, "a pipeline with another form of latents"
        if asked is not None and drawn != asked:
            raise UserError(
                f"expected a model.size that {self.name} draws as it is (multiples of {unit}; some classes draw one area only), got "
                f"{asked[0]} x {asked[1]}, of which it makes {drawn[0]} x {drawn[1]}: set another"
            )
        return drawn

    # the network

    def predict(
        self,
        x_N: Tensor,
        t_N: Tensor,
        prompts_N: Sequence[str],
        *,
        reference: bool = False,
        base: bool = False,
        guided: bool = True,
        draws_N: Tensor | None = None,
    ) -> Tensor:
        """The output that the pipeline would hand to its scheduler, with its own form of guidance, through which gradients flow."""
        guidance = self.guidance if guided else 1.0
        prompts = Drawn.of(prompts_N, draws_N, self.soft)
        if not (reference or base):
            return self._output(self.trained.network, x_N, t_N, prompts, guidance)
        with torch.no_grad(), self.trained.base() if base else self.trained.reference() as network:
            return self._output(network, x_N, t_N, prompts, guidance)

    def _output(self, network: Any, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], guidance: float) -> Tensor:
        with self._autocast():
            return self.driver.step(network, x_N, t_N, prompts_N, guidance)

    def regularise(self, prompts_U: Sequence[str], *, scale: float) -> Mapping[str, float]:
        """Hold soft prompts apart; of other parameters nothing."""
        if self.soft is None or self.soft.settings.count == 1:
            return {}
        told = {"orthogonality": 0.0, "prompt_spread": 0.0}
        for prompt, units in Counter(prompts_U).items():
            orthogonality, spread = self.soft.regulariser(*self.driver.question(self.soft.marked(prompt)))
            if self.soft.settings.orthogonality:
                (self.soft.settings.orthogonality * scale * units * orthogonality).backward()
            told["orthogonality"] += units * float(orthogonality.detach())
            told["prompt_spread"] += units * spread
        return told

    def _autocast(self) -> torch.autocast:
        # weights that are gathered as they are used would stay, cast, until a prediction's end
        kept = not self.trained.shared
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16, cache_enabled=kept
        )

    # text

    def text_states(self, prompts: Iterable[str]) -> dict[str, TextStates]:
        """What the pipeline's `encode_prompt` says, with the sampler's guidance and without."""
        return {prompt: self._states(prompt) for prompt in prompts}

    def _states(self, prompt: str) -> TextStates:
        guided = self.driver.states(prompt, guided=True) if self.guidance > 1 else {}
        return {**self.driver.states(prompt, guided=False), **guided}

    def remember(self, states: TextStates) -> None:
        """Keep answers, all of them."""
        self.driver.memory.keep_together(states)

    # pictures

    def decode(self, latents_N: Tensor) -> np.ndarray:
        """Through the pipeline's own decoding, in float32."""
        at_once = max(1, PIXELS_AT_ONCE // math.prod(self.image_size))
        return np.concatenate([self._pictures(piece) for piece in latents_N.split(at_once)])

    def _pictures(self, latents_N: Tensor) -> np.ndarray:
        return (self.driver.finish(latents_N) * 255).round().astype(np.uint8)

    @torch.no_grad()
    def encode(self, images_N: np.ndarray) -> Tensor:
        """The mean of the VAE's posterior in float32, in the form of the loop: no draw, so that the same image is the same latent."""
        pixels = torch.from_numpy(images_N.copy()).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        filmed = self._channels()[0].ndim == 5
        at_once = max(1, PIXELS_AT_ONCE // math.prod(self.image_size))
        pieces = []
        for piece in pixels.split(at_once):
            encoded = self.pipeline.vae.encode(piece[:, :, None] if filmed else piece)
            pieces.append(encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode())
        return self.in_the_loop(torch.cat(pieces))

    def in_the_loop(self, z_N: Tensor) -> Tensor:
        """Latents of the VAE (N, C, h, w) or (N, C, 1, h, w) in the form and scale that the loop works on: the inverse of decoding."""
        mean, std = self._channels()
        patched = len(mean.flatten()) == 4 * z_N.shape[1]  # statistics of 2 x 2 patches
        if patched:
            z_N = _patches(z_N)
        x_N = (z_N - mean) / std
        if len(self.latent_shape) == 2:
            x_N = x_N.flatten(-2) if patched else _patches(x_N.squeeze(2) if x_N.ndim == 5 else x_N).flatten(-2)
            return x_N.transpose(1, 2).contiguous()
        return x_N.reshape(len(x_N), *self.latent_shape)

    def _channels(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of the VAE's latents, by channel: what the loop works on is (z - mean) / std."""
        vae, config = self.pipeline.vae, self.pipeline.vae.config
        if hasattr(vae, "bn"):
            mean, std = vae.bn.running_mean, (vae.bn.running_var + config.batch_norm_eps).sqrt()
            return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        if config.get("latents_mean") is not None:
            mean, std = (torch.tensor(config[of], device=self.device) for of in ("latents_mean", "latents_std"))
            return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
        values = (config.get("shift_factor") or 0.0, 1 / config.scaling_factor)
        mean, std = (torch.tensor(value, device=self.device).view(1, 1, 1, 1) for value in values)
        return mean, std

    # parameters

    def replace_reference(self, values: Mapping[str, Tensor]) -> None:
        """Other values for the adapters, or for the frozen copy, that the reference uses."""
        self.trained.set_reference(values)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The network's adapters or weights."""
        return self.trained.named()

    def shard(self) -> None:
        """Spread the network and its frozen copy; text encoders and VAE stay whole."""
        if not isinstance(self.trained, AllWeights):
            super().shard()  # refuses
        else:
            self.trained.shard()
            self.driver.one_call = "cluster.shard"

    def let_go(self) -> None:
        """Of all weights."""
        if isinstance(self.trained, AllWeights):
            self.trained.let_go()

    def write(self, directory: Path, values: Mapping[str, Tensor]) -> None:
        """LoRA: a file for `pipe.load_lora_weights`. All weights: a whole pipeline for `from_pretrained`. Prompts: a distribution, and
        its members for `pipe.load_textual_inversion`.
        """
        if isinstance(self.trained, SoftPrompts):
            self.trained.write(directory, values, base=self.model.path)
        elif isinstance(self.trained, Lora):
            self.pipeline.save_lora_weights(
                directory,
                safe_serialization=True,
                **{
                    f"{self.part}_lora_layers": get_peft_model_state_dict(self.trained.network, dict(values)),
                    # without it readers take alpha to be the rank
                    f"{self.part}_lora_adapter_metadata": self.trained.metadata(),
                },
            )
        else:
            with self._replaced(
                {self.part: _network_of(self.trained.network, values), **self._encoders_as_they_came()}
            ):
                self.pipeline.save_pretrained(directory, safe_serialization=True)

    def _encoders_as_they_came(self) -> dict[str, Any]:
        """Text encoders that were left out here, or rounded to run, in float32: diffusers runs them beside a network in float32."""
        came = self.model.model_copy(update={"precision": "float32"})
        names = [name for name in self.pipeline.components if name.startswith(ENCODER)]
        changed = [name for name in names if self.dtype != torch.float32 or getattr(self.pipeline, name) is None]
        return {name: getattr(load_pipeline(came, part=name), name) for name in changed}

    @contextmanager
    def _replaced(self, parts: Mapping[str, Any]) -> Iterator[None]:
        """The pipeline with other components, for the length of a `with`."""
        own = {name: getattr(self.pipeline, name) for name in parts}
        try:
            for name, part in parts.items():
                setattr(self.pipeline, name, part)
            yield
        finally:
            for name, part in own.items():
                setattr(self.pipeline, name, part)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote."""
        network = self.trained.network
        if isinstance(self.trained, SoftPrompts):
            self.trained.load(directory)
            return
        if isinstance(self.trained, Lora):
            prefix, state = f"{self.part}.", safetensors.torch.load_file(directory / LORA_FILE)
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            outcome = set_peft_model_state_dict(network, own)
            unexpected, missing = outcome.unexpected_keys, [k for k in outcome.missing_keys if "lora_" in k]
            if unexpected or missing:
                raise UserError(
                    f"expected the adapter of this configuration in {directory}, got another: {unexpected or missing}"
                )
            return
        files = sorted((directory / self.part).glob("*.safetensors"))
        state = {name: value for file in files for name, value in safetensors.torch.load_file(file).items()}
        parameters = dict(network.named_parameters())
        network.load_state_dict(
            {n: share_of(value, parameters[n]) if n in parameters else value for n, value in state.items()}
        )


def _patches(z_N: Tensor) -> Tensor:
    """(N, C, h, w) as (N, 4 C, h/2, w/2): the four of a 2 x 2 patch side by side, channel by channel."""
    count, channels, height, width = z_N.shape
    split = z_N.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return split.reshape(count, 4 * channels, height // 2, width // 2)


def _stored(network: Any, dtype: torch.dtype) -> Any:
    """The network with the weights in `dtype` that autocast would cast to it at every use, and no others.

    Half the memory of float32, and the same outputs to the bit. Norms run in float32 with float32 weights. So does what has the first
    parameter: its type is the network's, to which FLUX.2 rounds latents and times before any layer sees them.
    """
    first = next(network.parameters())
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and first not in {*module.parameters(recurse=False)}:
            module.to(dtype)
    return network


def _network_of(like: Any, values: Mapping[str, Tensor]) -> Any:
    """A network with these weights and no others, on the CPU: `like` may have only a share of its own."""
    with torch.device("meta"):
        network = type(like).from_config(like.config)
    state = {**dict(like.named_buffers()), **values}
    network.load_state_dict({name: state[name].cpu().clone() for name in network.state_dict()}, assign=True)
    return network
