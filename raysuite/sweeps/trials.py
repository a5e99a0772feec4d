"""The runs of a sweep: what is known of each, which settings come next. A run's own directory says how it went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from raysuite.config import RunConfig, is_foreign, validate
from raysuite.errors import UserError
from raysuite.places import remove_unfinished
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.files import (
    RunDirectory,
    edited,
    inputs,
    is_held,
    provenance,
    read_json,
    trained_rewards,
    was_edited,
    write_json,
)
from raysuite.sweeps.declared import Dimension, Planned, Sweep

Status = Literal["waiting", "running", "done", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("done", "stopped", "failed")
SETTLED_BY_RUNS = ("concurrent", "settings")
"""Fields of a sweep that may change between its parts, as far as its runs stay the same."""


@dataclass(frozen=True)
class Outcome:
    """What a run's held-out prompts said after some training."""

    network_evaluations: float
    """Spent on training until then."""
    held_out: float
    """The trained reward."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, as trials.json has it."""

    name: str
    objective: str
    trial: int | None
    """None for a run that confirms."""
    seed: int
    status: Status = "waiting"
    settings: dict[str, Any] | None = None
    """What was drawn, by path; None until it is."""
    network_evaluations: float | None = None
    held_out: float | None = None
    """The trained reward on held-out prompts, at the last evaluation."""
    message: str | None = None
    """Why it failed or was stopped."""
    confirms: int | None = None
    """The trial whose settings it has, of a run that confirms."""


class Tried(NamedTuple):
    """What is known of a trial that has ended."""

    settings: dict[str, Any]
    held_out: float
    """Mean over its runs."""
    stopped: bool
    """Early: its last evaluation has fewer pictures than that of a trial that was finished, so that the two do not compare."""


def _settled(sweep: dict[str, Any]) -> dict[str, Any]:
    settled = {name: value for name, value in sweep.items() if name not in SETTLED_BY_RUNS}
    return settled | {"configs": {label: validate(tree).identity() for label, tree in sweep["configs"].items()}}


def _read(sweep: Sweep) -> dict[str, dict[str, str]]:
    """Digests of what the runs read, by objective and the setting that names it; of runs that confirm, which read most."""
    runs = {label: Planned(label, None, sweep.seeds[0]) for label in sweep.labels}
    return {label: inputs(sweep.config(run, sweep.drawn(label, 0))) for label, run in runs.items()}


def _objectives(sweep: dict[str, Any]) -> dict[str, Any]:
    return {label: tree["objective"]["name"] for label, tree in sweep["configs"].items()}


