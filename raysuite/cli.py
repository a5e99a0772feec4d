"""The command line: thin. Errors that the user can mend are one sentence and exit status 2."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from raysuite import places
from raysuite.errors import Stopped, UserError
from raysuite.signals import Interrupted, heeded
from raysuite.terminal import speak_plainly

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"raysuite {importlib.metadata.version('raysuite')}", highlight=False)
        raise typer.Exit


@app.callback()
def raysuite(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is, and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Align text-to-image diffusion models by reinforcement or preference."""


Settings = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a setting; repeatable.")]
Run = Annotated[Path, typer.Argument(help="The --out of a run.")]


@app.command()
def train(
    run: Annotated[str, typer.Argument(metavar="RECIPE_OR_YAML", help="A recipe's name or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run directory \\[default: runs/<name>].")] = None,
    keep_rollouts: Annotated[
        bool, typer.Option("--keep-rollouts", help="Store all rollouts, for runs with rollouts.replay=<this run>.")
    ] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Train. The same command again goes on with a run that was stopped."""
    directory = _place(out or Path("runs") / Path(run).stem)
    _begin("train", directory)
    from raysuite import config as configuration  # torch and ray take seconds to import: not for --help

    overrides = dict(_split(setting) for setting in settings)
    if keep_rollouts:
        overrides["rollouts.keep"] = "true"
    config = configuration.load(run, overrides)
    from raysuite.cluster import launch
    from raysuite.progress import watch
    from raysuite.results.report import summary, write_report
    from raysuite.stages.lock import locked

    launch.preflight(config)
    with locked(directory):
        if launch.claim(config, directory, sys.argv):
            console.print(f"{directory} is finished already", soft_wrap=True)
        else:
            with watch(directory, console):
                launch.train(config, directory)
        console.print(summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
        console.print(f"report: {write_report(directory)}", soft_wrap=True)


@app.command()
def plan(
    run: Annotated[str, typer.Argument(metavar="RECIPE_OR_YAML", help="A recipe's name or a YAML file.")],
    gpu: Annotated[str | None, typer.Option(help="The GPU that is meant: 'H100 80GB', 'A100 40GB', H200.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="Its memory in GB, in place of a name.")] = None,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Say what each process of a run will hold, before anything is loaded: weights need not be there, configurations do."""
    from raysuite import config as configuration
    from raysuite.stages import plan as planning

    if gpu is not None and memory is not None:
        raise UserError("expected --gpu or --memory, got both: leave one out")
    size = planning.memory_of(gpu) if gpu is not None else memory
    config = configuration.load(run, dict(_split(setting) for setting in settings))
    planned = planning.plan(config)
    console.print(planning.told(planned), soft_wrap=True, highlight=False, markup=False)
    for line in planning.verdict(config, planned, size):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP_OR_YAML", help="A sweep's name or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Directory of the sweep; its runs lie in trials/.")],
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="PATH=VALUE", help="A field of the sweep, or a setting of all its runs; repeatable."
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Race objectives at an equal budget. The same command again goes on; what has ended is not repeated."""
    directory = _place(out)
    _begin("sweep", directory)
    from raysuite.sweeps import declared as sweeps

    declared = sweeps.load(sweep, dict(_split(setting) for setting in settings))
    from raysuite.cluster import sweep as sweeping
    from raysuite.progress import watch_sweep
    from raysuite.results.side_by_side.members import choose
    from raysuite.stages.lock import locked
    from raysuite.sweeps.trials import Book

    with locked(directory):
        sweeping.preflight(declared)
        book = Book.open(declared, directory, sys.argv)
        with watch_sweep(directory, console):
            sweeping.sweep(book, sys.argv)
    if any(trial.status == "done" for trial in book.trials.values()):
        chosen = choose([directory])
        if len(chosen.members) > 1:
            _compare([directory])
        else:  # nothing to set beside it
            for caution in chosen.cautions:
                console.print(f"Note: {caution}", soft_wrap=True, markup=False, highlight=False)
    failed = [trial for trial in book.trials.values() if trial.status == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(book.trials)} runs failed ({failed[0].name}: {failed[0].message}); the same command tries them "
            "again"
        )


@app.command()
def pairs(
    out: Annotated[Path, typer.Option(help="Directory of the preference set.")],
    run: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_YAML", help="Whose model, sampler, prompts, rewards and preferences.")
    ] = "scenes-diffusion-dpo",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to draw; each has rollouts.samples pictures.")] = 256,
    trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Keep whole trajectories, which trajectory_dpo needs.")
    ] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Make an off-line preference set from a model and a reward. The same command again goes on with one that was stopped."""
    directory = _place(out)
    _begin("pairs", directory)
    from raysuite import config as configuration

    config = configuration.load(run, dict(_split(setting) for setting in settings))
    from raysuite.cluster import launch
    from raysuite.cluster.pairs import make_pairs
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    launch.preflight(config)
    with locked(directory), Counting("drawing and ranking", "blocks", console) as counting:
        summary = make_pairs(
            config, directory, prompts=prompts, trajectories=trajectories, command=sys.argv, counting=counting
        )
    console.print(f"{summary['rankings']} rankings, {summary['ties']} ties left out: {out}", soft_wrap=True)


@app.command()
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
    layout: Annotated[
        str | None,
        typer.Option(help="pickapic, hpdv2, imagereward, jsonl, folders, pictures \\[default: by its looks]."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the source.")] = "train",
    pairs: Annotated[
        Literal["all", "adjacent"],
        typer.Option(help="Of a ranking of more than two: all, or of ranks that follow one another."),
    ] = "all",
    rows_per_block: Annotated[int, typer.Option(min=1, help="Rows written at once; what a kill costs at most.")] = 64,
    actors: Annotated[int, typer.Option(min=1, help="Processes that encode.")] = 1,
    actor_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each.")] = 0.0,
) -> None:
    """Encode preference data into latents for off-line training. The same command again goes on where it was stopped."""
    directory = _place(out)
    _begin("encode", directory)
    from raysuite.datasets.sources import open_source

    opened = open_source(
        [path if not path.startswith("~") else str(places.whole(path)) for path in source], layout=layout, split=split
    )
    from raysuite import config as configuration
    from raysuite.cluster import encode as encoding
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    with locked(directory), Counting("encoding", "blocks", console) as counting:
        summary = encoding.encode(
            opened,
            directory,
            model=configuration.Model(path=model, size=size),
            pairs=pairs,
            rows_per_block=rows_per_block,
            actors=actors,
            actor_gpus=actor_gpus,
            command=sys.argv,
            counting=counting,
        )
    rejects = ", ".join(f"{count} x {reason}" for reason, count in summary["rejects"].items())
    kind = "pictures" if opened.members == 1 else "pairs"
    console.print(
        f"{summary['rankings']} {kind} of {summary['read']} rows, {summary['ties']} ties left out, set aside: "
        f"{rejects or 'none'}: {out}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="The --out of a run; with --suite several, and their bases.")
    ],
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
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    ema: Annotated[bool, typer.Option("--ema", help="The average of the weights (learn.ema), on a suite.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the suite's noise \\[default: 0].")] = None,
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
        directory = _out_of_suite(runs, suite, out)
        _begin("evaluate", directory)
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
            file=directory / evaluation.PROMPTS,
            rewards=reward,
            settings=dict(_split(setting) for setting in settings),
            updates=checkpoint,
            ema=ema,
            samples=samples,
            seed=seed or 0,
            batch=batch or 8,
            all_images=keep_images,
        )
        _evaluate_suite(protocol, directory, against)
        return
    numbers = seed is not None or batch is not None
    if len(runs) > 1 or prompts or reward or ema or numbers or keep_images or against or out or settings:
        raise UserError(
            "expected one RUN with --checkpoint and --samples at most, got more, which is for suites of prompts: name one with --suite"
        )
    directory = places.existing(_place(runs[0]))
    _begin("evaluate", directory)
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
        console.print(summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)


def _out_of_suite(runs: Sequence[Path], suite: str, out: Path | None) -> Path:
    if out is None and len(runs) > 1:
        raise UserError("expected --out with several runs, got none: name a directory for the results")
    return _place(out or runs[0] / "suites" / suite)


def _evaluate_suite(protocol: Any, directory: Path, against: str | None) -> None:
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
        console.print(
            suite_summary(directory, _width(), against=against), soft_wrap=True, markup=False, highlight=False
        )
        console.print(f"report: {write_suite_report(directory, against=against)}", soft_wrap=True)


@app.command()
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


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The file.")],
    form: Annotated[str, typer.Option("--format", help="kohya: what ComfyUI and kohya's tools read.")] = "kohya",
    checkpoint: Annotated[
        int | None, typer.Option(min=1, help="Updates of the checkpoint \\[default: the last].")
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of the weights (learn.ema) in place of them.")
    ] = False,
) -> None:
    """Write a run's LoRA in another form. For diffusers nothing needs to be written: it loads checkpoints/<updates>/model."""
    if form != "kohya":
        raise UserError(f"expected --format kohya, got {form}: there is no other")
    directory, file = places.existing(run), places.file(out)
    from raysuite.families.export import to_kohya
    from raysuite.stages import checkpoint as checkpoints
    from raysuite.stages.files import RunDirectory

    RunDirectory(directory).config()
    found = checkpoints.by_updates(directory)
    updates = checkpoint if checkpoint is not None else max(found, default=None)
    if updates not in found:
        raise UserError(
            f"expected a checkpoint of {directory}, which has {sorted(found) or 'none'}, got {updates}: name one of them"
        )
    model = found[updates] / (checkpoints.EMA if ema else "model")
    if not model.is_dir():
        raise UserError(
            f"expected an average of the weights in {found[updates]}, found none: the run has no learn.ema; leave --ema out"
        )
    layers = to_kohya(model, file)
    console.print(f"{layers} layers after {updates} updates: {file}", soft_wrap=True, highlight=False)


