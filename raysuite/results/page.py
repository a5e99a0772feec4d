"""What every page has in common: its file, how it writes numbers, pictures, settings and costs."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.ticker import EngFormatter
from PIL import Image

from raysuite import places
from raysuite.errors import UserError
from raysuite.kernel.stats import Interval
from raysuite.results.numerals import decimals, number, with_interval
from raysuite.results.run import Picture, Run, flat

SPENT = "network evaluations spent on training"
THUMBNAIL_PIXELS = 192
"""Of the sides of a picture that a page shows small, at most."""
PIXELATED_BELOW = 129
"""Pixels: smaller pictures are enlarged without smoothing."""


def write_page(template: str, content: Mapping[str, Any], path: Path) -> Path:
    """Fill a template and put it in place whole, so that a page is never half a page.

    Raises:
        UserError: a page cannot be written there.
    """
    path = places.file(path)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": with_interval, "short": short, "duration": duration}
    html = environment.get_template(template).render(content)
    with places.replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def table(rows: Sequence[Sequence[str]], width: int | None = None, *, names: int = 1) -> list[str]:
    """Lines of a table for the terminal, its columns aligned.

    Args:
        rows: of cells, the header first.
        width: of the terminal in characters. A wider table is continued below itself, so that no cell is broken. None where lines
            may have any length.
        names: how many columns on the left say what a row is about; they are repeated.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    parts: list[list[int]] = [[]]
    for column in range(names, len(columns)):
        together = [*range(names), *parts[-1], column]
        if width is not None and parts[-1] and sum(widths[c] + 2 for c in together) - 2 > width:
            parts.append([])
        parts[-1].append(column)
    lines: list[str] = []
    for part in parts:
        shown = [*range(names), *part]
        lines += [""] * bool(lines)
        lines += ["  ".join(row[c].ljust(widths[c]) for c in shown).rstrip() for row in rows]
    return lines


def picture_with_marks(run: Run, picture: Picture) -> dict[str, Any]:
    """A picture for the page, with its scores as marks in the order of the run's rewards."""
    if picture.png[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(
            f"expected PNG pictures in {run.directory / 'images'}, {picture.split}-{picture.index} of update "
            f"{picture.update} is none: copy it again from where the run was"
        )
    scores = run.scores.where(update=picture.update, split=picture.split, prompt=picture.prompt, sample=picture.sample)
    marks = [
        (reward, float(value), _passes(run, reward)) for reward, value in zip(scores.reward, scores.value, strict=True)
    ]
    return {
        "policy": picture.update,
        "data": base64.b64encode(picture.png).decode(),
        "pixelated": int.from_bytes(picture.png[16:20]) < PIXELATED_BELOW,
        "marks": sorted(marks, key=lambda mark: run.rewards.index(mark[0])),
    }


def thumbnail(png: bytes) -> dict[str, Any]:
    """A picture for a page, no larger than it is shown."""
    if int.from_bytes(png[16:20]) > THUMBNAIL_PIXELS:
        file = io.BytesIO()
        with Image.open(io.BytesIO(png)) as image:
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            image.save(file, "PNG")
        png = file.getvalue()
    return {
        "data": base64.b64encode(png).decode(),
        "pixelated": int.from_bytes(png[16:20]) < PIXELATED_BELOW,
    }


def _passes(run: Run, reward: str) -> bool:
    """Whether a reward only ever says yes (1) or no (0)."""
    return bool(np.isin(run.scores.where(reward=reward).value, (0.0, 1.0)).all())


def costs(ledger: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What, training, evaluation."""
    if not ledger:
        return []
    rows = [
        ("forward passes", "forward"),
        ("backward passes", "backward"),
        ("pictures decoded", "images_decoded"),
        ("pictures scored", "images_scored"),
    ]
    training, evaluation = ledger["training"], ledger["evaluation"]
    total = ("network evaluations", *(side["forward"] + 2 * side["backward"] for side in (training, evaluation)))
    found = [(label, training[key], evaluation[key]) for label, key in rows]
    return [*found[:2], total, *found[2:]]


def redone(ledger: Mapping[str, Any]) -> str | None:
    """What was done in vain and again, if anything was."""
    lost = ledger.get("redone", {})
    if not any(lost.values()):
        return None
    evaluations = lost["forward"] + 2 * lost["backward"]
    return (
        f"{evaluations:,} network evaluations, {lost['images_scored']:,} pictures scored, {duration(lost['seconds'])}"
    )


def origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of where its numbers come from: `command`, `dirty`, and the rest by path as `origin`."""
    rest = {name: value for name, value in provenance.items() if name != "command"}
    return {
        "command": command(provenance),
        "dirty": provenance.get("dirty"),
        "origin": [(path, value) for path, value in flat(rest) if value is not None],
    }


def command(provenance: Mapping[str, Any]) -> str | None:
    """The command as it is typed; None where none is told."""
    program, *words = provenance.get("command") or [None]
    return shlex.join([Path(program).name, *words]) if program else None


def choosing(run: Run) -> str | None:
    """How many rewrites were dropped where pictures decided, and what these cost."""
    seen = [row for row in run.rewrites if "written" in row]
    if not seen:
        return None
    evaluations = sum(row["network_evaluations"] for row in seen)
    typed = sum(row["rewrite"] == row["user"] for row in seen)
    return f"{typed} of {len(seen)} rewrites were drawn worse than what was typed, and dropped: {evaluations:,} network evaluations"


def limits(interval: Interval, places: int | None = None) -> str:
    """The limits alone: [0.09, 0.19]."""
    if np.isnan(interval.low):
        return "no interval"
    places = decimals(interval) if places is None else places
    return f"[{number(interval.low, places)}, {number(interval.high, places)}]"


def short(value: float) -> str:
    """1234567 as 1.23 M."""
    return str(EngFormatter(sep="\N{NARROW NO-BREAK SPACE}")(float(f"{value:.3g}")))


def duration(seconds: float) -> str:
    """75 as 1 min 15 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {int(seconds % 60)} s" if not hours else f"{hours} h {minutes % 60} min"
