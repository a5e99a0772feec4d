"""The command line: thin. Errors that the user can mend are one sentence and exit status 2."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from raysuite.cli import directions, evaluation, in_context, prompts, rewards, runs, sets, writer
from raysuite.cli.common import console, say
from raysuite.errors import Stopped, UserError, is_full
from raysuite.signals import Interrupted, heeded
from raysuite.terminal import speak_plainly

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = {
    "Align": (runs.train, runs.sweep, runs.plan, runs.recipes, runs.settings),
    "Make preference sets": (sets.encode, sets.pairs),
    "See what came of it": (runs.report, runs.compare, runs.track, evaluation.evaluate, evaluation.suites, runs.export),
    "Find out why": (directions.directions, in_context.in_context),
}
"""Commands, as --help shows them."""
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, group in {"prompts": prompts, "writer": writer, "rewards": rewards}.items():
    app.add_typer(group.app, name=name, rich_help_panel="Rewards, and what else can be trained")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"raysuite {importlib.metadata.version('raysuite')}")
        raise typer.Exit


@app.callback()
def raysuite(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is, and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Align text-to-image diffusion models by reinforcement or preference."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit status."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")  # what they log as errors comes as a sentence
    speak_plainly()
    try:
        with heeded(_leave):
            app(args=list(arguments) if arguments is not None else None)
    except UserError as error:
        _say(error)
        if isinstance(error, Stopped) and error.left:
            os._exit(error.status)
        sys.exit(error.status)
    except OSError as error:
        if not is_full(error):
            raise
        full = UserError(
            f"expected room to write, found none ({error}): make room there, and give the same command again"
        )
        _say(full)
        sys.exit(full.status)
    except Interrupted as interrupted:
        stopped = _stopped(interrupted.signum)
        _say(stopped)
        sys.exit(stopped.status)


def _say(error: UserError) -> None:
    Console(stderr=True).print(f"raysuite: {error}", style="red", highlight=False, soft_wrap=True, markup=False)


def _stopped(signum: signal.Signals) -> Stopped:
    return Stopped(f"stopped by {signum.name}: the same command goes on with what is there", signum)


def _leave(signum: signal.Signals) -> None:
    """End the process where it stands."""
    console.show_cursor()  # a bar hides it
    stopped = _stopped(signum)
    _say(stopped)
    os._exit(stopped.status)
