"""Commands that make preference sets for runs that learn off-line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from raysuite import places
from raysuite.cli.common import Settings, begin, by_path, console, place, say


def pairs(
    out: Annotated[Path, typer.Option(help="Directory of the preference set.")],
    run: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_YAML", help="Whose model, sampler, prompts, rewards and preferences.")
    ] = "scenes-diffusion-dpo",
    prompts: Annotated[
        int,
        typer.Option(
            min=1, help="Prompts to draw, all different while there are enough; each has rollouts.samples pictures."
        ),
    ] = 256,
    trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Keep whole trajectories, which trajectory_dpo needs.")
    ] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Make an off-line preference set from a model and a reward. The same command again goes on with one that was stopped."""
    directory = place(out)
    begin("pairs", directory)
    from raysuite import config as configuration

    config = configuration.load(run, by_path(settings))
    from raysuite.cluster import launch
    from raysuite.cluster.pairs import make_pairs
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    launch.preflight(config)
    with locked(directory), Counting("drawing and ranking", "blocks", console) as counting:
        summary = make_pairs(
            config, directory, prompts=prompts, trajectories=trajectories, command=sys.argv, counting=counting
        )
    say(f"{summary['rankings']} rankings, {summary['ties']} ties left out: {out}")


def encode(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Parquet files, a hub dataset, HPDv2's or ImageReward's .json, a .jsonl of pairs, or a folder of winners and losers; "
            "several of them, or a pattern in quotes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the preference set.")],
    model: Annotated[str, typer.Option(help="Whose VAE and text encoder: as model.path of a run.")] = "scenes",
    size: Annotated[int | None, typer.Option(min=8, help="Pixels on a side \\[default: the model's own].")] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Another setting of the run's model: model.precision=bfloat16, model.size='[768, 512]' (height and width), "
            "model.arguments='{max_sequence_length: 128}'; repeatable.",
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    variant: Annotated[
        str | None, typer.Option(help="Variant of the model's weights, as model.variant of the run, such as fp16.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="pickapic, chosen, hpdv2, imagereward, jsonl, folders, pictures \\[default: by its looks; on a hub pickapic]."
        ),
    ] = None,
    column: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=COLUMN",
            help="A column of parquet files that is called otherwise than the layout says: chosen=winner; repeatable.",
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    split: Annotated[str, typer.Option(help="Split of the source.")] = "train",
    pairs: Annotated[
        Literal["all", "adjacent"],
        typer.Option(help="Pairs of a ranking of more than two: all, or of ranks that follow one another."),
    ] = "all",
    rows_per_block: Annotated[int, typer.Option(min=1, help="Rows written at once; what a kill costs at most.")] = 64,
    actors: Annotated[int, typer.Option(min=1, help="Processes that encode.")] = 1,
    actor_gpus: Annotated[float, typer.Option(min=0, max=1, help="GPUs of each of them.")] = 0.0,
) -> None:
    """Encode preference data into latents for off-line training. The same command again goes on where it was stopped."""
    directory = place(out)
    begin("encode", directory)
    from raysuite import config as configuration

    of = configuration.load_model({"path": model, "size": size, "variant": variant}, by_path(settings))
    from raysuite.datasets.sources import open_source

    opened = open_source(
        [path if not path.startswith("~") else str(places.whole(path)) for path in source],
        layout=layout,
        split=split,
        names=by_path(column, "--column"),
    )
    from raysuite.cluster import encode as encoding
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    say(f"with the VAE and text encoders of {of.path}")
    with locked(directory), Counting("encoding", "blocks", console) as counting:
        summary = encoding.encode(
            opened,
            directory,
            model=of,
            pairs=pairs,
            rows_per_block=rows_per_block,
            actors=actors,
            actor_gpus=actor_gpus,
            command=sys.argv,
            counting=counting,
        )
    rejects = ", ".join(f"{count} x {reason}" for reason, count in summary["rejects"].items())
    kind = "pictures" if opened.members == 1 else "pairs"
    say(
        f"{summary['rankings']} {kind} of {summary['read']} rows, {summary['ties']} ties left out, set aside: "
        f"{rejects or 'none'}: {out}"
    )
