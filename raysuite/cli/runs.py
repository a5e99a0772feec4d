"""Commands that train, and that look at what was trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from raysuite import places
from raysuite.cli.common import Run, Settings, begin, by_path, console, place, say, terminal_width
from raysuite.errors import UserError


def train(
    run: Annotated[str, typer.Argument(metavar="RECIPE_OR_YAML", help="A recipe's name or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run directory \\[default: runs/<name>].")] = None,
    keep_rollouts: Annotated[
        bool, typer.Option("--keep-rollouts", help="Store all rollouts, for runs with rollouts.replay=<this run>.")
    ] = False,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Train. The same command again goes on with a run that was stopped."""
    directory = place(out or Path("runs") / Path(run).stem)
    begin("train", directory)
    from raysuite import config as configuration  # torch and ray take seconds to import: not for --help

    overrides = by_path(settings)
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
            say(f"{directory} is finished already: with more updates, or a larger budget, it goes on")
        else:
            with watch(directory, console):
                launch.train(config, directory)
        say(summary(directory, terminal_width()))
        say(f"report: {write_report(directory)}")


def plan(
    run: Annotated[str, typer.Argument(metavar="RECIPE_OR_YAML", help="A recipe's name or a YAML file.")],
    gpu: Annotated[str | None, typer.Option(help="The GPU that is meant: 'H100 80GB', 'A100 40GB', H200.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="Memory of the GPU in GB, in place of its name.")] = None,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Say what each process of a run will hold, before anything is loaded: weights need not be there, configurations do.

    Leaves with exit status 1 if the GPU that is meant has no room for it.
    """
    from raysuite import config as configuration
    from raysuite.stages import plan as planning

    if gpu is not None and memory is not None:
        raise UserError("expected --gpu or --memory, got both: leave one out")
    size = planning.memory_of(gpu) if gpu is not None else memory
    config = configuration.load(run, by_path(settings))
    planned = planning.plan(config)
    say(planning.as_text(planned))
    for line in planning.verdict(config, planned, size):
        say(line)
    if size is not None and not planned.fits(size):
        raise typer.Exit(1)


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
    directory = place(out)
    begin("sweep", directory)
    from raysuite.sweeps import declared as sweeps

    declared = sweeps.load(sweep, by_path(settings))
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
            show_comparison([directory])
        else:  # nothing to set beside it
            for caution in chosen.cautions:
                say(f"Note: {caution}")
    failed = [trial for trial in book.trials.values() if trial.status == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(book.trials)} runs failed ({failed[0].name}: {failed[0].message}); the same command tries them "
            "again"
        )


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="The --out of a run, or of a study; several as compare.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write \\[default: report.html in the run, or comparison.html beside several]."),
    ] = None,
) -> None:
    """Write a page about one run, or a study of directions."""
    directory, *others = (places.existing(run) for run in runs)
    if others or (directory / "sweep.json").exists():
        show_comparison([directory, *others], out)
        return
    page = places.file(out or directory / "report.html")
    from raysuite.results.report import summary, write_report

    if (directory / "study.json").exists():
        from raysuite.results.study.report import study_summary, write_study_report

        say(study_summary(directory, terminal_width()))
        path = write_study_report(directory, page)
    elif (directory / "protocol.json").exists():
        from raysuite.results.suites.report import suite_summary, write_suite_report

        say(suite_summary(directory, terminal_width()))
        path = write_suite_report(directory, page)
    elif (directory / "in_context.json").exists():
        from raysuite.results.in_context.report import in_context_summary, write_in_context_report

        say(in_context_summary(directory, terminal_width()))
        path = write_in_context_report(directory, page)
    else:
        say(summary(directory, terminal_width()))
        path = write_report(directory, page)
    say(f"report: {path}")


def track(
    run: Run,
    settings: Settings = [],  # noqa: B006 - typer reads the default, nothing changes it
) -> None:
    """Tell trackers (--set trackers.<name>...) of a run that went on without them. What they have been told before is not repeated."""
    from raysuite import config as configuration, trackers
    from raysuite.cluster import launch
    from raysuite.stages.files import RunDirectory

    directory = places.existing(place(run))
    tree = RunDirectory(directory).config().canonical()
    for path, value in by_path(settings).items():
        if not path.startswith("trackers."):
            raise UserError(f"expected a setting under trackers, got {path}: a run that exists keeps all others")
        configuration.put(tree, path, configuration.parse(path, value))
    config = configuration.validate(tree)
    begin("track", directory)
    trackers.tell(config, directory, completed=launch.finished(config, directory))


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
    show_comparison(runs, out)


def show_comparison(runs: Sequence[Path], out: Path | None = None) -> None:
    from raysuite.results.side_by_side.report import Report, page_of
    from raysuite.results.suites.across import suites_across

    whole = [places.existing(run) for run in runs]
    page = places.file(out or page_of(whole))
    report = Report.of(whole)
    say(report.summary(terminal_width()))
    written = report.write(page)
    if on_suites := suites_across([run.directory for run in report.together.runs], terminal_width()):
        say(f"\n{on_suites}")
    say(f"report: {written}")


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    checkpoint: Annotated[
        int | None, typer.Option(min=1, help="Updates of the checkpoint \\[default: the last].")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Write the average of the weights (learn.ema).")] = False,
) -> None:
    """Write a run's LoRA in kohya's form, which ComfyUI reads, and of SD 1.x and 2.x kohya's tools.

    For diffusers nothing needs to be written: it loads checkpoints/<updates>/model.
    """
    directory, file = places.existing(run), places.file(out)
    from raysuite.families.export import to_kohya
    from raysuite.stages import checkpoint as checkpoints
    from raysuite.stages.files import RunDirectory

    RunDirectory(directory).config()
    found = checkpoints.find(directory, checkpoint)
    layers = to_kohya(checkpoints.weights(found, ema=ema), file)
    say(f"{layers} layers after {int(found.name)} updates: {file}")


def settings(
    word: Annotated[
        str | None, typer.Argument(help="What their path or meaning has in it, such as learn or guidance.")
    ] = None,
) -> None:
    """List the settings of a run: what each means, takes, and is by default."""
    from raysuite.config import described

    found: dict[described.Setting, list[str]] = {}  # with the objectives that have it
    for group in described.sections():
        found |= {setting: [] for setting in group.settings}
    for group in described.objectives():
        for setting in group.settings:
            found.setdefault(setting, []).append(group.name)
    shown = {s: of for s, of in found.items() if word is None or word.lower() in f"{s.path} {s.meaning}".lower()}
    if not shown:
        raise UserError(
            f"expected a word that a setting's path or meaning has in it, got {word!r}: leave it out to see all settings"
        )
    for setting, objectives in shown.items():
        default = "" if setting.default is None else f", {setting.default} by default"
        of = f" (of {', '.join(objectives)})" if objectives else ""
        said = f"{setting.values}{default}{of}".replace("`", "")
        console.print(f"[bold]{setting.path}[/bold]  {escape(said)}", soft_wrap=True, highlight=False)
        console.print(f"    {escape(setting.meaning)}", soft_wrap=True, highlight=False)


def recipes() -> None:
    """List the runs and sweeps that ship with the package."""
    from raysuite import config as configuration
    from raysuite.sweeps.declared import sweeps

    for name, line in {**configuration.recipes(), **{n: f"(sweep) {line}" for n, line in sweeps().items()}}.items():
        console.print(f"[bold]{name:30}[/bold] {escape(line)}", soft_wrap=True, highlight=False)
