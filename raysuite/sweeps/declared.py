"""A sweep, declared: objectives raced at an equal budget, over settings and seeds.

>>> sweep = load("scenes-race-small")
>>> [run.name for run in sweep.runs[:2]]
['scenes-ddpo-00-seed0', 'scenes-discounted-dpo-00-seed0']
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError

from raysuite import config as configuration, places
from raysuite.config import NonNegativeInt, RunConfig, Section
from raysuite.errors import UserError
from raysuite.rng import Stage, numpy_generator

METHOD = ("objective", "credit", "preferences", "reference", "learn")
"""Sections that a recipe in `objectives` brings with it, besides evaluation.every (updates of methods cost differently).
All others are the base recipe's, and so the same for everybody."""

YARDSTICK = (
    "rewards",
    "evaluation",
    "prompts",
    "prompts.held_out",
    "prompts.test",
    "prompts.writer",
    "model.path",
    "model.variant",
    "model.size",
)
"""Settings and sections by which trials are judged."""

KINDS = ("choice", "grid", "uniform", "loguniform", "integers")


@dataclass(frozen=True)
class Dimension:
    """Values of one setting: `choice` and `grid` list them, the others have a lowest and a highest."""

    kind: str
    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1); floats to four digits, so that a configuration stays readable."""
        if self.kind in ("choice", "grid"):
            return self.values[int(place * len(self.values))]
        low, high = self.values
        if self.kind == "integers":
            return low + int(place * (high - low + 1))
        if self.kind == "uniform":
            return float(f"{low + place * (high - low):.4g}")
        return float(f"{math.exp(math.log(low) + place * (math.log(high) - math.log(low))):.4g}")


def _dimension(given: Any) -> Dimension:
    if isinstance(given, Dimension):
        return given
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
        raise UserError(
            f"expected one of {', '.join(KINDS)} for every path in space, such as {{loguniform: [1.0e-5, 1.0e-3]}}, got {given!r}"
        )
    ((kind, values),) = given.items()
    if isinstance(values, list):
        values = tuple(values)
    if not isinstance(values, tuple) or len(values) < 2:
        raise UserError(f"expected a list of at least two values for {kind}, got {values!r}: a single one is no search")
    if kind in ("choice", "grid"):
        return Dimension(kind, values)
    numbers = int if kind == "integers" else (int, float)
    if len(values) != 2 or not all(isinstance(v, numbers) for v in values) or not values[0] < values[1]:
        what = "whole numbers" if kind == "integers" else "numbers"
        raise UserError(f"expected {kind}: [lowest, highest], two {what}, got {list(values)}: correct it")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError(f"expected loguniform to begin above 0, got {list(values)}: use uniform, or a small number")
    return Dimension(kind, values)


@dataclass(frozen=True)
class Planned:
    """One run of a sweep, by its coordinates."""

    objective: str
    trial: int | None
    """Which settings, counted from 0 for each objective; None for those that won."""
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.objective}-{'best' if self.trial is None else f'{self.trial:02d}'}-seed{self.seed}"


class Confirm(Section):
    """Runs that report: of each objective the settings that won, anew. Trials choose, and these have no part in it."""

    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """None of them a trial's."""
    test: str | None = None
    """Prompts (`prompts.test`) that no trial has seen."""


