"""The command line: thin. Errors that the user can mend are one sentence and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysuite import config as configuration
from raysuite.errors import UserError

app = typer.Typer(
    help="Align text-to-image diffusion models by reinforcement or preference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Settings = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting; repeatable.")]
Run = Annotated[Path, typer.Argument(help="The --out of a run.")]


@app.command()
def train(
    run: Annotated[str, typer.Argument(metavar="RECIPE_OR_YAML", help="A recipe's name or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run directory [default: runs/<name>].")] = None,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Train. The same command again goes on with a run that was stopped."""
    overrides = dict(_split(setting) for setting in settings)
    config = configuration.load(run, overrides)
    directory = (out or Path("runs") / Path(run).stem).absolute()
    from raysuite.cluster import launch  # ray and torch take seconds to import: not for --help, not for a typing error
    from raysuite.progress import watch
    from raysuite.results.report import summary, write_report

    launch.preflight(config)
    if launch.claim(config, directory, sys.argv):
        console.print(f"{directory} is finished already", soft_wrap=True)
    else:
        try:
            with watch(directory, console):
                launch.train(config, directory)
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped: the same command goes on from the last checkpoint")
            raise typer.Exit(130) from None
    console.print(summary(directory))
    console.print(f"report: {write_report(directory)}", soft_wrap=True)


@app.command()
def evaluate(
    run: Run,
    checkpoint: Annotated[
        int | None, typer.Option(help="Updates of the checkpoint [default: the last]; 0 is the base.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Pictures a prompt.")] = None,
) -> None:
    """Evaluate a checkpoint on the run's fixed prompts and seeds."""
    from raysuite.cluster import launch
    from raysuite.progress import watch
    from raysuite.results.report import summary

    with watch(run, console):
        launch.evaluate(run.absolute(), updates=checkpoint, samples=samples)
    console.print(summary(run))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The --out of each run.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file. By default report.html in the run, or comparison.html beside several."),
    ] = None,
) -> None:
    """Write a page about one run, or about several side by side."""
    from raysuite.results.report import summary, write_report
    from raysuite.results.side_by_side.report import comparison_summary, write_comparison

    if len(runs) == 1:
        console.print(summary(runs[0]))
        path = write_report(runs[0], out)
    else:
        console.print(comparison_summary(runs), soft_wrap=True, markup=False)
        path = write_comparison(runs, out)
    console.print(f"report: {path}", soft_wrap=True)


@app.command()
def recipes() -> None:
    """List the runs that ship with the package."""
    for name, line in configuration.recipes().items():
        console.print(f"[bold]{name:24}[/bold] {line}")


def _split(setting: str) -> tuple[str, str]:
    path, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"expected --set path=value, got {setting!r}: put an equals sign between them")
    return path, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(args=list(arguments) if arguments is not None else None)
    except UserError as error:
        Console(stderr=True).print(f"raysuite: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
