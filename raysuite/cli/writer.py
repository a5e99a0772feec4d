"""Commands about language models that rewrite what users type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raysuite import places
from raysuite.cli.common import Settings, begin, by_path, console, place, say, terminal_width
from raysuite.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    help="Train a language model that rewrites what users type, by what the image model draws from it, and compare writers.",
)

WriterName = Annotated[
    str,
    typer.Option(
        help="Who rewrites: scenes-writer (the bundled one), the --out of a training, a causal language model's directory or hub id."
    ),
]
Drawing = Annotated[
    str, typer.Argument(metavar="MODEL", help="Who draws: a recipe or YAML file, a run, or a checkpoint of one.")
]


@app.command()
def pairs(
    out: Annotated[Path, typer.Option(help="Directory of the set.")],
    model: Drawing = "scenes-users-ddpo",
    writer: WriterName = "scenes-writer",
    prompts: Annotated[int, typer.Option(help="Training prompts, alike from every kind.")] = 128,
    draws: Annotated[int, typer.Option(help="Rewrites of each; the user's own text is one candidate more.")] = 6,
    pictures: Annotated[int, typer.Option(help="Pictures of each candidate, with the same noise.")] = 4,
    margin: Annotated[float, typer.Option(help="Standard errors by which a preferred rewrite is better.")] = 1.0,
    which: Annotated[
        Literal["all", "best"], typer.Option(help="all pairs beyond the margin, or the best with the worst.")
    ] = "all",
    temperature: Annotated[float, typer.Option(help="Temperature of the draws.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, draws and noise.")] = 0,
    budget: Annotated[
        int | None,
        typer.Option(help="Network evaluations to spend; prompts that no pictures are left for are left out."),
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Draw rewrites of users' prompts, and find which of them are preferred. The same command again goes on."""
    directory = place(out)
    begin("writer pairs", directory)
    from raysuite.writer import pairs as sets

    plan = sets.Plan(
        prompts=prompts,
        draws=draws,
        pictures=pictures,
        margin=margin,
        which=which,
        temperature=temperature,
        seed=seed,
        budget=budget,
    )
    found = _drawing(model, settings)
    from raysuite.cluster import launch, writer as writing
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked
    from raysuite.writer.model import TOKENS

    launch.preflight(found.config, rewritten=True)
    with locked(directory), Counting("drawing", "batches", console) as counting:
        summary = writing.make_pairs(found, writer, plan, directory, sys.argv, counting)
    say(
        f"{summary['pairs']} pairs of {summary['candidates']} candidates, {summary['left_out']} within the margin left out, "
        f"{summary['cut']} rewrites too long for the image model, {summary['unfinished']} that did not end within {TOKENS} tokens: "
        f"{directory / sets.FILE}"
    )


