"""What several commands share: their common options, where they write, and how they speak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysuite import places
from raysuite.errors import UserError

console = Console()
Settings = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting; repeatable.")]
Run = Annotated[Path, typer.Argument(help="The --out of a run.")]


def place(directory: Path) -> Path:
    """Where a command works, whole.

    Raises:
        UserError: it cannot be written, or would lie in the copy of the code from which a submitted job runs, and vanish with it.
    """
    if not (directory.is_absolute() or str(directory).startswith("~")) and places.in_job():
        raise UserError(
            f"expected an absolute path in a submitted job, got {directory}: it would lie in Ray's copy of the code, which does not "
            "outlive the job; name a directory that all machines see, such as /shared/run"
        )
    return places.directory(directory)


def say(text: str) -> None:
    """Tell a user something, as it stands: names in brackets are no markup, and long lines stay whole."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def terminal_width() -> int | None:
    """Characters of the terminal; in a file or a pipe lines may have any length."""
    return console.width if console.is_terminal else None


def begin(command: str, directory: Path) -> None:
    """Say at once what is going on: what it needs takes seconds to load."""
    say(f"{command}: {directory}")


def by_path(given: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Values by path, of an option that is given as `path=value`. Of `--set` the last word counts.

    Raises:
        UserError: one of them has no equals sign, or a path comes again in another option.
    """
    found = {}
    for setting in given:
        path, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"expected {option} path=value, got {setting!r}: put an equals sign between them")
        if path in found and option != "--set":
            raise UserError(f"expected every path of {option} once, got {path} again: put all its values into one list")
        found[path] = value
    return found


def numbers(option: str, given: str) -> list[float]:
    """Those of `0,0.5,1`.

    Raises:
        UserError: one of them is none.
    """
    try:
        return [float(number) for number in given.split(",")]
    except ValueError as error:
        raise UserError(f"expected numbers with commas between them for {option}, got {given}: correct it") from error