class Sweep(Section):
    """Settings of a sweep. A *trial* is one choice of settings for one objective; it is run once with every seed. What wins on
    held-out prompts may be run again, to `confirm` it.
    """

    recipe: str
    """What all runs have in common: model, sampler, prompts, rewards, rollouts, evaluation, placement."""
    objectives: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)]
    """Recipes or YAML files (which bring their objective, credit, preferences, reference and learning), or objectives as in a
    run: `{name: dspo, beta: 0.01}`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """By dotted path, the same in every run; `objectives.<label>.<field>` for one objective alone."""
    space: dict[str, Annotated[Any, BeforeValidator(_dimension)]] = Field(default_factory=dict)
    """What is searched: by dotted path `{choice: [...]}`, `{grid: [...]}`, `{uniform: [low, high]}`, `{loguniform: [low,
    high]}` or `{integers: [low, high]}`. Every point of the grids is combined with every draw of the others."""
    trials: PositiveInt = 1
    """Draws from the space for every objective."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Of the runs of every trial."""
    confirm: Confirm | None = None
    """With it, the best trial of each objective is run again with other seeds and evaluated on test prompts, and reports are of these
    runs."""
    budget: PositiveInt
    """Network evaluations of training that every run may spend."""
    scheduler: Literal["asha"] | None = None
    """`asha` stops the runs of an objective whose held-out reward is not among the best third at a ninth and at a third of
    the budget; null lets all of them end."""
    searcher: Literal["random", "optuna"] = "random"
    """`optuna` (TPE) draws the settings of an objective in the light of its trials that have ended; before these are ten it draws at
    random."""
    concurrent: PositiveInt | None = None
    """Runs at a time; by default as many as the cluster holds."""
    seed: NonNegativeInt = 0
    """Of the draws: those of trial n are a function of this and n, the same for every objective."""

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """How the objectives are called: recipes by their name, others by the objective's."""
        return tuple(
            Path(entry).stem if isinstance(entry, str) else configuration.label_of(entry.get("name"))
            for entry in self.objectives
        )

    @property
    def runs(self) -> tuple[Planned, ...]:
        """All runs in their order: those that choose, and those that confirm."""
        seeds = self.confirm.seeds if self.confirm else ()
        return (*self.searched, *(Planned(label, None, seed) for seed in seeds for label in self.labels))

    @property
    def searched(self) -> tuple[Planned, ...]:
        """The runs of all trials in their order: early on every objective has been tried."""
        longest = max(self.trials_of(label) for label in self.labels)
        return tuple(
            Planned(label, trial, seed)
            for trial in range(longest)
            for seed in self.seeds
            for label in self.labels
            if trial < self.trials_of(label)
        )

    def space_of(self, label: str) -> dict[str, Dimension]:
        """What is searched for one objective."""
        return {path: dimension for path, dimension in self.space.items() if _whose(path) in (None, label)}

    def trials_of(self, label: str) -> int:
        """How many settings of one objective are tried: the draws at every point of its grids, or one where nothing is drawn."""
        space = self.space_of(label).values()
        draws = self.trials if any(d.kind != "grid" for d in space) else 1
        return draws * math.prod(len(d.values) for d in space if d.kind == "grid")

    def drawn(self, label: str, trial: int) -> dict[str, Any]:
        """The settings of a trial by path, drawn at random: a function of the sweep's seed and the trial's number."""
        space = self.space_of(label)
        grids = {path: d.values for path, d in space.items() if d.kind == "grid"}
        points = list(product(*grids.values()))
        found = dict(zip(grids, points[trial % len(points)], strict=True))
        for place, path in enumerate(sorted(self.space)):  # over the whole space: the same draws for every objective
            if path in space and path not in grids:
                rng = numpy_generator(seed=self.seed, stage=Stage.SWEEP, update=trial // len(points), prompt=place)
                found[path] = space[path].at(float(rng.random()))
        return {path: found[path] for path in space}

    def config(self, run: Planned, drawn: Mapping[str, Any]) -> RunConfig:
        """The configuration of one run.

        Raises:
            UserError: a setting is unknown, or they contradict each other.
        """
        tree = {**deepcopy(self._trees[run.objective]), "seed": run.seed, "budget": self.budget}
        if "replay" not in (tree.get("rollouts") or {}):
            tree["updates"] = self.budget  # more than it buys: runs end by the budget, which is equal, and nothing else
        for path, value in {**self.settings, **drawn}.items():
            if (label := _whose(path)) is not None:
                if label != run.objective:
                    continue
                path = f"objective.{path.rpartition('.')[2]}"
            configuration.put(tree, path, deepcopy(value))
        if "parameters.kind" in drawn:  # of those that are searched some read no rank
            tree["parameters"] = configuration.without_idle("parameters", tree["parameters"])
        until, updates = (tree.get("learn") or {}).get("decline_until"), tree.get("updates")
        if isinstance(until, int) and isinstance(updates, int):  # from there on nothing would be learned
            tree["updates"] = min(updates, until)
        if run.trial is None and self.confirm is not None and self.confirm.test is not None:
            configuration.put(tree, "prompts.test", self.confirm.test)
        return configuration.validate(tree)

    @cached_property
    def _trees(self) -> dict[str, dict[str, Any]]:
        """Plain values of every objective's runs, before any setting."""
        base = configuration.read(self.recipe)
        return {label: _tree(entry, base) for label, entry in zip(self.labels, self.objectives, strict=True)}

    def configs(self) -> dict[str, Any]:
        """The first trial of every objective as plain JSON values."""
        first = {label: Planned(label, 0, self.seeds[0]) for label in self.labels}
        return {label: self.config(run, self.drawn(label, 0)).canonical() for label, run in first.items()}

    def canonical(self) -> dict[str, Any]:
        """Its fields as plain JSON values."""
        space = {path: {d.kind: list(d.values)} for path, d in self.space.items()}
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        confirm = fields.pop("confirm")
        fields |= {} if confirm is None else {"confirm": confirm.model_dump()}
        return json.loads(json.dumps({**fields, "space": space}))


def _whose(path: str) -> str | None:
    """The objective that `objectives.<label>.<field>` is for; a label may have dots. None for a setting of all."""
    return path.rpartition(".")[0].removeprefix("objectives.") if path.startswith("objectives.") else None


def _tree(entry: str | dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry, str):
        own = configuration.read(entry)
        tree = {name: section for name, section in base.items() if name not in METHOD}
        tree |= {name: own[name] for name in METHOD if own.get(name) is not None}
        every = {k: v for k, v in (own.get("evaluation") or {}).items() if k == "every"}
        return tree | {"evaluation": {**(base.get("evaluation") or {}), **every}}
    cls = configuration.class_of(entry.get("name"))
    dropped = {"advantages": "preferences", "preferences": "credit"}.get(str(getattr(cls, "consumes", None)))
    kept = {name: section for name, section in base.items() if name not in (dropped, "reference")}
    if cls is not None and cls.reference_is_sampler:
        kept["reference"] = {"refresh": 1}
    return kept | {"objective": dict(entry)}


def sweeps() -> dict[str, str]:
    """Name and first comment line of every sweep that ships with the package."""
    files = [file for file in _shipped().iterdir() if file.name.endswith(".yaml")]
    return dict(sorted((f.name.removesuffix(".yaml"), f.read_text().splitlines()[0].lstrip("# ")) for f in files))


def load(sweep_or_file: str, overrides: Mapping[str, str] | None = None) -> Sweep:
    """A sweep from its name or a YAML file.

    Args:
        sweep_or_file: a sweep that ships with the package, or a YAML file.
        overrides: fields of the sweep, and settings of its runs by dotted path; values are YAML.

    Raises:
        UserError: anything unknown, mistyped, out of range or contradictory, in any of its runs.
    """
    tree = _read(sweep_or_file)
    for path, text in (overrides or {}).items():
        value = configuration.parse(path, text)
        if path in Sweep.model_fields:
            tree[path] = value
        else:
            tree["settings"] = {**(tree.get("settings") or {}), path: value}
    for name in tree:
        if name not in Sweep.model_fields:
            raise UserError(
                f"expected a field of a sweep ({configuration.one_of(name, Sweep.model_fields)}), got {name!r}"
            )
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise UserError(configuration.sentence(error, Sweep.model_fields)) from error
    _check(sweep)
    return sweep


def _shipped() -> Any:
    return resources.files("raysuite.recipes") / "sweeps"


def _read(sweep_or_file: str, extended_by: Sequence[str] = ()) -> dict[str, Any]:
    if sweep_or_file in sweeps():
        text = (_shipped() / f"{sweep_or_file}.yaml").read_bytes()
    elif (path := places.whole(sweep_or_file)).is_file():
        text = configuration.contents(path)
    else:
        raise UserError(
            f"expected a sweep ({configuration.one_of(sweep_or_file, sweeps())}) or a YAML file, got {sweep_or_file!r}: check "
            "the path"
        )
    tree = configuration.document(text, sweep_or_file)
    if not isinstance(tree.get("settings") or {}, dict):
        raise UserError(
            f"expected settings by dotted path in {sweep_or_file}, such as `learn.epochs: 2`, got {tree['settings']!r}: correct it"
        )
    chain = (*extended_by, sweep_or_file)
    base = configuration.base_of(tree, chain)
    if base is None:
        return tree
    below = _read(base, chain)
    merged = {**(below.get("settings") or {}), **(tree.get("settings") or {})}
    return {**below, **tree, "settings": merged}


def _check(sweep: Sweep) -> None:
    """Refuse what contradicts itself, and try every configuration that is known beforehand."""
    confirming = sweep.confirm.seeds if sweep.confirm else ()
    for names, what in ((sweep.labels, "objectives"), (sweep.seeds, "seeds"), (confirming, "confirm.seeds")):
        if len(set(names)) < len(names):
            raise UserError(
                f"expected different {what}, got {list(names)}: name each once (the same twice in two files)"
            )
    for path, dimension in sweep.space.items():
        if dimension.kind in ("choice", "grid") and len(set(map(json.dumps, dimension.values))) < len(dimension.values):
            raise UserError(
                f"expected different values of {path} in space, got {list(dimension.values)}: name each once"
            )
    for path in (*sweep.settings, *sweep.space):
        if (label := _whose(path)) is not None and label not in sweep.labels:
            raise UserError(f"expected objectives.<one of {', '.join(sweep.labels)}>.<field>, got {path!r}")
        if path in ("seed", "budget") or (path in sweep.settings and path in sweep.space):
            raise UserError(
                f"expected {path} in one place only: the sweep's seeds and budget, its settings, or its space"
            )
    drawn = [(path, value) for path, dimension in sweep.space.items() for value in dimension.values]
    replays = any((tree.get("rollouts") or {}).get("replay") for tree in sweep._trees.values())
    for path, value in [*sweep.settings.items(), *drawn]:
        if isinstance(value, dict) and path in configuration.merging():
            inner = ", ".join(f"{path}.{name}" for name in value)
            raise UserError(
                f"expected single settings, got the whole section {path}, which would put all that it does not name to its default: "
                f"name {inner or 'them'}"
            )
        if path == "updates" and not replays:
            raise UserError(
                f"expected no updates in a sweep, got {value}: its runs end by the budget, which is equal for all; leave it out"
            )
    for path in sweep.space:
        if path in YARDSTICK or path.startswith("evaluation."):
            raise UserError(
                f"expected no {path} in space, got it, by which trials are judged: name it in settings, the same for all (sweeps that "
                "differ in rewards are compared by one that all of them watch, in evaluation.rewards)"
            )
        if path.partition(".")[0] in ("cluster", "guards", "checkpoints", "trackers"):
            raise UserError(
                f"expected no {path} in space, got it: trials that differ in it learn the same; name it in settings"
            )
    kinds = {dimension.kind for dimension in sweep.space.values()}
    draws = kinds - {"grid"}
    if sweep.trials > 1 and not draws:
        raise UserError(f"expected something to draw in space with trials={sweep.trials}: they would all be the same")
    if sweep.seed and not draws:
        raise UserError(
            f"expected something to draw in space with seed={sweep.seed}, which is the draws': the runs' are seeds=[{sweep.seed}]"
        )
    if sweep.searcher == "optuna" and ("grid" in kinds or not kinds):
        raise UserError("expected a space without grids with searcher=optuna: list values as choice")
    if sweep.scheduler == "asha" and len(sweep.seeds) > 1:
        raise UserError(
            f"expected one seed with scheduler=asha, got {list(sweep.seeds)}: repetitions of one trial would be stopped apart; race "
            "what it finds with more seeds afterwards"
        )
    if sweep.scheduler == "asha" and max(map(sweep.trials_of, sweep.labels)) == 1:
        raise UserError(
            "expected several trials with scheduler=asha, got one of each objective, which nothing stops: raise trials, or leave "
            "scheduler out"
        )
    if sweep.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError("expected Optuna for searcher=optuna, found none: pip install 'raysuite[optuna]'")
    if sweep.confirm and (both := sorted(set(sweep.confirm.seeds) & set(sweep.seeds))):
        raise UserError(
            f"expected other confirm.seeds than the trials', got {both[0]} in both: what chose would report itself"
        )
    several = max(map(sweep.trials_of, sweep.labels)) > 1
    offline = set()
    for config in _known(sweep):
        offline.add(config.preferences.source is not None)
        if len(offline) > 1:
            raise UserError(
                "expected objectives that all learn on-line or all from a set (preferences.source), got both, which would share their "
                "rollouts: train them by themselves, and compare the runs"
            )
        if config.prompts.best_of:
            raise UserError(
                f"expected no prompts.best_of in a sweep, got {config.prompts.best_of}: each of its runs would draw the same pictures "
                "to choose by; leave it out"
            )
        if (several or sweep.confirm or sweep.scheduler) and config.prompts.held_out is None:
            raise UserError(
                "expected prompts.held_out in a sweep with several trials, confirm or scheduler=asha, got none: settings are chosen "
                "by its reward; set it"
            )
        if sweep.confirm and config.prompts.test is not None:
            raise UserError(
                "expected no prompts.test in the trials of a sweep that confirms, got some: name them in confirm.test"
            )


def _known(sweep: Sweep) -> Iterator[RunConfig]:
    for run in sweep.searched:
        if run.seed == sweep.seeds[0]:
            try:
                yield sweep.config(run, sweep.drawn(run.objective, run.trial or 0))
            except UserError as error:
                raise UserError(f"{run.objective}, trial {run.trial}: {error}") from error
