"""What a writer made of a run's prompts, read: by runs, and by reports, which need no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysuite.errors import UserError

FILE = "rewrites.jsonl"
"""In a run's directory: a row a text, what the user typed under `user` and what the model is given under `rewrite`. Where both were
drawn first to see which is better, what the writer wrote is under `written`, mean rewards of `pictures` of each under `rewards`, and
what these cost under `network_evaluations`."""


def rows(directory: Path) -> list[dict[str, Any]]:
    """All that is kept of rewrites; none where there are none yet.

    Raises:
        UserError: the file is damaged.
    """
    file = directory / FILE
    try:
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        return [{**row, "user": str(row["user"]), "rewrite": str(row["rewrite"])} for row in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected {file} as the run wrote it, it is damaged ({error}): copy it back from where it is whole"
        ) from error


def read(directory: Path) -> dict[str, str]:
    """Rewrites by what the user typed; none where there are none yet.

    Raises:
        UserError: the file is damaged.
    """
    return {row["user"]: row["rewrite"] for row in rows(directory)}
