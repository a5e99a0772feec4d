"""The command that compares ways of drawing from examples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raysuite import places
from raysuite.cli.common import begin, console, place, say, terminal_width


def in_context(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]",
            help="Who draws: scenes (the bundled model), a recipe, a run or a checkpoint of one; others are compared with the first.",
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    out: Annotated[Path, typer.Option(help="Directory of the evaluation.")] = Path("runs/in-context"),
    episodes: Annotated[int, typer.Option(min=1, max=999_999, help="Episodes of each task and number of shots.")] = 100,
    shots: Annotated[str, typer.Option(help="Comma-separated numbers of demonstrations.")] = "2,4,6,8",
    nuisance: Annotated[
        bool, typer.Option("--nuisance", help="Leave an attribute free that neither text nor latent holds fixed.")
    ] = False,
    misread: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of attributes that the captioner misreads \\[default: 0.1]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of episodes and noise.")] = 0,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures that a model draws at once \\[default: 50, with --data 8].")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Draw with the average of runs' weights (learn.ema).")] = False,
    language: Annotated[
        bool,
        typer.Option("--language", help="Train a small language model that reads episodes, with and without thought."),
    ] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Train two more for each theme, which have not seen it: ten in all.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="CoBSAT's published pictures and captions, in place of the bundled world.")
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="Ask for the same pictures of --data with every number of shots.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who judges pictures on --data: clip, or vlm, a model that reads pictures \\[default: clip]."
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The judge's model: a hub id, a directory, or its name on the server.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="The judge's server of chat completions, such as http://127.0.0.1:8000/v1.")
    ] = None,
    judge_fields: Annotated[
        str | None,
        typer.Option(help="More fields of the judge's requests, or null to leave one out: '{\"max_tokens\": null}'."),
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="A model that reads --data's episodes and describes what comes next.")
    ] = None,
    reader_url: Annotated[str | None, typer.Option(help="The reader's server of chat completions.")] = None,
    reader_fields: Annotated[
        str | None, typer.Option(help="More fields of the reader's requests, as --judge-fields.")
    ] = None,
    interleaved: Annotated[
        str | None,
        typer.Option(
            help="A pipeline that draws from several pictures and a text, on --data: OmniGen, FLUX.2 and others."
        ),
    ] = None,
) -> None:
    """Evaluate in-context generation: a few texts with pictures, and what comes next. The same command again goes on."""
    directory = place(out)
    begin("in-context", directory)
    from raysuite.families.interleaved import InterleavedPipeline
    from raysuite.in_context import command
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    asked = command.numbers(shots)
    command.check_options(
        scenes={"--nuisance": nuisance, "--misread": misread, "--language": language, "--leave-out": leave_out},
        published={
            "--data": data,
            "--paired": paired,
            "--judge": judge,
            "--judge-model": judge_model,
            "--judge-url": judge_url,
            "--judge-fields": judge_fields,
            "--reader": reader,
            "--reader-url": reader_url,
            "--reader-fields": reader_fields,
            "--interleaved": interleaved,
        },
    )
    if data is None:
        plan, drawers = command.scenes(
            models,
            directory,
            episodes=episodes,
            shots=asked,
            nuisance=nuisance,
            misread=0.1 if misread is None else misread,
            language=language,
            leave_out=leave_out,
            seed=seed,
            batch=batch,
            ema=ema,
        )
    else:
        plan, drawers = command.published(
            models,
            data=places.existing(data),
            judge=command.judge_of(judge or "clip", model=judge_model, url=judge_url, fields=judge_fields, seed=seed),
            reader=command.chat_of(reader, reader_url, reader_fields) if reader else None,
            interleaved=InterleavedPipeline(interleaved) if interleaved else None,
            episodes=episodes,
            shots=asked,
            paired=paired,
            seed=seed,
            batch=batch,
            ema=ema,
        )
    with locked(directory):
        command.evaluate(plan, drawers, directory, sys.argv, lambda what, unit: Counting(what, unit, console))
    from raysuite.results.in_context.report import in_context_summary, write_in_context_report

    say(in_context_summary(directory, terminal_width()))
    say(f"report: {write_in_context_report(directory)}")