@app.command()
def train(
    pairs: Annotated[
        Path,
        typer.Argument(metavar="PAIRS", help="The --out of writer pairs, or a .jsonl of prompt, chosen, rejected."),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the training; the writer is in writer/.")],
    writer: WriterName = "scenes-writer",
    loss: Annotated[
        Literal["sigmoid", "cal_dpo", "ipo", "apo_zero", "sft"], typer.Option(help="Loss of a pair; sigmoid is DPO.")
    ] = "sigmoid",
    beta: Annotated[float, typer.Option(help="How much a nat away from the reference costs.")] = 0.1,
    targets: Annotated[
        Literal["plain", "normalised"],
        typer.Option(help="Targets of cal_dpo: plain, or normalised, which a writer can reach."),
    ] = "plain",
    weight: Annotated[float, typer.Option(help="Weight of cal_dpo's calibration.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Learning rate at its highest.")] = 5e-4,
    epochs: Annotated[int, typer.Option(help="Times that each pair is seen.")] = 4,
    batch: Annotated[int, typer.Option(help="Pairs of a step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of pairs.")] = 0,
) -> None:
    """Train a writer on preferences with TRL. The same command again goes on from the last epoch."""
    directory = place(out)
    begin("writer train", directory)
    from raysuite.writer import train as training
    from raysuite.writer.losses import PairLoss

    training.check_trl()
    lesson = training.Lesson(
        PairLoss(loss, beta, targets, weight),
        learning_rate,
        epochs,
        batch,
        seed,
    )
    file = training.file_of(places.whole(pairs))
    rows = training.read_pairs(file)
    from raysuite.cluster import writer as writing
    from raysuite.progress import watch_steps
    from raysuite.stages.lock import locked

    def warn(told: str) -> None:
        say(f"WARNING: {told}")

    with locked(directory):
        if training.claim(directory, writer, file, lesson, sys.argv):
            with watch_steps(directory, "training", console):
                writing.train_writer(writer, rows, lesson, directory, warn)
    for line in training.epoch_lines(directory):
        say(line)
    say(f"writer: {directory}")


@app.command()
def grpo(
    out: Annotated[Path, typer.Option(help="Directory of the training; the writer is in writer/.")],
    model: Drawing = "scenes-users-ddpo",
    writer: WriterName = "scenes-writer",
    prompts: Annotated[int, typer.Option(help="Prompts of a step, alike from every kind.")] = 8,
    draws: Annotated[int, typer.Option(help="Rewrites of each, which are compared with each other.")] = 8,
    pictures: Annotated[int, typer.Option(help="Pictures of each rewrite, with the same noise.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps at most.")] = 100,
    budget: Annotated[int | None, typer.Option(help="Network evaluations after which training ends.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Learning rate, constant.")] = 5e-4,
    beta: Annotated[float, typer.Option(help="Weight of the KL from the writer as it came.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts, rewrites and noise.")] = 0,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Train a writer on-line with TRL's GRPO, by what the image model draws. The same command again goes on."""
    directory = place(out)
    begin("writer grpo", directory)
    from raysuite.writer import grpo, train as training

    training.check_trl()
    plan = grpo.Plan(prompts, draws, pictures, steps, budget, learning_rate, beta, seed)
    found = _drawing(model, settings)
    from raysuite.cluster import launch, writer as writing
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    launch.preflight(found.config, rewritten=True)
    with locked(directory), Counting("training", "steps", console) as counting:
        told = writing.train_online(found, writer, plan, directory, sys.argv, counting)
    first, last = told[0], told[-1]
    say(
        f"{len(told)} steps, {last['network_evaluations']:,} network evaluations; mean reward {first['reward']:.3f} in the first "
        f"step, {last['reward']:.3f} in the last, where {last['unfinished']:.0%} of the rewrites did not end"
    )
    say(f"writer: {directory}")


@app.command()
def evaluate(
    who: Annotated[
        list[str],
        typer.Argument(
            metavar="WRITER...",
            help="none (texts as they are), oracle (what was meant), scenes-writer, or a writer's --out; compared with the first.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the evaluation.")],
    model: Annotated[
        str, typer.Option(help="Who draws: a recipe or YAML file, a run, or a checkpoint of one.")
    ] = "scenes-users-ddpo",
    prompts: Annotated[int, typer.Option(help="Prompts of each cell.")] = 40,
    pictures: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts.")] = 0,
    ema: Annotated[bool, typer.Option("--ema", help="Draw with the average of the run's weights (learn.ema).")] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Compare writers by what an image model draws from their rewrites. The same command again goes on."""
    directory = place(out)
    begin("writer evaluate", directory)
    from raysuite.writer import evaluation

    plan = evaluation.Plan(tuple(who), prompts, pictures, seed)
    found = _drawing(model, settings, ema=ema)
    from raysuite.cluster import launch, writer as writing
    from raysuite.progress import Counting
    from raysuite.results.writer import writers_summary
    from raysuite.stages.lock import locked

    launch.preflight(found.config, rewritten=True)
    with locked(directory), Counting("drawing", "batches", console) as counting:
        writing.evaluate(found, plan, directory, sys.argv, counting)
    say(writers_summary(directory, terminal_width()))


def _drawing(model: str, settings: Sequence[str], *, ema: bool = False) -> Any:
    """Who draws: a recipe with other settings, a run, or a checkpoint."""
    from raysuite.stages.models import FoundModel, check_average, find_model

    found = find_model(model, ema=ema)
    if ema:
        check_average([found])
    if not settings:
        return found
    if found.model is not None or Path(model).is_dir():
        raise UserError(f"expected no --set with {model}, which has its settings: leave it out, or name a recipe")
    from raysuite import config as configuration

    config = configuration.load(model, by_path(settings))
    if config.prompts.writer is not None:
        raise UserError(
            f"expected no prompts.writer with a writer's command, which names whose words are drawn, got {config.prompts.writer}: "
            "leave it out"
        )
    return FoundModel(found.label, config, None)
