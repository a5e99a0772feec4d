"""Pipelines from directories and the hub: which class, and in which precision."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError

from raysuite.config import Model
from raysuite.errors import UserError, in_a_line
from raysuite.families.driver import NETWORKS_OF_THEIR_OWN, PARTS, missing_seam
from raysuite.families.facts import facts_of

ENCODER = "text_encoder"
"""How names of components begin that encode text."""
UNREADABLE: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError, RuntimeError, KeyError)
"""What reading a LoRA, or files of a hub, may raise. The bases of the hub's own error are what its client raises where the hub is not
reached."""


def named_class(model: Model) -> str:
    """The class of diffusers that the pipeline at `model.path` names.

    Raises:
        UserError: there is no pipeline, or diffusers has no such class.
    """
    name = str(_index(model)["_class_name"])
    if not hasattr(diffusers, name):
        raise UserError(
            f"expected a pipeline class of diffusers at model.path={model.path}, got {name}: it has none of that name"
        )
    return name


def pipeline_class(model: Model) -> str:
    """The class of the pipeline at `model.path`, which can be driven, without loading weights.

    Raises:
        UserError: there is none, or it has not what `Driver` needs.
    """
    name, index = named_class(model), _index(model)
    lacking = missing_seam(getattr(diffusers, name))
    present = [part for part in NETWORKS_OF_THEIR_OWN if index.get(part, [None])[0] is not None]
    if lacking is None and not any(index.get(part, [None])[0] is not None for part in PARTS):
        lacking = f"it has no {' or '.join(PARTS)}"
    if lacking is None and present:
        lacking = f"its {present[0]} is a second network, and raysuite trains one that does all steps"
    if lacking is not None:
        raise UserError(f"expected a text-to-image pipeline at model.path={model.path}, got {name}: {lacking}")
    return name


def _index(model: Model) -> Mapping[str, Any]:
    """What a pipeline's model_index.json says."""
    path = model.path
    if Path(path).is_file():
        raise UserError(
            f'expected a diffusers pipeline at model.path={path}, got a file: write it as one with\n  python -c "from diffusers '
            f"import StableDiffusionXLPipeline as P; P.from_single_file('{path}').save_pretrained('DIRECTORY')\"\n(or another class), "
            "and set model.path=DIRECTORY"
        )
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise UserError(
            f"expected a diffusers pipeline at model.path={path}, there is no such directory: check the path"
        )
    try:
        if Path(path).is_dir():
            index = json.loads((Path(path) / "model_index.json").read_text())
        else:
            index = DiffusionPipeline.load_config(path)
        if not isinstance(index, dict) or "_class_name" not in index:
            raise KeyError("model_index.json names no _class_name")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        if isinstance(error.__context__, LocalEntryNotFoundError):
            raise UserError(
                f"expected the hub, or a copy of model.path={path} in its cache, the hub was not reached, there is none, and no "
                f"directory {path} here either: name a directory, or download it where there is a network"
            ) from error
        licence = "check the id, or accept the model's licence on its page and log in with `hf auth login`"
        remedy = "check the path" if Path(path).is_dir() else licence
        raise UserError(
            f"expected a diffusers pipeline (a directory with a model_index.json, or a hub id) at model.path={path}, found "
            f"none: {remedy} ({in_a_line(error, 300)})"
        ) from error
    return index


def check_start(file: str) -> None:
    """Find out whether a LoRA to begin from is there, if it is not one of a hub.

    Raises:
        UserError: it is not.
    """
    path = Path(file)
    local = file.startswith(("/", ".", "~")) or path.suffix in (".safetensors", ".bin", ".pt") or file.count("/") != 1
    if local and not path.exists():
        raise UserError(
            f"expected a LoRA at parameters.start={file}, there is nothing: name its file, or a hub's owner/name"
        )


