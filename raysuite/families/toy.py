"""Models small enough to check by hand: a Gaussian mixture with its exact noise or velocity and a trainable perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.families.text import TextStates
from raysuite.kernel.schedule import Levels, Schedule, noisy_schedule, variance_preserving_schedule

TRAINING_STEPS = 1_000
SHIFT = 3.0
"""Of the flow model's times towards noise, sigma = 3 s / (1 + 2 s), as Stable Diffusion 3 has it."""
PROMPTS = ("left", "right", "both")
"""What the toy model can be asked for: its left mode mostly, its right mode mostly, or both alike."""

_MODE_WEIGHTS = {"left": (0.8, 0.2), "right": (0.2, 0.8), "both": (0.5, 0.5), "": (0.5, 0.5)}


def alpha_bar() -> Tensor:
    """The training schedule, Stable Diffusion's scaled-linear one, (1000,) float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def shifted(share: Tensor) -> Tensor:
    """The flow model's sigma at equally spaced shares of its time, 0 a picture and 1 noise.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, equation 23.
    """
    return SHIFT * share / (1 + (SHIFT - 1) * share)


class ToyPolicy(Policy):
    """p(x0 | prompt) = sum_m w_m(prompt) N(mu_m, spread^2 I) over two modes at -1 and +1 on the first axis.

    At level (alpha, sigma) the noisy density is a mixture with means alpha mu_m and variance
    v = alpha^2 spread^2 + sigma^2, so that E[eps | x] = -sigma grad log p(x) in closed form, and E[x0 | x] likewise. The
    network predicts noise, or velocity where its schedule is of that type. What is trained is added to that: a map, linear in
    (1, x), for each of `bins` equal ranges of timesteps, zero at the start.
    """

    evaluations_per_prediction = 1

    def __init__(
        self,
        *,
        schedule: Schedule,
        dimensions: int = 2,
        spread: float = 0.3,
        bins: int = 10,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.schedule = schedule
        self.latent_shape = (dimensions,)
        self.image_size = (8, 8)
        self.device = torch.device("cpu")
        self.spread = spread
        self.dtype = dtype
        self.perturbation = torch.nn.Parameter(torch.zeros(bins, dimensions + 1, dimensions, dtype=dtype))
        self.reference_perturbation = torch.zeros_like(self.perturbation, requires_grad=False)
        self.modes = torch.zeros(2, dimensions, dtype=dtype)
        self.modes[:, 0] = torch.tensor([-1.0, 1.0])
        self.abar = alpha_bar().to(dtype)

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
        """The exact noise or velocity plus the perturbation. There is no guidance to leave out."""
        flow = self.schedule.prediction == "velocity"
        if flow:  # the network is told 1000 sigma
            sigma = (t_N.to(self.dtype) / TRAINING_STEPS)[:, None]
            alpha = 1 - sigma
        else:
            alpha, sigma = self.abar[t_N].sqrt()[:, None], (1 - self.abar[t_N]).sqrt()[:, None]
        variance = alpha**2 * self.spread**2 + sigma**2
        weights = torch.tensor([_mode_weights(p) for p in prompts_N], dtype=self.dtype)
        offsets = x_N[:, None] - alpha[:, None] * self.modes  # (N, 2, D)
        responsibility = (weights.log() - offsets.square().sum(-1) / (2 * variance)).softmax(-1)
        pull = (responsibility[..., None] * offsets).sum(1)
        exact = sigma * pull / variance
        if flow:
            exact = exact - (responsibility @ self.modes + alpha * self.spread**2 * pull / variance)
        perturbation = self.reference_perturbation if reference else self.perturbation
        features = torch.cat([torch.ones_like(x_N[:, :1]), x_N], dim=1)
        if base:
            return exact
        bins = (t_N * len(perturbation) // TRAINING_STEPS).long().clamp(max=len(perturbation) - 1)
        return exact + torch.einsum("nf,nfd->nd", features, perturbation[bins])

    def decode(self, latents_N: Tensor) -> np.ndarray:
        """One flat 8 x 8 picture a sample: red is the first axis, green the second (or grey), 0 at 128, 32 a unit."""
        values = (128 + 32 * latents_N.detach().float()).round().clamp(0, 255).byte().numpy()
        colours = np.concatenate([values, np.full((len(values), 3), 128, np.uint8)], axis=1)[:, :3]
        return np.broadcast_to(colours[:, None, None, :], (len(values), 8, 8, 3)).copy()

    def encode(self, images_N: np.ndarray) -> Tensor:
        """The latents whose pictures these are, to within 1/64."""
        values = torch.from_numpy(images_N[:, 0, 0, : self.latent_shape[0]].copy()).to(self.dtype)
        return (values - 128) / 32

    def text_states(self, prompts: Iterable[str]) -> dict[str, TextStates]:
        """None: prompts are read as they are."""
        return {}

    def remember(self, states: TextStates) -> None:
        """There is nothing to remember."""

    def replace_reference(self, values: Mapping[str, Tensor]) -> None:
        """Another perturbation."""
        self.reference_perturbation = values["perturbation"].to(self.dtype)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The perturbation."""
        return {"perturbation": self.perturbation}

    def write(self, directory: Path, values: Mapping[str, Tensor]) -> None:
        """One safetensors file."""
        safetensors.torch.save_file(dict(values), directory / "toy.safetensors")

    def load(self, directory: Path) -> None:
        """Read what `save` wrote."""
        with torch.no_grad():
            self.perturbation.copy_(safetensors.torch.load_file(directory / "toy.safetensors")["perturbation"])


def open_toy(sampler: Sampler, dtype: torch.dtype = torch.float32, *, flow: bool = False) -> ToyPolicy:
    """The toy model with a sampler: the one that predicts noise, or the flow model.

    Raises:
        UserError: a spacing of timesteps for the flow model.
    """
    if flow:
        return ToyPolicy(schedule=_flow_schedule(sampler, dtype), dtype=dtype)
    schedule = variance_preserving_schedule(
        alpha_bar(),
        steps=sampler.steps,
        spacing=sampler.spacing or "leading",
        offset=1,
        prediction="epsilon",
        dtype=dtype,
        **sampler.noise.model_dump(),
    )
    return ToyPolicy(schedule=schedule, dtype=dtype)


def _flow_schedule(sampler: Sampler, dtype: torch.dtype) -> Schedule:
    if sampler.spacing is not None:
        raise UserError(
            f"expected no sampler.spacing with the toy flow model, got {sampler.spacing}: its steps are equal in unshifted time; "
            "leave it out"
        )
    sigma_K1 = shifted(torch.linspace(1, 0, sampler.steps + 1, dtype=torch.float64))
    sigma_T = shifted(torch.linspace(0, 1, TRAINING_STEPS + 1, dtype=torch.float64)[1:])
    return noisy_schedule(
        timesteps_K=(TRAINING_STEPS * sigma_K1[:-1]).to(dtype),
        alpha_K1=1 - sigma_K1,
        sigma_K1=sigma_K1,
        training=Levels.flow((TRAINING_STEPS * sigma_T).to(dtype), sigma_T.to(dtype)),
        prediction="velocity",
        dtype=dtype,
        **sampler.noise.model_dump(),
    )


def _mode_weights(prompt: str) -> tuple[float, float]:
    if prompt not in _MODE_WEIGHTS:
        raise UserError(f"expected a prompt of the toy model ({', '.join(PROMPTS)}), got {prompt!r}")
    return _MODE_WEIGHTS[prompt]
