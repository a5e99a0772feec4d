"""A page of pictures in rows and columns, each with its name."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raysuite.results.page import PIXELATED_BELOW, write_page


def write_grid(
    path: Path,
    *,
    title: str,
    said: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
) -> Path:
    """Write the page.

    Args:
        path: the file.
        title: of the page.
        said: a sentence about what varies along rows and columns.
        columns: their names.
        rows: name, and pictures uint8 (H, W, 3) as many as columns.

    Raises:
        UserError: a page cannot be written there.
    """
    cells = [(name, [_cell(picture) for picture in pictures]) for name, pictures in rows]
    return write_page("grid.html.jinja", {"title": title, "said": said, "columns": columns, "rows": cells}, path)


def _cell(picture: np.ndarray) -> dict[str, object]:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    return {"data": base64.b64encode(data.getvalue()).decode(), "pixelated": picture.shape[1] < PIXELATED_BELOW}
