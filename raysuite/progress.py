"""What a run is doing, for the person who waits for it: a bar on a terminal, a line an update elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from raysuite.background import meanwhile
from raysuite.sweeps.trials import ENDED

POLL_SECONDS = 0.3
DOING = {
    "choose": "choosing rewrites",
    "rollout": "drawing pictures",
    "learn": "learning",
    "evaluate": "evaluating",
    "compile": "compiling",
}


@contextmanager
def watch(directory: Path, console: Console) -> Iterator[None]:
    """Show the progress that a run writes to `directory` until the block ends."""
    (directory / "progress.json").unlink(missing_ok=True)
    show = _bar if console.is_terminal else _lines
    with meanwhile(lambda stop: show(directory, console, stop)):
        yield


@contextmanager
def watch_sweep(directory: Path, console: Console) -> Iterator[None]:
    """Show how far a sweep in `directory` is until the block ends: runs that ended, runs that go on, the best so far.

    What its book says as the block begins is of an earlier part, and not told again.
    """
    said = {trial["name"]: trial["status"] for trial in _read(directory, "trials.json") or []}
    with meanwhile(lambda stop: _sweep(directory, said, console, stop)):
        yield


@contextmanager
def watch_steps(directory: Path, what: str, console: Console) -> Iterator[None]:
    """Show the steps that a training in `directory` counts until the block ends."""
    told = directory / "progress.json"
    told.unlink(missing_ok=True)  # of an earlier attempt
    try:
        with Counting(what, "steps", console) as counting, meanwhile(lambda stop: _steps(directory, counting, stop)):
            yield
    finally:
        told.unlink(missing_ok=True)


class _Warnings:
    """Says every warning of the run's guards once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: set[str] = set()

    def say(self, state: dict[str, Any]) -> None:
        for warning in state.get("warnings", ()):
            if warning not in self._said:
                self._said.add(warning)
                self._console.print(
                    f"WARNING: {warning}", style="yellow", highlight=False, soft_wrap=True, markup=False
                )


def _bar(directory: Path, console: Console, stop: threading.Event) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    warnings = _Warnings(console)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting Ray and loading the model", total=None, detail="")
        while not stop.wait(POLL_SECONDS):
            state = _read(directory)
            if state:
                warnings.say(state)
                total, images = state["updates"], state.get("images_total")
                share = state.get("images", 0) / images if images and state["phase"] == "rollout" else 0.0
                progress.update(
                    task,
                    description=_place(min(state["update"] + 1, total or state["update"] + 1), total),
                    total=total,
                    completed=state["update"] + share / 2,
                    detail=_detail(state),
                )


def _lines(directory: Path, console: Console, stop: threading.Event) -> None:
    said: tuple[str, int] | None = None
    warnings = _Warnings(console)
    while not stop.wait(POLL_SECONDS):
        state = _read(directory)
        if state:
            warnings.say(state)
        if state and (state["phase"], state["update"]) != said and state["phase"] in ("choose", "rollout", "evaluate"):
            said = (state["phase"], state["update"])
            console.print(f"{_place(state['update'], state['updates'])}: {_detail(state)}", highlight=False)


def _place(update: int, total: int | None) -> str:
    """A run that ends by its budget does not know at first how many updates it will have."""
    return f"update {update}" if total is None else f"update {update} of {total}"


def _detail(state: dict[str, Any]) -> str:
    words = [DOING.get(state["phase"], state["phase"])]
    if state.get("images_total"):
        words.append(f"{state['images']}/{state['images_total']} images")
    if state.get("blocks_total"):
        words.append(f"{state['blocks']}/{state['blocks_total']} batches")
    if state.get("scoring", 0) >= 1:
        words.append(f"{state['scoring']:.0f} s a block for scores")
    if state.get("seconds_left"):
        minutes, seconds = divmod(int(state["seconds_left"]), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(words)


def _read(directory: Path, name: str = "progress.json") -> Any:
    try:
        return json.loads((directory / name).read_text())
    except (OSError, json.JSONDecodeError):  # not there yet
        return None


def _looks(stop: threading.Event) -> Iterator[None]:
    """Now and then until the work ends, and once more: what happened last is told, too."""
    while not stop.wait(POLL_SECONDS):
        yield
    yield


def _steps(directory: Path, counting: Counting, stop: threading.Event) -> None:
    shown: int | None = None
    for _ in _looks(stop):
        state = _read(directory)
        if not state:
            continue
        if shown is None:
            shown = state["began"]
            counting.begin(state["steps"], done=shown)
        for _ in range(shown, state["done"]):
            counting.advance()
        shown = max(shown, state["done"])  # a training that began again from its last epoch does steps twice


def _sweep(directory: Path, said: dict[str, str], console: Console, stop: threading.Event) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=None, detail="starting Ray")
        for _ in _looks(stop):
            trials = _read(directory, "trials.json") or []
            ended = [t for t in trials if t["status"] in ENDED]
            going = [t["name"] for t in trials if t["status"] == "running"]
            progress.update(
                task, total=len(trials) or None, completed=len(ended), detail=_going(directory, going, trials)
            )
            for trial in trials:
                if said.get(trial["name"], "waiting") != trial["status"]:
                    said[trial["name"]] = trial["status"]
                    console.print(
                        f"{trial['name']}: {_how(trial)} ({len(ended)} of {len(trials)} ended, {len(going)} running)",
                        highlight=False,
                        markup=False,
                        soft_wrap=True,
                    )


def _how(trial: dict[str, Any]) -> str:
    reached = f", held-out reward {trial['held_out']:.4g}" if trial["held_out"] is not None else ""
    settings = ", ".join(f"{path}={value}" for path, value in (trial["settings"] or {}).items())
    words = {
        "running": f"began{f' with {settings}' if settings else ''}",
        "done": f"done{reached}",
        "waiting": f"{trial['message'] or 'stopped'}, goes on with the sweep",
    }
    return words.get(trial["status"]) or f"{trial['status']}: {trial['message']}"


def _going(directory: Path, names: list[str], trials: list[dict[str, Any]]) -> str:
    words = []
    for name in names[:3]:
        state = _read(directory / "trials" / name)
        words.append(f"{name} {_place(state['update'], state['updates'])}" if state else f"{name} starting")
    if len(names) > 3:
        words.append(f"{len(names) - 3} more")
    ends = [t for t in trials if t["held_out"] is not None and t["status"] == "done"]
    if ends:
        best = max(ends, key=lambda t: t["held_out"])
        words.append(f"best {best['held_out']:.3g} {best['name']}")
    return ", ".join(words)


class Counts(Protocol):
    """Is told how far counted work is."""

    def begin(self, total: int, *, done: int) -> None:
        """There is so much, and so much of it was there before."""

    def advance(self) -> None:
        """One more is done."""


class Counting:
    """Counted work of known length: a bar with the time left on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, unit: str, console: Console) -> None:
        self._what, self._unit, self._console = what, unit, console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Counting:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, total: int, *, done: int) -> None:
        """Say how much there is, and how much of it was there before."""
        self._bar.update(self._task, total=total, completed=done)
        if done and not self._console.is_terminal:
            self._console.print(
                f"{self._what}: {done} of {total} {self._unit} were there", highlight=False, markup=False
            )

    def advance(self) -> None:
        """One more is done."""
        self._bar.advance(self._task)
        task = self._bar.tasks[0]
        total, done = int(task.total or 0), int(task.completed)
        if not self._console.is_terminal and (done == total or done % max(1, total // 10) == 0):
            self._console.print(f"{self._what}: {done} of {total} {self._unit}", highlight=False, markup=False)
