"""Commands that evaluate runs, on their own prompts or on a suite of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from raysuite import places
from raysuite.cli.common import begin, by_path, console, place, say, terminal_width
from raysuite.errors import UserError


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="The --out of a run; with --suite several, and their bases.", show_default=False
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    checkpoint: Annotated[
        int | None, typer.Option(help="Updates of the checkpoint \\[default: the last]; 0 is the base.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Pictures a prompt \\[default: the run's; of a suite, its authors'].")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Evaluate on this suite of prompts: raysuite suites lists them.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="The suite's file, directory or hub id, as its authors publish it.")
    ] = None,
    reward: Annotated[
        list[str],
        typer.Option(help="What scores the suite's pictures: a name or {name: hps_v2, model: DIR}; repeatable."),
    ] = [],  # noqa: B006
    model: Annotated[
        list[str],
        typer.Option(
            help="A model that is no run's, on the suite: a directory, a hub id or {path: DIR, lora: FILE}; repeatable."
        ),
    ] = [],  # noqa: B006
    ema: Annotated[
        bool, typer.Option("--ema", help="Evaluate the average of the weights (learn.ema), on a suite.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise on a suite \\[default: 0].")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures of a suite at once \\[default: 8].")] = None,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep all pictures of a suite; some are kept in any case.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="The run that others are compared with on a suite \\[default: the base of each].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the suite's results \\[default: suites/<name> in the run].")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="PATH=VALUE", help="How the suite's pictures are drawn: sampler.steps=50, ...; repeatable."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Evaluate a checkpoint on the run's fixed prompts and seeds; or runs on a suite of prompts, all drawn alike."""
    if suite is not None:
        if not runs and not model:
            raise UserError("expected a RUN or a --model, got neither: name what is to be evaluated")
        directory = _out_of_suite(runs, suite, out)
        begin("evaluate", directory)
        from raysuite.suites import declared

        found = declared.find(suite)
        if prompts is None:
            raise UserError(f"expected --prompts with --suite {suite}, got none: name {found.form}")
        asked = declared.prompts_of(found, prompts if not prompts.startswith("~") else str(places.whole(prompts)))
        from raysuite.suites import evaluation, protocol as protocols

        protocol = protocols.declare(
            found,
            asked,
            [places.existing(run) for run in runs],
            models=model,
            file=directory / evaluation.PROMPTS,
            rewards=reward,
            settings=by_path(settings),
            updates=checkpoint,
            ema=ema,
            samples=samples,
            seed=seed or 0,
            batch=batch or 8,
            all_images=keep_images,
        )
        evaluate_suite(protocol, directory, against)
        return
    numbered = seed is not None or batch is not None
    if len(runs) != 1 or prompts or reward or model or ema or numbered or keep_images or against or out or settings:
        raise UserError(
            "expected one RUN, with --checkpoint and --samples at most: what is more is for suites of prompts, name one with --suite"
        )
    directory = places.existing(place(runs[0]))
    begin("evaluate", directory)
    from raysuite.cluster import launch
    from raysuite.progress import watch
    from raysuite.results.report import summary
    from raysuite.stages.files import RunDirectory
    from raysuite.stages.lock import locked

    RunDirectory(directory).config()
    with locked(directory):
        launch.check_evaluation(directory, updates=checkpoint, samples=samples)
        with watch(directory, console):
            launch.evaluate(directory, updates=checkpoint, samples=samples)
        say(summary(directory, terminal_width()))


def _out_of_suite(runs: Sequence[Path], suite: str, out: Path | None) -> Path:
    if out is None and len(runs) != 1:
        raise UserError(
            f"expected --out with {'several runs' if runs else 'no run'}, got none: name a directory for the results"
        )
    return place(out or runs[0] / "suites" / suite)


def evaluate_suite(protocol: Any, directory: Path, against: str | None) -> None:
    """Draw and score what a protocol asks for, and show what came of it.

    Raises:
        UserError: something is missing, or nobody is called what the rest should be compared with.
    """
    from raysuite.cluster import suites
    from raysuite.progress import Counting
    from raysuite.results.suites.numbers import called
    from raysuite.results.suites.report import suite_summary, write_suite_report
    from raysuite.stages.lock import locked
    from raysuite.suites import evaluation

    if against is not None:
        called(against, evaluation.labels(protocol, directory))
    suites.preflight(protocol)
    with locked(directory):
        evaluation.claim(protocol, directory, sys.argv)
        suites.evaluate(protocol, directory, lambda what, unit: Counting(what, unit, console))
        say(suite_summary(directory, terminal_width(), against=against))
        say(f"report: {write_suite_report(directory, against=against)}")


def suites() -> None:
    """List the suites of prompts that runs can be evaluated on, and what each wants."""
    from raysuite.suites.declared import SUITES

    for name, suite in SUITES.items():
        console.print(f"[bold]{name:14}[/bold] {escape(suite.asks)}", soft_wrap=True, highlight=False)
        for said in (
            f"--prompts: {suite.form}",
            f"{suite.samples} a prompt, by {', '.join(suite.rewards)}; {suite.scored}",
            f"{suite.source}; licence: {suite.licence}",
        ):
            console.print(f"{'':14} {escape(said)}", soft_wrap=True, highlight=False)
