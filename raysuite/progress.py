"""What a run is doing, for the person who waits for it: a bar on a terminal, a line an update elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

POLL_SECONDS = 0.3
DOING = {"rollout": "drawing pictures", "learn": "learning", "evaluate": "evaluating"}


@contextmanager
def watch(directory: Path, console: Console) -> Iterator[None]:
    """Show the progress that a run writes to `directory` until the block ends."""
    (directory / "progress.json").unlink(missing_ok=True)
    stop = threading.Event()
    show = _bar if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(directory, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(directory: Path, console: Console, stop: threading.Event) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting Ray and loading the model", total=None, detail="")
        while not stop.wait(POLL_SECONDS):
            state = _read(directory)
            if state:
                total, images = state["updates"], state.get("images_total")
                share = state.get("images", 0) / images if images and state["phase"] == "rollout" else 0.0
                progress.update(
                    task,
                    description=f"update {min(state['update'] + 1, total)} of {total}",
                    total=total,
                    completed=state["update"] + share / 2,
                    detail=_detail(state),
                )


def _lines(directory: Path, console: Console, stop: threading.Event) -> None:
    said: tuple[str, int] | None = None
    while not stop.wait(POLL_SECONDS):
        state = _read(directory)
        if state and (state["phase"], state["update"]) != said and state["phase"] in ("rollout", "evaluate"):
            said = (state["phase"], state["update"])
            console.print(f"update {state['update']} of {state['updates']}: {_detail(state)}", highlight=False)


def _detail(state: dict[str, Any]) -> str:
    words = [DOING.get(state["phase"], state["phase"])]
    if state.get("images_total"):
        words.append(f"{state['images']}/{state['images_total']} images")
    if state.get("seconds_left"):
        minutes, seconds = divmod(int(state["seconds_left"]), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(words)


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / "progress.json").read_text())
    except (OSError, json.JSONDecodeError):  # not there yet
        return None
