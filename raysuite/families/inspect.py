"""All of a pipeline's directory that can be known in a second: every part's configuration, vocabularies, headers of weights, sampler.

A model that cannot be loaded is told of before Ray starts and a run claims its directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError, safe_open

from raysuite.errors import UserError
from raysuite.families.encoders import has_vocabulary, weights_of
from raysuite.families.facts import facts_of
from raysuite.families.tables import prediction_of

PROCESSORS = ("Processor", "FeatureExtractor")
"""Ends of names of classes that have settings and no weights."""


def inspect(folder: Path, variant: str | None) -> None:
    """Look at a pipeline's directory, whose model_index.json names a class that a family handles. No tensor is read.

    Raises:
        UserError: a part is missing, is not readable, or is one that no sampler of ours is for.
    """
    index = read_object(folder / "model_index.json")
    left_out = {name for name, value in facts_of(str(index["_class_name"])).load.items() if value is None}
    for name, entry in index.items():
        if name.startswith("_") or name in left_out or not isinstance(entry, list) or None in entry:
            continue
        part, kind = folder / name, str(entry[-1])
        if not part.is_dir():
            raise UserError(
                f"expected the {name} of the pipeline in {part}, found nothing there: copy the whole directory of the model"
            )
        if name.startswith("tokenizer"):
            if not has_vocabulary(part):
                raise UserError(f"expected a vocabulary in {part}, found none: copy the whole directory of the model")
        elif name == "scheduler":
            _check_scheduler(part, kind)
        elif not kind.endswith(PROCESSORS):
            read_object(part / "config.json")
            _check_weights(part, variant)


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file says that has names.

    Raises:
        UserError: it is missing, damaged or something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected settings in {file}, they are missing or damaged ({error}): copy the whole directory of the model"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"expected an object in {file}, got {type(found).__name__}: copy the file again")
    return found


def _check_scheduler(part: Path, kind: str) -> None:
    settings: Mapping[str, Any] = read_object(part / "scheduler_config.json")
    cls = getattr(diffusers, kind, None)
    if cls is None:
        raise UserError(f"expected a scheduler of diffusers in {part.parent}, got {kind}: it has none of that name")
    try:
        scheduler = cls.from_config(settings)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"expected settings of {kind} in {part}, it does not take them: {error}") from error
    try:
        prediction_of(scheduler)
    except UserError as error:
        raise UserError(f"{error} (in {part})") from error


def _check_weights(part: Path, variant: str | None) -> None:
    """Headers of safetensors say which tensors there are, and how long the file has to be."""
    try:
        files = weights_of(part, variant)
    except OSError as error:
        pickled = [file.name for file in (*part.glob("*.bin"), *part.glob("*.ckpt"))]
        found = f"only {', '.join(sorted(pickled))}, which would have to be unpickled" if pickled else "none"
        raise UserError(
            f"expected safetensors weights in {part}, found {found}: save the model again with safe_serialization=True"
        ) from error
    for listing in part.glob("*.safetensors.index.json"):
        named = set(read_object(listing).get("weight_map", {}).values())
        if missing := sorted(named - {file.name for file in part.iterdir()}):
            raise UserError(
                f"expected {missing[0]} in {part}, which {listing.name} names, found nothing: copy the whole directory of the model"
            )
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"expected whole weights in {file}, it was cut short or is something else ({error}): copy it again"
            ) from error