@dataclass
class Book:
    """All runs of a sweep by name; trials.json is written at every change."""

    sweep: Sweep
    directory: Path
    trials: dict[str, Trial] = field(default_factory=dict)

    @classmethod
    def open(cls, sweep: Sweep, directory: Path, command: Sequence[str]) -> Book:
        """Make `directory` this sweep's, or find that it already is, and read how far it got.

        A recipe or a file that it names may have been edited since: sweep.json has what they came to, provenance.json what was read.

        Raises:
            UserError: the directory holds something else, or what its runs read was edited.
        """
        wanted, read = {**sweep.canonical(), "configs": sweep.configs()}, _read(sweep)

        def settled(found: dict[str, Any]) -> dict[str, Any]:
            there, here = (_objectives(sweep) for sweep in (found, wanted))
            if any(is_foreign(name, here.get(label)) for label, name in there.items()):
                return {**_settled(wanted), "objectives": list(there.values())}
            try:
                return _settled(found)
            except UserError as error:
                raise UserError(f"expected {directory} of a sweep, this version cannot read it: {error}") from error

        known, told = directory / "provenance.json", directory / "trials.json"
        held = is_held(directory, "sweep.json", _settled(wanted), "sweep", settled, begun=["trials/*"])
        before = read_json(known, "sweep").get("inputs", {}) if held and known.exists() else {}
        for label in before.keys() & read.keys():
            if setting := edited(before[label], read[label]):
                if any(directory.glob("trials/*")):
                    raise was_edited(setting, f"the sweep in {directory}")
                held = False
        if held:
            remove_unfinished(directory, but=("trials",))  # each is held by who works there
        else:
            told.unlink(missing_ok=True)
            write_json(directory / "sweep.json", wanted)
        if not (held and known.exists()):  # a command may have been killed between the two
            write_json(known, {**provenance(command), "inputs": read})
        rows = {row["name"]: Trial(**row) for row in read_json(told, "sweep", list)} if told.exists() else {}
        book = cls(sweep, directory)
        for run in sweep.runs:
            trial = rows.get(run.name, Trial(run.name, run.objective, run.trial, run.seed))
            # what was going on, or failed, when the sweep ended is tried again
            again = trial.status in ("running", "failed")
            book.trials[run.name] = replace(trial, status="waiting", message=None) if again else trial
        book.write()
        return book

    def write(self) -> None:
        """Put trials.json in place."""
        write_json(self.directory / "trials.json", [asdict(trial) for trial in self.trials.values()])

    def note(self, run: Planned, **changes: Any) -> None:
        """Change what is known of a run."""
        self.trials[run.name] = replace(self.trials[run.name], **changes)
        self.write()

    def run_directory(self, run: Planned) -> Path:
        """Where it lies."""
        return self.directory / "trials" / run.name

    def left(self) -> list[Planned]:
        """Runs that have not begun, in their order."""
        return [run for run in self.sweep.runs if self.trials[run.name].status == "waiting"]

    def waiting(self) -> list[Planned]:
        """Those of them that may begin: a run that confirms waits for all trials of its objective."""
        open_yet = {t.objective for t in self.trials.values() if t.trial is not None and t.status not in ENDED}
        return [run for run in self.left() if run.trial is not None or run.objective not in open_yet]

    def winner(self, objective: str) -> int:
        """The trial with the highest mean held-out reward over most seeds.

        Raises:
            UserError: none was finished.
        """
        done: dict[int, list[float]] = defaultdict(list)
        for trial in self.trials.values():
            if trial.objective == objective and trial.trial is not None and trial.status == "done":
                done[trial.trial].append(trial.held_out or 0.0)
        if not done:
            raise UserError(
                f"expected a finished trial of {objective} to confirm, found none: see why they failed, and repeat the command"
            )
        return min(done, key=lambda trial: (-len(done[trial]), -sum(done[trial]) / len(done[trial]), trial))

    def settings(self, run: Planned) -> dict[str, Any]:
        """The settings of a run's trial: those that were drawn before, for any seed, or a new draw. A run that confirms has the
        winner's, and the first of an objective settles for the others who that is.

        Raises:
            UserError: there is nothing to confirm.
        """
        if run.trial is None:
            of_it = [t.confirms for t in self.trials.values() if t.objective == run.objective]
            settled = next((won for won in of_it if won is not None), None)
            won = self.winner(run.objective) if settled is None else settled
            self.note(run, confirms=won)
            run = replace(run, trial=won)
        assert run.trial is not None
        drawn = (t.settings for t in self.trials.values() if (t.objective, t.trial) == (run.objective, run.trial))
        found = next((settings for settings in drawn if settings is not None), None)
        if found is not None:
            return found
        if self.sweep.searcher == "random":
            return self.sweep.drawn(run.objective, run.trial)
        rng = numpy_generator(seed=self.sweep.seed, stage=Stage.SWEEP, update=run.trial)
        return suggestion(self.sweep.space_of(run.objective), self.tried(run.objective), seed=int(rng.integers(2**31)))

    def tried(self, objective: str) -> list[Tried]:
        """An objective's trials whose runs have all ended."""
        found = []
        for number in {t.trial for t in self.trials.values() if t.objective == objective and t.trial is not None}:
            runs = [t for t in self.trials.values() if (t.objective, t.trial) == (objective, number)]
            ends = [t.held_out for t in runs if t.status in ("done", "stopped") and t.held_out is not None]
            if len(ends) == len(runs) and runs[0].settings is not None:
                stopped = any(t.status == "stopped" for t in runs)
                found.append(Tried(runs[0].settings, sum(ends) / len(ends), stopped))
        return found

    def outcome(self, run: Planned, config: RunConfig) -> dict[str, float | None]:
        """What its last evaluation said, as fields of `Trial`."""
        found = outcomes(self.run_directory(run), config)
        return asdict(found[-1]) if found else dict.fromkeys(("network_evaluations", "held_out"))


def outcomes(directory: Path, config: RunConfig) -> list[Outcome]:
    """A run's evaluations so far: what training had cost, and the trained reward on held-out prompts."""
    found = RunDirectory(directory).metrics()
    spent = found.get("budget/network_evaluations", {})
    rewards = trained_rewards(found, config, "held_out")
    return [Outcome(spent[update - 1] if update else 0.0, reward) for update, reward in rewards.items()]


def suggestion(space: dict[str, Dimension], seen: Sequence[Tried], *, seed: int) -> dict[str, Any]:
    """What Optuna's TPE tries next after these trials. Those that were stopped are worse than all that were finished, and compared
    among themselves.

    Nothing is kept between calls: a sweep that goes on tells it again what it knows.

    Raises:
        UserError: Optuna is not there.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("expected Optuna for searcher=optuna, found none: pip install 'raysuite[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = {}
    for path, dimension in space.items():
        if dimension.kind == "choice":  # by place: Optuna wants plain values, a setting may be a list
            distributions[path] = optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
        elif dimension.kind == "integers":
            distributions[path] = optuna.distributions.IntDistribution(*dimension.values)
        else:
            low, high = dimension.values
            distributions[path] = optuna.distributions.FloatDistribution(low, high, log=dimension.kind == "loguniform")
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for trial in seen:
        places = {
            path: space[path].values.index(setting) if space[path].kind == "choice" else setting
            for path, setting in trial.settings.items()
        }
        ended: dict[str, Any] = {"value": trial.held_out}
        if trial.stopped:
            ended = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": {0: trial.held_out}}
        study.add_trial(optuna.trial.create_trial(params=places, distributions=distributions, **ended))
    asked = study.ask(distributions).params
    return {
        path: dimension.values[asked[path]] if dimension.kind == "choice" else asked[path]
        for path, dimension in space.items()
    }
