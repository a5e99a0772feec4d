"""Which VAE, text encoders and tokenizers a pipeline has: what pictures and prompts become latents and states with."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from raysuite.config import Model
from raysuite.errors import UserError, in_a_line
from raysuite.families.driver import OURS
from raysuite.families.facts import facts_of
from raysuite.families.loading import named_class

KINDS = ("vae", "text_encoder", "tokenizer")
"""What names of components begin with (`text_encoder_2` is one)."""
DECODING = {"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None}
"""A VAE's settings that latents depend on besides its weights, with diffusers' defaults."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
PROBE = ("", "red", "CIRCLES", "a blue_square,", "(1.5x)", "naïve café", "図")
"""What tokenizers that share a vocabulary but not its use would cut differently."""


@cache
def digests(path: str, variant: str | None) -> dict[str, str]:
    """A digest of each component that encodes, by its name: 16 hexadecimal digits.

    They are of what components do, not of their files: the same weights give the same digest from one file or several, under old
    names and new, in float32 or in a narrower type without loss, and after a pipeline was saved again.

    Args:
        path: of a pipeline's directory, or a hub id.
        variant: of the weights, such as fp16.

    Raises:
        UserError: a component's files are missing or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        entries = DiffusionPipeline.load_config(path).items()
        # the network's gigabytes are not read here
        unread = {name: None for name, entry in entries if isinstance(entry, list) and not name.startswith(KINDS)}
        folder = Path(DiffusionPipeline.download(path, variant=variant, use_safetensors=True, **unread))
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    found = {}
    for name, (_, kind) in sorted((n, v) for n, v in index.items() if n.startswith(KINDS) and v and v[0]):
        try:
            parts = (
                _tokenizer(folder / name, kind) if name.startswith("tokenizer") else _network(folder / name, variant)
            )
            found[name] = _digest(parts)[:16]
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise UserError(
                f"expected a complete {name} with safetensors weights at model.path={path}, could not read it: "
                f"{in_a_line(error, 300)}"
            ) from error
    return found


def arguments(model: Model) -> dict[str, Any]:
    """The arguments that a pipeline's call hands on to its text encoders, with their defaults where the model says nothing."""
    name = named_class(model)
    cls = getattr(diffusers, name)
    handed_on = {*inspect.signature(cls.encode_prompt).parameters}
    if name == "StableDiffusionPipeline":  # which asks its encoders in other words as soon as its own call is asked
        handed_on |= {*model.arguments}
    given = {**facts_of(name).call, **model.arguments}
    return {
        argument: given.get(argument, known.default)
        for argument, known in inspect.signature(cls.__call__).parameters.items()
        if argument in handed_on and argument not in OURS
    }


def _network(folder: Path, variant: str | None) -> Iterator[bytes]:
    """A VAE's settings and every tensor once, whatever its name: old names are renamed and tied weights are dropped when a model is
    saved again.
    """
    config = json.loads((folder / "config.json").read_text())
    yield json.dumps([config.get(name, default) for name, default in DECODING.items()]).encode()
    tensors = set()
    for file in weights_of(folder, variant):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if (tensor := stored.get_tensor(name)).is_floating_point():  # others count positions
                    tensors.add(_digest([tensor.float().flatten().numpy().data]))
    yield from (tensor.encode() for tensor in sorted(tensors))


def weights_of(folder: Path, variant: str | None) -> list[Path]:
    """The files that are loaded: those of the variant, where there are any."""
    of: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        _, _, kind = file.stem.partition(".")
        of.setdefault(kind.partition("-")[0] or None, []).append(file)
    files = of.get(variant) or of.get(None)
    if not files:
        raise OSError(f"no safetensors files in {folder}")
    return files


def has_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer's directory has the words that it knows."""
    return any(file.name in VOCABULARIES or file.suffix == ".model" for file in folder.glob("*"))


def _tokenizer(folder: Path, kind: str) -> Iterator[bytes]:
    """The vocabulary, the longest prompt, and the numbers of some words."""
    if not has_vocabulary(folder):
        raise OSError(f"no vocabulary in {folder}")  # transformers would make an empty one
    tokenizer = getattr(transformers, kind).from_pretrained(folder)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # FLUX.2-dev has it inside a processor
    used = [tokenizer.model_max_length, tokenizer.pad_token_id, *(tokenizer(word).input_ids for word in PROBE)]
    yield json.dumps([sorted(tokenizer.get_vocab().items()), used]).encode()


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
