"""Commands about trained distributions of soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raysuite import places
from raysuite.cli.common import numbers, say
from raysuite.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    help="Draw from a trained distribution of soft prompts: pages of pictures, and states for diffusers.",
)

PromptRun = Annotated[Path, typer.Argument(help="The --out of a run with parameters.kind=prompts.")]
Checkpoint = Annotated[int | None, typer.Option(min=1, help="Updates of the checkpoint \\[default: the last].")]
Ema = Annotated[bool, typer.Option("--ema", help="Draw with the average of the weights (learn.ema).")]
Spread = Annotated[
    str | None,
    typer.Option(
        help="Factors on the spread, with commas between them \\[default: 0,0.5,1,1.5,2, or 1 without noise]."
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Number of draws.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the noise and the draws.")]


@app.command()
def sample(
    run: PromptRun,
    prompt: Annotated[str, typer.Option(help="The prompt's text.")],
    out: Annotated[Path, typer.Option(help="The page (.html) to write.")],
    spread: Spread = None,
    samples: Samples = 6,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    ema: Ema = False,
) -> None:
    """Pictures of one prompt: a row for each spread, and in each row the same draws and noise."""
    page, asked = places.file(out), None if spread is None else numbers("--spread", spread)
    from raysuite.stages.soft_prompts import open_distribution, pictures, spreads

    drawn = open_distribution([places.existing(run)], updates=checkpoint, ema=ema)
    rows = [
        (f"spread {g:g}", list(pictures(drawn.mixed([1.0], g), prompt, samples=samples, seed=seed)))
        for g in spreads(drawn, asked)
    ]
    said = "From row to row only the spread of the draw changes: at 0 all pictures have the mean prompt, and differ in their noise."
    _grid(page, prompt, said, [f"draw {number + 1}" for number in range(samples)], rows)


@app.command()
def edit(
    run: PromptRun,
    prompt: Annotated[list[str], typer.Option(help="A text; several, to compare.")],
    out: Annotated[Path, typer.Option(help="The page (.html) to write.")],
    samples: Samples = 6,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    ema: Ema = False,
) -> None:
    """Pictures of several prompts: a row for each text, and in each row the same draws and noise, so that text alone changes."""
    page = places.file(out)
    from raysuite.stages.soft_prompts import open_distribution, pictures

    drawn = open_distribution([places.existing(run)], updates=checkpoint, ema=ema)
    rows = [(text, list(pictures(drawn, text, samples=samples, seed=seed))) for text in prompt]
    said = "From row to row only the text changes: a column has one draw and one noise."
    _grid(page, "Texts", said, [f"draw {number + 1}" for number in range(samples)], rows)


@app.command()
def mix(
    run: PromptRun,
    other: Annotated[Path, typer.Argument(help="Another run of the same model and shape.")],
    prompt: Annotated[str, typer.Option(help="The prompt's text.")],
    out: Annotated[Path, typer.Option(help="The page (.html) to write.")],
    weights: Annotated[
        str, typer.Option(help="Weights of the other run's distribution, with commas between them.")
    ] = "0,0.25,0.5,0.75,1",
    spread: Spread = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    ema: Ema = False,
) -> None:
    """Pictures between two distributions: mixing from left to right, spread from top to bottom, one noise for all."""
    page, shares = places.file(out), numbers("--weights", weights)
    asked = None if spread is None else numbers("--spread", spread)
    from raysuite.stages.soft_prompts import open_distribution, pictures, spreads

    drawn = open_distribution([places.existing(run), places.existing(other)], updates=checkpoint, ema=ema)
    rows = [
        (
            f"spread {g:g}",
            [pictures(drawn.mixed([1 - w, w], g), prompt, samples=1, seed=seed)[0] for w in shares],
        )
        for g in spreads(drawn, asked)
    ]
    said = (
        f"From left to right the weight of {other} rises, that of {run} falls; from top to bottom the spread of both."
    )
    _grid(page, prompt, said, [f"{w:g}" for w in shares], rows)


@app.command()
def export(
    run: PromptRun,
    prompt: Annotated[str, typer.Option(help="The prompt's text.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    samples: Samples = 4,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    ema: Ema = False,
) -> None:
    """Write draws of a prompt's states for `pipe(prompt_embeds=...)` of plain diffusers, with their mean and standard deviation."""
    file = places.file(out)
    from raysuite.stages.soft_prompts import embeddings, open_distribution, write_embeddings

    drawn = open_distribution([places.existing(run)], updates=checkpoint, ema=ema)
    tensors = embeddings(drawn, prompt, samples=samples, seed=seed)
    write_embeddings(file, tensors)
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    say(f"{shapes}: {file}")


BESIDE_REAL = ("pixels", 64, 5)
"""Features, samples and neighbours by default: they mean something beside real pictures alone."""


@app.command()
def measure(
    run: PromptRun,
    prompt: Annotated[list[str], typer.Option(help="A text; several, for intervals.")],
    draws: Annotated[int, typer.Option(min=2, help="Draws of each prompt.")] = 4,
    noises: Annotated[int, typer.Option(min=2, help="Noises of each draw.")] = 4,
    references: Annotated[
        Path | None, typer.Option(help="A folder of real pictures: density and coverage beside them, too.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="What they are compared by: pixels, package.module:function, or a vision model's hub id or directory."
        ),
    ] = BESIDE_REAL[0],
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each prompt to set beside real ones.")] = BESIDE_REAL[
        1
    ],
    neighbours: Annotated[int, typer.Option(min=1, help="Real pictures in a neighbourhood.")] = BESIDE_REAL[2],
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    ema: Ema = False,
) -> None:
    """Where differences between pictures of a prompt come from (the draw, the noise, or both), and how they lie to real ones."""
    if references is None and (features, samples, neighbours) != BESIDE_REAL:
        raise UserError(
            "expected --references with --features, --samples or --neighbours, got none: they say how pictures are set beside real "
            "ones; name a folder of these, or leave them out"
        )
    folder = places.existing(references) if references else None
    from raysuite.datasets.pictures import of_folder
    from raysuite.results.numerals import with_interval
    from raysuite.rewards.features import features as features_of
    from raysuite.stages.soft_prompts import beside_real, measured, open_distribution

    drawn = open_distribution([places.existing(run)], updates=checkpoint, ema=ema)
    if folder:  # read before anything is drawn
        real_N, extract = of_folder(folder, drawn.policy.image_size), features_of(features, device=drawn.policy.device)
        found = beside_real(drawn, prompt, real_N, extract, samples=samples, seed=seed, neighbours=neighbours)
        said = f"{samples * len(prompt)} drawn and {len(real_N)} real pictures, {neighbours} neighbours, {features}"
        say(f"{'density':12} {found.density:.2f}  {said}")
        say(f"{'coverage':12} {found.coverage:.2f}")
    for name, component in measured(drawn, prompt, draws=draws, noises=noises, seed=seed).items():
        say(f"{name:12} {with_interval(component)}  grey levels squared")


def _grid(page: Path, title: str, said: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]) -> None:
    from raysuite.results.grid import write_grid

    written = write_grid(page, title=title, said=said, columns=columns, rows=rows)
    say(f"page: {written}")
