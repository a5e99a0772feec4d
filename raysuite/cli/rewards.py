"""Commands about rewards: list, convert, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from raysuite import places
from raysuite.cli.common import by_path, console, say

app = typer.Typer(help="List rewards, and convert published ones.", invoke_without_command=True)


@app.callback()
def rewards(context: typer.Context) -> None:
    """List the rewards that ship with the package: what they measure, their range, and what they need."""
    if context.invoked_subcommand is not None:
        return
    from raysuite.rewards import REWARDS

    for name, known in REWARDS.items():
        said = f"{known.measures}; {known.range}"
        console.print(f"[bold]{name:22}[/bold] {escape(said)}", soft_wrap=True, highlight=False)
        if known.needs != "nothing":
            said = f"needs {known.needs}; licence: {known.licence}"
            console.print(f"{'':22} {escape(said)}", soft_wrap=True, highlight=False)


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="aesthetic, hps_v2, hps_v3 or image_reward.")],
    file: Annotated[
        Path,
        typer.Argument(
            help="The weights as their authors publish them: a .pt, .pth or .safetensors, of which nothing else is read."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the reward's model.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub id or directory of the tokenizer \\[default: the published one].")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="data_collator_qwen.py of hps_v3's package, which is read and not run.")
    ] = None,
) -> None:
    """Convert a reward's published weights, once, into a directory for its `model`."""
    directory = places.directory(out)
    from raysuite.rewards.convert import convert

    made = convert(
        name,
        places.whole(file),
        directory,
        tokenizer=tokenizer,
        template=None if template is None else places.whole(template),
    )
    say(f"{{name: {name}, model: {made}}}")


@app.command()
def serve(
    name: Annotated[str, typer.Argument(help="A reward, or a function or class as package.module:name.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes any that is free.")] = 8100,
    host: Annotated[
        str, typer.Option(help="Address to listen at; whoever reaches it may use the reward, for there is no password.")
    ] = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="Hub id or directory of a reward that is a network.")] = None,
    options: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="Another argument of the reward; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests held at once, one for each process that draws; more are turned away.")
    ] = 64,
) -> None:
    """Serve a reward over HTTP, for the reward `http` of runs elsewhere, until it is stopped."""
    from raysuite import rewards
    from raysuite.config import parse
    from raysuite.rewards.serve import Served, serve

    chosen = {option: parse(f"--option {option}", value) for option, value in by_path(options, "--option").items()}
    rewards.check(name, model=model, options=chosen)
    serve(
        Served(name, model, chosen),
        host,
        port,
        lambda url: say(f"serving {name} at {url}"),
        waiting=waiting,
    )
