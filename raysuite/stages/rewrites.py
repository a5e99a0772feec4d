"""What a writer made of a run's prompts, kept, and where writers lie. Who opens one and asks it is in `writer`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.places import replacing
from raysuite.rewritten import FILE

BUNDLED = "scenes-writer"
"""The writer that ships with the package, by name."""
DECIDES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
"""How files end that decide what a writer writes: weights, settings and the tokenizer's."""


def place_of(name: str) -> Path | str:
    """Where a writer lies: the bundled one's directory, that of `writer train`, or the name as it is (a directory, a hub's)."""
    if name == BUNDLED:
        return Path(__file__).parents[1] / "writer" / BUNDLED.replace("-", "_")
    trained = Path(name) / "writer"
    return trained if trained.is_dir() else name


def digest_of(name: str) -> str | None:
    """A digest of a writer's files, by which it is known again; None where they are on a hub."""
    files = sorted(path for path in Path(place_of(name)).glob("*") if path.suffix in DECIDES)
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest() if files else None


def write(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep rewrites."""
    with replacing(directory / FILE) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def refuse_writer(config: RunConfig, what: str) -> None:
    """Refuse a writer where prompts are not rewritten.

    Raises:
        UserError: there is one.
    """
    if config.prompts.writer is not None:
        raise UserError(
            f"expected no prompts.writer for {what}, which does not rewrite prompts, got {config.prompts.writer}: leave it out, or "
            "name a file of rewritten prompts"
        )
