"""Model families, one file each. To add one: implement `Policy`, and name it in `check_model` and `open_policy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raysuite.config import TOYS, Model, Parameters, RunConfig, Sampler
from raysuite.families.policy import Policy

if TYPE_CHECKING:
    from raysuite.families.pipeline import PipelinePolicy

__all__ = ["Policy", "check_model", "cut_prompts", "encoder_arguments", "encoder_digests", "open_model", "open_policy"]

BUNDLED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "scenes": ("model", {}),
    "scenes-flow": ("model_flow", {"max_sequence_length": 1}),
}
"""Models that ship with the package: their directory in the scenes world, and arguments that their pipeline is called with."""


def open_policy(
    config: RunConfig,
    device: torch.device,
    *,
    texts: Path | None = None,
    weights: bool = True,
    compiled: bool = True,
) -> Policy:
    """The policy that a run starts from, on `device`.

    Args:
        config: of the run.
        device: where to.
        texts: a directory for text states. With the network all of them must be there, and text encoders are not loaded; without it
            what is missing is encoded and written.
        weights: whether to load the network; without it the policy can encode prompts and pictures, and nothing else.
        compiled: whether the network may be compiled, where `model.compile` says so; who never calls it needs no compiler.

    Raises:
        UserError: no model at `model.path`, or one that no family handles.
    """
    model = config.model if compiled else config.model.model_copy(update={"compile": False})
    return _open(model, config.sampler, config.parameters, config.seed, device, texts, weights)


def open_model(model: Model, device: torch.device) -> Policy:
    """A model that encodes pictures and prompts, and has neither weights to predict with nor a sampler's table.

    Raises:
        UserError: no model at `model.path`, or one that no family handles.
    """
    return _open(model, Sampler(), Parameters(), 0, device, weights=False, table=False)


def _open(
    model: Model,
    sampler: Sampler,
    parameters: Parameters,
    seed: int,
    device: torch.device,
    texts: Path | None = None,
    weights: bool = True,
    table: bool = True,
) -> Policy:
    name = check_model(model)
    if name in TOYS:
        from raysuite.families.toy import open_toy

        return open_toy(sampler, flow=name == "toy-flow")
    policy: type[PipelinePolicy]
    if name == "StableDiffusionPipeline":
        from raysuite.families.stable_diffusion import StableDiffusionPolicy as policy
    else:
        from raysuite.families.pipeline import PipelinePolicy as policy
    return policy(
        model=located(model),
        sampler=sampler,
        parameters=parameters,
        seed=seed,
        device=device,
        texts=texts,
        encoders=texts is None or not weights,
        weights=weights,
        table=table,
    )


def check_model(model: Model) -> str:
    """The pipeline class at `model.path` (or the name of a toy), without loading weights.

    Raises:
        UserError: there is no model, one that no family handles, or one that is not whole.
    """
    if model.path in TOYS:
        return model.path
    from raysuite.families.inspect import inspect
    from raysuite.families.loading import pipeline_class

    found = located(model)
    name = pipeline_class(found)
    if Path(found.path).is_dir():
        inspect(Path(found.path), found.variant)
    return name


def cut_prompts(model: Model, prompts: Sequence[str]) -> tuple[list[str], int]:
    """Prompts that `model` does not read to their end, and how many tokens it reads. The toys know theirs."""
    if model.path in TOYS:
        return [], 0
    from raysuite.families.lengths import cut_prompts

    return cut_prompts(located(model), prompts)


def encoder_digests(model: Model) -> dict[str, str]:
    """What `model` encodes pictures and prompts with: a digest of each VAE, text encoder and tokenizer. The toys have none.

    Raises:
        UserError: there is no model, or one of them is not complete.
    """
    if check_model(model) in TOYS:
        return {}
    from raysuite.families.encoders import digests

    return digests(located(model).path, model.variant)


def encoder_arguments(model: Model) -> dict[str, Any]:
    """The arguments of `model`'s call that its text encoders are told, such as how much of a prompt they read, by name. The toys have
    none.

    Raises:
        UserError: there is no model.
    """
    if check_model(model) in TOYS:
        return {}
    from raysuite.families.encoders import arguments

    return arguments(located(model))


def located(model: Model) -> Model:
    """The model with a path where a bundled name was."""
    if model.path not in BUNDLED:
        return model
    directory, arguments = BUNDLED[model.path]
    path = resources.files("raysuite.worlds.scenes") / directory
    return model.model_copy(update={"path": str(path), "arguments": {**arguments, **model.arguments}})