@app.command()
def directions(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_RECIPE", help="A run, a recipe's name or a YAML file.")],
    objectives: Annotated[
        str, typer.Option(help="Comma-separated: objectives, or recipes whose objectives are meant.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the study.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Updates of the run's policy, or all \\[default: the last]; 0 is the base.")
    ] = None,
    units: Annotated[int, typer.Option(help="Prompts' groups of samples.")] = 64,
    bins: Annotated[int, typer.Option(min=1, help="Equal ranges of the timesteps.")] = 4,
    width: Annotated[int, typer.Option(min=1, help="Coordinates kept of every block of layers.")] = 4096,
    probes: Annotated[int, typer.Option(min=0, help="Points of the prediction space; 0 for none.")] = 8,
    gain_kl: Annotated[
        float | None, typer.Option(help="Also step along each direction to this KL (nats), and compare what is gained.")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Go on with twice as many units until every cosine is known to so much on either side."),
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="Units at which to give that up \\[default: 16 times --units].")
    ] = None,
    along: Annotated[
        list[str], typer.Option(metavar="PATH=[A,B]", help="Measure once for each value of a setting; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    settings: Settings = [],  # noqa: B006
) -> None:
    """Measure how far objectives push the same way. The same command again goes on with a study that was stopped."""
    directory = _place(out)
    _begin("directions", directory)
    from raysuite.study.declared import declare

    study = declare(
        source,
        objectives=[name.strip() for name in objectives.split(",")],
        checkpoint=checkpoint,
        settings=dict(_split(setting) for setting in settings),
        along=dict(_split(setting, "--along") for setting in along),
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

    console.print(study_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {write_study_report(directory)}", soft_wrap=True)


@app.command(name="in-context")
def in_context(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]",
            help="Who draws: scenes (the bundled model), a recipe, a run or a checkpoint of one; others are compared with the first.",
        ),
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    out: Annotated[Path, typer.Option(help="Directory of the evaluation.")] = Path("runs/in-context"),
    episodes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of each task and number of shots.")] = 100,
    shots: Annotated[str, typer.Option(help="Comma-separated numbers of demonstrations.")] = "2,4,6,8",
    nuisance: Annotated[
        bool, typer.Option("--nuisance", help="Leave an attribute free that neither text nor latent holds fixed.")
    ] = False,
    misread: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of attributes that the captioner misreads \\[default: 0.1]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of episodes and noise.")] = 0,
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of runs' weights (learn.ema) in place of them.")
    ] = False,
    language: Annotated[
        bool,
        typer.Option("--language", help="Train a small language model that reads episodes, with and without thought."),
    ] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="And, for each theme, two that have not seen it: ten more.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="CoBSAT's published pictures and captions, in place of the bundled world.")
    ] = None,
    paired: Annotated[bool, typer.Option("--paired", help="One latent of --data for all numbers of shots.")] = False,
    judge: Annotated[
        str | None, typer.Option(help="Of --data: clip, or vlm, a model that reads pictures \\[default: clip].")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Hub id or directory, or a server's name of it.")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Of a server of chat completions, such as http://127.0.0.1:8000/v1.")
    ] = None,
    judge_fields: Annotated[
        str | None, typer.Option(help="Of its requests besides, or null to leave one out: '{\"max_tokens\": null}'.")
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="A model that reads --data's episodes and describes what comes next.")
    ] = None,
    reader_url: Annotated[str | None, typer.Option(help="Of its server.")] = None,
    reader_fields: Annotated[str | None, typer.Option(help="Of its requests besides, as --judge-fields.")] = None,
    interleaved: Annotated[
        str | None,
        typer.Option(
            help="A pipeline that draws from several pictures and a text, on --data: OmniGen, FLUX.2 and others."
        ),
    ] = None,
) -> None:
    """Evaluate in-context generation: a few texts with pictures, and what comes next. The same command again goes on."""
    directory = _place(out)
    _begin("in-context", directory)
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
            ema=ema,
        )
    else:
        plan, drawers = command.published(
            models,
            data=places.existing(data),
            judge=command.judge_of(judge or "clip", model=judge_model, url=judge_url, fields=judge_fields, seed=seed),
            reader=command.chat_of(reader, reader_url, reader_fields) if reader else None,
            interleaved=command.interleaved_of(interleaved) if interleaved else None,
            episodes=episodes,
            shots=asked,
            paired=paired,
            seed=seed,
            ema=ema,
        )
    with locked(directory):
        command.evaluate(plan, drawers, directory, sys.argv, lambda what, unit: Counting(what, unit, console))
    from raysuite.results.in_context.report import in_context_summary, write_in_context_report

    console.print(in_context_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {write_in_context_report(directory)}", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="The --out of a run, or of a study; several as compare.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file. By default report.html in the run, or comparison.html beside several."),
    ] = None,
) -> None:
    """Write a page about one run, or a study of directions."""
    directory, *others = (places.existing(run) for run in runs)
    if others or (directory / "sweep.json").exists():
        _compare([directory, *others], out)
        return
    page = places.file(out or directory / "report.html")
    from raysuite.results.report import summary, write_report

    if (directory / "study.json").exists():
        from raysuite.results.study.report import study_summary, write_study_report

        console.print(study_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
        path = write_study_report(directory, page)
    elif (directory / "protocol.json").exists():
        from raysuite.results.suites.report import suite_summary, write_suite_report

        console.print(suite_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
        path = write_suite_report(directory, page)
    elif (directory / "in_context.json").exists():
        from raysuite.results.in_context.report import in_context_summary, write_in_context_report

        console.print(in_context_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
        path = write_in_context_report(directory, page)
    else:
        console.print(summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)
        path = write_report(directory, page)
    console.print(f"report: {path}", soft_wrap=True)


@app.command()
def track(
    run: Run,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Tell trackers (--set trackers.<name>...) of a run that went on without them. What they have been told before is not repeated."""
    from raysuite import config as configuration, trackers
    from raysuite.cluster import launch
    from raysuite.stages.files import RunDirectory

    directory = places.existing(_place(run))
    tree = RunDirectory(directory).config().canonical()
    for path, value in map(_split, settings):
        if not path.startswith("trackers."):
            raise UserError(f"expected a setting under trackers, got {path}: a run that exists keeps all others")
        configuration.put(tree, path, configuration.parse(path, value))
    config = configuration.validate(tree)
    trackers.tell(config, directory, completed=launch.finished(config, directory))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR", help="The --out of each run, or of a sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page \\[default: comparison.html beside the runs or in the sweep]; its numbers lie beside it."
        ),
    ] = None,
) -> None:
    """Compare runs, or the objectives of a sweep: tables with intervals over seeds and prompts, and a page."""
    _compare(runs, out)


def _compare(runs: Sequence[Path], out: Path | None = None) -> None:
    from raysuite.results.side_by_side.report import Report, page_of
    from raysuite.results.suites.across import suites_across

    whole = [places.existing(run) for run in runs]
    page = places.file(out or page_of(whole))
    report = Report.of(whole)
    console.print(report.summary(_width()), soft_wrap=True, markup=False, highlight=False)
    written = report.write(page)
    if on_suites := suites_across(whole, _width()):
        console.print(f"\n{on_suites}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {written}", soft_wrap=True)


@app.command()
def recipes() -> None:
    """List the runs and sweeps that ship with the package."""
    from raysuite import config as configuration
    from raysuite.sweeps.declared import sweeps

    for name, line in {**configuration.recipes(), **{n: f"(sweep) {line}" for n, line in sweeps().items()}}.items():
        console.print(f"[bold]{name:30}[/bold] {line}", soft_wrap=True, highlight=False)


def _place(directory: Path) -> Path:
    """Where a command works, whole.

    Raises:
        UserError: it cannot be written, or would lie in the copy of the code from which a submitted job runs, and vanish with it.
    """
    if not directory.expanduser().is_absolute() and places.in_job():
        raise UserError(
            f"expected an absolute path in a submitted job, got {directory}: it would lie in Ray's copy of the code, which does not "
            "outlive the job; name a directory that all machines see, such as /shared/run"
        )
    return places.directory(directory)


def _width() -> int | None:
    """Characters of the terminal; in a file or a pipe lines may have any length."""
    return console.width if console.is_terminal else None


def _begin(command: str, directory: Path) -> None:
    """Say at once what is going on: what it needs takes seconds to load."""
    console.print(f"{command}: {directory}", soft_wrap=True, highlight=False, markup=False)


rewards_app = typer.Typer(help="List rewards, and convert published ones.", invoke_without_command=True)
app.add_typer(rewards_app, name="rewards")


@rewards_app.callback()
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


@rewards_app.command()
def convert(
    name: Annotated[str, typer.Argument(help="aesthetic, hps_v2, hps_v3 or image_reward.")],
    file: Annotated[
        Path,
        typer.Argument(help="As its authors publish it: a .pt, .pth or .safetensors, of which only weights are read."),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the reward's model.")],
    tokenizer: Annotated[str | None, typer.Option(help="Hub id or directory \\[default: the published one].")] = None,
    template: Annotated[
        Path | None, typer.Option(help="Of hps_v3: data_collator_qwen.py of its package, which is read and not run.")
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
    console.print(f"{{name: {name}, model: {made}}}", soft_wrap=True, highlight=False, markup=False)


@rewards_app.command()
def serve(
    name: Annotated[str, typer.Argument(help="A reward, or a function or class as package.module:name.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8100,
    host: Annotated[str, typer.Option(help="Whoever reaches it may use it: there is no password.")] = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="Hub id or directory of a reward that is a network.")] = None,
    options: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="Another argument of it; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Serve a reward over HTTP, for the reward `http` of runs elsewhere, until it is stopped."""
    from raysuite import rewards
    from raysuite.config import parse
    from raysuite.rewards.serve import Served, serve

    chosen = {option: parse(f"--option {option}", value) for option, value in (_split(o, "--option") for o in options)}
    rewards.check(name, model=model, options=chosen)
    serve(
        Served(name, model, chosen),
        host,
        port,
        lambda url: console.print(f"serving {name} at {url}", soft_wrap=True, highlight=False, markup=False),
    )


writer_app = typer.Typer(
    help="Train a language model that rewrites what users type, by what the image model draws from it, and compare writers."
)
app.add_typer(writer_app, name="writer", no_args_is_help=True)

WriterName = Annotated[
    str,
    typer.Option(
        help="Who rewrites: scenes-writer (the bundled one), the --out of a training, a causal language model's directory or hub id."
    ),
]
Drawing = Annotated[
    str, typer.Argument(metavar="MODEL", help="Who draws: a recipe or YAML file, a run, or a checkpoint of one.")
]


@writer_app.command("pairs")
def writer_pairs(
    out: Annotated[Path, typer.Option(help="Directory of the set.")],
    model: Drawing = "scenes-users-ddpo",
    writer: WriterName = "scenes-writer",
    prompts: Annotated[int, typer.Option(help="Training prompts, alike from every kind.")] = 128,
    draws: Annotated[int, typer.Option(help="Rewrites of each; the user's own text is one candidate more.")] = 6,
    pictures: Annotated[int, typer.Option(help="Of each candidate, with the same noise.")] = 4,
    margin: Annotated[float, typer.Option(help="Standard errors by which a preferred rewrite is better.")] = 1.0,
    which: Annotated[
        Literal["all", "best"], typer.Option(help="all pairs beyond the margin, or the best with the worst.")
    ] = "all",
    temperature: Annotated[float, typer.Option(help="Of the draws.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, draws and noise.")] = 0,
    budget: Annotated[
        int | None, typer.Option(help="Network evaluations: prompts that it has no pictures for are left out.")
    ] = None,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Draw rewrites of users' prompts, and find which of them are preferred. The same command again goes on."""
    directory = _place(out)
    _begin("writer pairs", directory)
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

    launch.preflight(found.config)
    with locked(directory), Counting("drawing", "batches", console) as counting:
        summary = writing.make_pairs(found, writer, plan, directory, sys.argv, counting)
    console.print(
        f"{summary['pairs']} pairs of {summary['candidates']} candidates, {summary['left_out']} within the margin left out, "
        f"{summary['cut']} rewrites too long for the image model: {directory / sets.FILE}",
        soft_wrap=True,
        highlight=False,
    )


@writer_app.command("train")
def writer_train(
    pairs: Annotated[
        Path,
        typer.Argument(metavar="PAIRS", help="The --out of writer pairs, or a .jsonl of prompt, chosen, rejected."),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the training; the writer is in writer/.")],
    writer: WriterName = "scenes-writer",
    loss: Annotated[
        Literal["sigmoid", "cal_dpo", "ipo", "apo_zero", "sft"], typer.Option(help="Of a pair; sigmoid is DPO.")
    ] = "sigmoid",
    beta: Annotated[float, typer.Option(help="How much a nat away from the reference costs.")] = 0.1,
    targets: Annotated[
        Literal["plain", "normalised"], typer.Option(help="Of cal_dpo: plain, or normalised, which a writer can reach.")
    ] = "plain",
    weight: Annotated[float, typer.Option(help="Of cal_dpo's calibration.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 5e-4,
    epochs: Annotated[int, typer.Option(help="Times that each pair is seen.")] = 4,
    batch: Annotated[int, typer.Option(help="Pairs of a step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the order.")] = 0,
) -> None:
    """Train a writer on preferences with TRL. The same command again goes on from the last epoch."""
    directory = _place(out)
    _begin("writer train", directory)
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
        console.print(f"WARNING: {told}", soft_wrap=True, highlight=False, markup=False)

    with locked(directory):
        if training.claim(directory, writer, file, lesson, sys.argv):
            with watch_steps(directory, "training", console):
                writing.train_writer(writer, rows, lesson, directory, warn)
    for line in training.told(directory):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"writer: {directory}", soft_wrap=True, highlight=False)


@writer_app.command("grpo")
def writer_grpo(
    out: Annotated[Path, typer.Option(help="Directory of the training; the writer is in writer/.")],
    model: Drawing = "scenes-users-ddpo",
    writer: WriterName = "scenes-writer",
    prompts: Annotated[int, typer.Option(help="Of a step, alike from every kind.")] = 8,
    draws: Annotated[int, typer.Option(help="Rewrites of each, which are compared with each other.")] = 8,
    pictures: Annotated[int, typer.Option(help="Of each rewrite, with the same noise.")] = 2,
    steps: Annotated[int, typer.Option(help="At most.")] = 100,
    budget: Annotated[
        int | None, typer.Option(help="Network evaluations of the pictures, after which it ends.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Constant.")] = 5e-4,
    beta: Annotated[float, typer.Option(help="Weight of the KL from the writer as it came.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, rewrites and noise.")] = 0,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Train a writer on-line with TRL's GRPO, by what the image model draws. The same command again goes on."""
    directory = _place(out)
    _begin("writer grpo", directory)
    from raysuite.writer import grpo, train as training

    training.check_trl()
    plan = grpo.Plan(prompts, draws, pictures, steps, budget, learning_rate, beta, seed)
    found = _drawing(model, settings)
    from raysuite.cluster import launch, writer as writing
    from raysuite.progress import Counting
    from raysuite.stages.lock import locked

    launch.preflight(found.config)
    with locked(directory), Counting("training", "steps", console) as counting:
        told = writing.train_online(found, writer, plan, directory, sys.argv, counting)
    first, last = told[0], told[-1]
    console.print(
        f"{len(told)} steps, {last['network_evaluations']:,} network evaluations; mean reward {first['reward']:.3f} in the first "
        f"step, {last['reward']:.3f} in the last",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"writer: {directory}", soft_wrap=True, highlight=False)


@writer_app.command("evaluate")
def writer_evaluate(
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
    prompts: Annotated[int, typer.Option(help="Of each cell.")] = 40,
    pictures: Annotated[int, typer.Option(help="Of each prompt.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts.")] = 0,
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of the run's weights (learn.ema) in place of them.")
    ] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Compare writers by what an image model draws from their rewrites. The same command again goes on."""
    directory = _place(out)
    _begin("writer evaluate", directory)
    from raysuite.writer import evaluation

    plan = evaluation.Plan(tuple(who), prompts, pictures, seed)
    found = _drawing(model, settings, ema=ema)
    from raysuite.cluster import launch, writer as writing
    from raysuite.progress import Counting
    from raysuite.results.writer import writers_summary
    from raysuite.stages.lock import locked

    launch.preflight(found.config)
    with locked(directory), Counting("drawing", "batches", console) as counting:
        writing.evaluate(found, plan, directory, sys.argv, counting)
    console.print(writers_summary(directory, _width()), soft_wrap=True, markup=False, highlight=False)


def _drawing(model: str, settings: Sequence[str], *, ema: bool = False) -> Any:
    """Who draws: a recipe with other settings, a run, or a checkpoint."""
    from raysuite.in_context.draw import check_average, find

    found = find(model, ema=ema)
    if ema:
        check_average([found])
    if not settings:
        return found
    if found.model is not None or Path(model).is_dir():
        raise UserError(f"expected no --set with {model}, which has its settings: leave it out, or name a recipe")
    from raysuite import config as configuration

    return type(found)(found.label, configuration.load(model, dict(_split(setting) for setting in settings)), None)


prompts_app = typer.Typer(
    help="Draw from a trained distribution of soft prompts: pages of pictures, and states for diffusers."
)
app.add_typer(prompts_app, name="prompts", no_args_is_help=True)

PromptRun = Annotated[Path, typer.Argument(help="The --out of a run with parameters.kind=prompts.")]
Checkpoint = Annotated[int | None, typer.Option(min=1, help="Updates of the checkpoint \\[default: the last].")]
Samples = Annotated[int, typer.Option(min=1, help="Draws.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the noise and the draws.")]


@prompts_app.command("sample")
def sample_prompts(
    run: PromptRun,
    prompt: Annotated[str, typer.Option(help="The text.")],
    out: Annotated[Path, typer.Option(help="The page.")],
    spread: Annotated[str, typer.Option(help="Factors on the spread, with commas between them.")] = "0,0.5,1,1.5,2",
    samples: Samples = 6,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Pictures of one prompt: a row for each spread, and in each row the same draws and noise."""
    page, spreads = places.file(out), _numbers("--spread", spread)
    from raysuite.stages.soft_prompts import open_distribution, pictures

    drawn = open_distribution([places.existing(run)], updates=checkpoint)
    rows = [
        (f"spread {g:g}", list(pictures(drawn.mixed([1.0], g), prompt, samples=samples, seed=seed))) for g in spreads
    ]
    said = "From row to row only the spread of the draw changes: at 0 all pictures have the mean prompt, and differ in their noise."
    _grid(page, prompt, said, [f"draw {number + 1}" for number in range(samples)], rows)


@prompts_app.command("edit")
def edit_prompts(
    run: PromptRun,
    prompt: Annotated[list[str], typer.Option(help="A text; several, to compare.")],
    out: Annotated[Path, typer.Option(help="The page.")],
    samples: Samples = 6,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Pictures of several prompts: a row for each text, and in each row the same draws and noise, so that text alone changes."""
    page = places.file(out)
    from raysuite.stages.soft_prompts import open_distribution, pictures

    drawn = open_distribution([places.existing(run)], updates=checkpoint)
    rows = [(text, list(pictures(drawn, text, samples=samples, seed=seed))) for text in prompt]
    said = "From row to row only the text changes: a column has one draw and one noise."
    _grid(page, "Texts", said, [f"draw {number + 1}" for number in range(samples)], rows)


@prompts_app.command("mix")
def mix_prompts(
    run: PromptRun,
    other: Annotated[Path, typer.Argument(help="Another run of the same model and shape.")],
    prompt: Annotated[str, typer.Option(help="The text.")],
    out: Annotated[Path, typer.Option(help="The page.")],
    weights: Annotated[str, typer.Option(help="Of the other run's distribution.")] = "0,0.25,0.5,0.75,1",
    spread: Annotated[str, typer.Option(help="Factors on the spread.")] = "0,0.5,1,1.5,2",
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Pictures between two distributions: mixing from left to right, spread from top to bottom, one noise for all."""
    page, shares, spreads = places.file(out), _numbers("--weights", weights), _numbers("--spread", spread)
    from raysuite.stages.soft_prompts import open_distribution, pictures

    drawn = open_distribution([places.existing(run), places.existing(other)], updates=checkpoint)
    rows = [
        (
            f"spread {g:g}",
            [pictures(drawn.mixed([1 - w, w], g), prompt, samples=1, seed=seed)[0] for w in shares],
        )
        for g in spreads
    ]
    said = (
        f"From left to right the weight of {other} rises, that of {run} falls; from top to bottom the spread of both."
    )
    _grid(page, prompt, said, [f"{w:g}" for w in shares], rows)


@prompts_app.command("export")
def export_prompts(
    run: PromptRun,
    prompt: Annotated[str, typer.Option(help="The text.")],
    out: Annotated[Path, typer.Option(help="The safetensors file.")],
    samples: Samples = 4,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Write draws of a prompt's states for `pipe(prompt_embeds=...)` of plain diffusers, with their mean and standard deviation."""
    file = places.file(out)
    from raysuite.stages.soft_prompts import embeddings, open_distribution, write_embeddings

    drawn = open_distribution([places.existing(run)], updates=checkpoint)
    tensors = embeddings(drawn, prompt, samples=samples, seed=seed)
    write_embeddings(file, tensors)
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    console.print(f"{shapes}: {file}", soft_wrap=True, highlight=False)


@prompts_app.command("measure")
def measure_prompts(
    run: PromptRun,
    prompt: Annotated[list[str], typer.Option(help="A text; several, for intervals.")],
    draws: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 4,
    noises: Annotated[int, typer.Option(min=2, help="Of each draw.")] = 4,
    references: Annotated[
        Path | None, typer.Option(help="A folder of real pictures: density and coverage beside them, too.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="What they are compared by: pixels, package.module:function, or a vision model's hub id or directory."
        ),
    ] = "pixels",
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each prompt to set beside real ones.")] = 64,
    neighbours: Annotated[int, typer.Option(min=1, help="Real pictures in a neighbourhood.")] = 5,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Where differences between pictures of a prompt come from (the draw, the noise, or both), and how they lie to real ones."""
    folder = places.existing(references) if references else None
    from raysuite.datasets.pictures import of_folder
    from raysuite.results.comparison import with_interval
    from raysuite.rewards.features import features as features_of
    from raysuite.stages.soft_prompts import beside_real, measured, open_distribution

    drawn = open_distribution([places.existing(run)], updates=checkpoint)
    if folder:  # read before anything is drawn
        real_N, extract = of_folder(folder, drawn.policy.image_size), features_of(features, device=drawn.policy.device)
        found = beside_real(drawn, prompt, real_N, extract, samples=samples, seed=seed, neighbours=neighbours)
        said = f"{samples * len(prompt)} drawn and {len(real_N)} real pictures, {neighbours} neighbours, {features}"
        console.print(f"{'density':12} {found.density:.2f}  {said}", soft_wrap=True, highlight=False)
        console.print(f"{'coverage':12} {found.coverage:.2f}", soft_wrap=True, highlight=False)
    for name, component in measured(drawn, prompt, draws=draws, noises=noises, seed=seed).items():
        console.print(f"{name:12} {with_interval(component)}  grey levels squared", soft_wrap=True, highlight=False)


def _grid(page: Path, title: str, said: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]) -> None:
    from raysuite.results.grid import write_grid

    written = write_grid(page, title=title, said=said, columns=columns, rows=rows)
    console.print(f"page: {written}", soft_wrap=True, highlight=False)


def _numbers(option: str, given: str) -> list[float]:
    try:
        return [float(number) for number in given.split(",")]
    except ValueError as error:
        raise UserError(f"expected numbers with commas between them for {option}, got {given}: correct it") from error


def _split(setting: str, option: str = "--set") -> tuple[str, str]:
    path, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"expected {option} path=value, got {setting!r}: put an equals sign between them")
    return path, value


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


if __name__ == "__main__":
    main()
