"""Published reward weights that are single files, once, into directories of safetensors that rewards read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor

from raysuite.errors import UserError
from raysuite.places import replacing
from raysuite.rewards import aesthetic, hps, hps_v3, image_reward
from raysuite.rewards.network import load


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it, and what a directory made of it holds."""

    weights: Callable[[Mapping[str, Any]], dict[str, Tensor]]
    """Its weights under our names; refuses another file."""
    file: str
    """Where they go."""
    configuration: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    tokenizer: str | None = None
    """Hub id of the tokenizer that it was trained with."""
    added: tuple[str, ...] = ()
    """Special tokens that it was given."""


PUBLISHED = {
    "aesthetic": Published(aesthetic.convert, aesthetic.HEAD),
    "hps_v2": Published(hps.convert, "model.safetensors", hps.configuration, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "image_reward": Published(
        image_reward.convert,
        "model.safetensors",
        image_reward.configuration,
        "bert-base-uncased",
        ("[DEC]", "[ENC]"),
    ),
}


NAMES = (*sorted([*PUBLISHED, "hps_v3"]),)
"""Of rewards whose published weights are converted."""


def convert(name: str, file: Path, out: Path, *, tokenizer: str | None = None, template: Path | None = None) -> Path:
    """Make the directory that the reward `name` reads.

    Args:
        name: of a reward whose weights are published as a pickled file.
        file: that file; no code in it is run.
        out: the directory, which must not be there.
        tokenizer: hub id or directory of its tokenizer; the published one by default.
        template: of hps_v3, the file of its package with the instruction.

    Raises:
        UserError: the file is not there or is another one, or `out` is there already.
    """
    if name not in NAMES:
        raise UserError(
            f"expected one of {', '.join(NAMES)} to convert, got {name!r}: other rewards read a hub id or a directory as it is"
        )
    if out.exists():
        raise UserError(f"expected nothing at {out}, found something: name another --out, or remove it")
    if (template is None) == (name == "hps_v3"):
        raise UserError(
            f"expected --template for hps_v3, and for no other reward, got {template} for {name}: it is "
            "hpsv3/dataset/data_collator_qwen.py in the wheel of hpsv3 (pip download hpsv3==1.0.0 --no-deps)"
        )
    if template is not None:
        return _hps_v3(file, out, tokenizer or hps_v3.BASE, template)
    if tokenizer is not None and PUBLISHED[name].tokenizer is None:
        raise UserError(f"expected no --tokenizer for {name}, which reads no text, got {tokenizer}: leave it out")
    published, state = PUBLISHED[name], _read(file)
    try:
        weights = published.weights(state)
        configuration = published.configuration(state) if published.configuration else None
    except KeyError as error:
        raise UserError(f"expected the weights {error} in {file}, it has none: download it again") from error
    found = None
    if published.tokenizer:
        source = tokenizer or published.tokenizer
        found = load(
            lambda: AutoTokenizer.from_pretrained(source),
            "a tokenizer",
            source,
            "name its hub id or directory with --tokenizer",
        )
        found.add_special_tokens(
            {"additional_special_tokens": [t for t in published.added if t not in found.get_vocab()]}
        )
    with replacing(out) as temporary:
        temporary.mkdir()
        if configuration is not None:
            side = (configuration.get("vision") or configuration["vision_config"])["image_size"]
            CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(temporary)
            if name == "hps_v2":
                CLIPConfig(**_ends(configuration, found)).save_pretrained(temporary)
            else:
                (temporary / "config.json").write_text(json.dumps(configuration, indent=2))
        if found is not None:
            found.save_pretrained(temporary)
        save_file(weights, temporary / published.file, metadata={"format": "pt"})
    return out


def _hps_v3(file: Path, out: Path, base: str, template: Path) -> Path:
    text, state = hps_v3.template(template), _read(file)
    with replacing(out) as temporary:
        temporary.mkdir()
        try:
            hps_v3.write(state, text, temporary, base)
        except KeyError as error:
            raise UserError(f"expected the weights {error} in {file}, it has none: download it again") from error
    return out


def _ends(configuration: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """With the tokens at which a prompt begins and ends: the second is where its features are read."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {
        **configuration,
        "text_config": {**configuration["text_config"], **ends, "pad_token_id": tokenizer.pad_token_id},
    }


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"expected a file at {file}, could not read it ({error.strerror}): check the path") from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(
            f"expected weights that torch saved in {file}, got something else or more than weights: download it again"
        ) from error
    if not isinstance(state, Mapping):
        raise UserError(f"expected named weights in {file}, got {type(state).__name__}: name the published file")
    return state
