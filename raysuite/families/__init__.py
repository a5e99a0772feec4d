"""Model families, one file each. To add one: implement `Policy`, and name it in `check_model` and `open_policy`."""

from __future__ import annotations

from importlib import resources

import torch

from raysuite.config import TOYS, Model, Parameters, RunConfig, Sampler
from raysuite.errors import UserError
from raysuite.families.policy import Policy

__all__ = ["Policy", "check_model", "encoder_digests", "open_model", "open_policy"]


def open_policy(config: RunConfig, device: torch.device) -> Policy:
    """The policy that a run starts from, on `device`.

    Raises:
        UserError: no model at `model.path`, or one that no family handles.
    """
    return _open(config.model, config.sampler, config.parameters, config.seed, device)


def open_model(model: Model, device: torch.device) -> Policy:
    """A model that is not to be trained: to encode pictures and prompts with.

    Raises:
        UserError: no model at `model.path`, or one that no family handles.
    """
    return _open(model, Sampler(), Parameters(), 0, device)


def _open(model: Model, sampler: Sampler, parameters: Parameters, seed: int, device: torch.device) -> Policy:
    if check_model(model) in TOYS:
        from raysuite.families.toy import open_toy

        return open_toy(sampler, flow=model.path == "toy-flow")
    from raysuite.families.stable_diffusion import StableDiffusionPolicy

    model = model.model_copy(update={"path": _location(model.path)})
    return StableDiffusionPolicy(model=model, sampler=sampler, parameters=parameters, seed=seed, device=device)


def check_model(model: Model) -> str:
    """The pipeline class at `model.path` (or the name of a toy), without loading weights.

    Raises:
        UserError: there is no model, or one that no family handles.
    """
    if model.path in TOYS:
        return model.path
    from raysuite.families.stable_diffusion import pipeline_class

    name = pipeline_class(_location(model.path))
    if name != "StableDiffusionPipeline":
        raise UserError(
            f"expected a StableDiffusionPipeline at model.path={model.path}, got {name}: no family handles it yet"
        )
    return name


def encoder_digests(model: Model) -> dict[str, str]:
    """What `model` encodes pictures and prompts with: a digest of each VAE, text encoder and tokenizer. The toy has none.

    Raises:
        UserError: there is no model, or one of them is not complete.
    """
    if check_model(model) == "toy":
        return {}
    from raysuite.families.encoders import digests

    return digests(_location(model.path), model.variant)


def _location(path: str) -> str:
    return str(resources.files("raysuite.worlds.scenes") / "model") if path == "scenes" else path