def load_pipeline(
    model: Model,
    *,
    part: str | None = None,
    network: torch.dtype = torch.float32,
    without: Collection[str] = (),
    hollow: bool = False,
) -> Any:
    """A pipeline on the CPU, in evaluation mode.

    Args:
        model: which.
        part: load this component alone.
        network: the denoising network's type. Encoders are loaded in the model's precision, the VAE in float32.
        without: components to leave out.
        hollow: give the denoising network its configuration and zeros that take no memory, in place of its weights.

    Raises:
        UserError: weights are missing, or the pipeline is of another kind.
    """
    _quieten()
    name = named_class(model)
    components = {key: value for key, value in _index(model).items() if isinstance(value, list) and key[0] != "_"}
    left_out = [
        key
        for key, (library, _) in components.items()
        # diffusers wants to be told of what was saved as absent, such as Stable Diffusion 3's third encoder
        if library is None or key in without or (part is not None and key not in (part, "scheduler"))
    ]
    types = {"default": getattr(torch, model.precision), "vae": torch.float32, **dict.fromkeys(PARTS, network)}
    options: dict[str, Any] = {**facts_of(name).load, **dict.fromkeys(left_out), "dtype": types}
    cls = getattr(diffusers, name)
    try:
        if hollow:
            options |= _hollow(model, network)
        pipeline = cls.from_pretrained(model.path, variant=model.variant, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"expected a complete pipeline with safetensors weights at model.path={model.path}, could not load it: "
            f"{in_a_line(error, 300)}"
        ) from error
    for component in modules_of(pipeline).values():
        component.eval().requires_grad_(False)
        for module in component.modules():
            # HiDream's experts pass no gradient on in evaluation mode; the numbers are the same but for rounding
            module.training = hasattr(module, "moe_infer")
    return pipeline


def _quieten() -> None:
    """No bars of files that are read in a second; downloads show their own."""
    for package in (diffusers, transformers):
        package.utils.logging.disable_progress_bar()


def modules_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Its networks by name."""
    return {name: value for name, value in pipeline.components.items() if isinstance(value, torch.nn.Module)}


def _hollow(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """The denoising network by its name, with every weight the same zero."""
    index = _index(model)
    part = next(part for part in PARTS if index.get(part, [None])[0] is not None)
    network: Any = _shaped(getattr(diffusers, index[part][1]), model.path, part)
    zero = torch.zeros((), dtype=dtype)
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(zero.expand(value.shape), requires_grad=False))
        for name, value in module.named_buffers(recurse=False):
            module.register_buffer(name, zero.expand(value.shape).to(value.dtype))
    return {part: network}


def outlined(model: Model, *, network: torch.dtype) -> Any:
    """A pipeline whose networks are on the meta device: configurations and vocabularies are read, and no weights.

    Args:
        model: which.
        network: the denoising network's type; the others' are those of `load_pipeline`.

    Raises:
        UserError: there is none, or a configuration or vocabulary is missing.
    """
    _quieten()
    name, index = pipeline_class(model), _index(model)
    parts = dict(facts_of(name).load)
    types = {"vae": torch.float32, **dict.fromkeys(PARTS, network)}
    try:
        for part, entry in index.items():
            if part in parts or not isinstance(entry, list) or part.startswith("_"):
                continue
            if entry[0] is None:
                parts[part] = None
            elif entry[0] in ("diffusers", "transformers"):
                cls = getattr(diffusers if entry[0] == "diffusers" else transformers, entry[1], None)
                if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
                    made = _shaped(cls, model.path, part).eval().requires_grad_(False)
                    parts[part] = torch.nn.Module.to(made, types.get(part, getattr(torch, model.precision)))
        return getattr(diffusers, name).from_pretrained(model.path, **parts)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"expected the configuration of every part, and vocabularies, at model.path={model.path}, could not read them: "
            f"{in_a_line(error, 300)}"
        ) from error


def _shaped(cls: Any, path: str, part: str) -> torch.nn.Module:
    """A network on the meta device."""
    with torch.device("meta"):
        if issubclass(cls, diffusers.ModelMixin):
            return cls.from_config(cls.load_config(path, subfolder=part))
        return cls(cls.config_class.from_pretrained(path, subfolder=part))
