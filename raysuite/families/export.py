"""A LoRA of a run in the form that tools other than diffusers read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from raysuite.errors import UserError
from raysuite.families.pipeline import LORA_FILE
from raysuite.places import replacing

HEADER = "lora_adapter_metadata"
"""Where diffusers' files say what rank and alpha are."""
MATRICES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def to_kohya(model: Path, file: Path) -> int:
    """Write the LoRA of a checkpoint's `model` directory as kohya's tools do, and return how many layers it has.

    Each layer has `lora_down`, `lora_up` and `alpha`, of which readers make up @ down x alpha / rank: the strength with which it was
    trained. Layers of U-Nets are called `lora_unet_<name with underscores>` and have the common alpha, since diffusers passes over
    alphas that differ. Those of transformers have their names in diffusers, `transformer.<name>`, and their rank as alpha, since
    diffusers passes over every alpha of FLUX.1. What a layer's strength is beyond that is in its `lora_up`.

    Raises:
        UserError: the checkpoint has no LoRA, or one of another kind.
    """
    source = model / LORA_FILE
    if not source.is_file():
        raise UserError(
            f"expected a LoRA in {model}, found none: a run with parameters.kind=all saves whole pipelines, and one of prompts no LoRA"
        )
    with safetensors.safe_open(source, framework="pt") as stored:
        said: dict[str, Any] = json.loads((stored.metadata() or {})[HEADER])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    found: dict[str, Tensor] = {}
    layers = set()
    for name, tensor in tensors.items():
        layer, _, matrix = name.removesuffix(".weight").rpartition(".")
        if matrix not in MATRICES:
            raise UserError(
                f"expected a LoRA of two matrices a layer in {source}, got {name}: kohya's form has no place for it"
            )
        part, _, inside = layer.partition(".")
        called = f"lora_unet_{inside.replace('.', '_')}" if part == "unet" else layer
        if matrix == "lora_B":
            rank = tensor.shape[1]
            alpha = float(said[f"{part}.lora_alpha"]) if part == "unet" else float(rank)
            tensor = tensor * (_strength(said, part, inside, rank) * rank / alpha)
            found[f"{called}.alpha"] = torch.tensor(alpha)
        found[f"{called}.{MATRICES[matrix]}.weight"] = tensor.contiguous()
        layers.add(layer)
    with replacing(file) as temporary:
        safetensors.torch.save_file(found, temporary)
    return len(layers)


def _strength(said: Mapping[str, Any], part: str, layer: str, rank: int) -> float:
    """What a layer's up @ down is multiplied with: alpha over rank. A LoRA that was begun from a file may have an alpha for each
    layer, found as peft does, and be rank-stabilised, where alpha is over the rank's root.
    """
    pattern = said.get(f"{part}.alpha_pattern") or {}
    alpha = float(pattern.get(get_pattern_key(pattern, layer), said[f"{part}.lora_alpha"]))
    return alpha / (math.sqrt(rank) if said.get(f"{part}.use_rslora") else rank)
