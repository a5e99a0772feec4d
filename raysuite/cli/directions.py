"""The command that measures how far gradients agree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raysuite.cli.common import Settings, begin, by_path, console, place, say, terminal_width


def directions(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_RECIPE", help="A run, a recipe's name or a YAML file.")],
    objectives: Annotated[
        str,
        typer.Option(
            help="Comma-separated: objectives (your own: package.module:Class), or recipes, whose objectives are meant."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the study.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Updates of the run's policy, or all \\[default: the last]; 0 is the base.")
    ] = None,
    units: Annotated[int, typer.Option(help="Units to measure: a unit is one prompt's group of samples.")] = 64,
    bins: Annotated[int, typer.Option(min=1, help="Ranges of equal width that the timesteps are told apart by.")] = 4,
    width: Annotated[int, typer.Option(min=1, help="Coordinates kept of every block of layers.")] = 4096,
    probes: Annotated[int, typer.Option(min=0, help="Points at which predictions are compared, too; 0 for none.")] = 8,
    gain_kl: Annotated[
        float | None, typer.Option(help="Also step along each direction to this KL (nats), and compare what is gained.")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Go on with twice as many units until every cosine is known to so much on either side."),
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="Units at which --until gives up \\[default: 16 times --units].")
    ] = None,
    along: Annotated[
        list[str], typer.Option(metavar="PATH=[A,B]", help="Measure once for each value of a setting; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    settings: Settings = [],  # noqa: B006
) -> None:
    """Measure how far objectives push the same way. The same command again goes on with a study that was stopped."""
    directory = place(out)
    begin("directions", directory)
    from raysuite.study.declared import declare

    study = declare(
        source,
        objectives=[name.strip() for name in objectives.split(",")],
        checkpoint=checkpoint,
        settings=by_path(settings),
        along=by_path(along, "--along"),
        units=units,
        bins=bins,
        width=width,
        probes=probes,
        gain={"kl": gain_kl} if gain_kl is not None else None,
        until=until,
        most=most,
    )
    from raysuite.cluster import directions as measuring
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    with locked(directory):
        measuring.study(study, directory, sys.argv, lambda what, unit: Counting(what, unit, console))
    from raysuite.results.study.report import study_summary, write_study_report

    say(study_summary(directory, terminal_width()))
    say(f"report: {write_study_report(directory)}")
