"""A study of directions, declared: whose gradients are compared, on which units, at which policies.

>>> study = declare("toy-ddpo", objectives=["ddpo", "trajectory_dpo"], units=16)
>>> [rung.checkpoint for rung in study.rungs]
[0]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from raysuite import config as configuration, places
from raysuite.config import Model, NonNegativeInt, Parameters, RunConfig, Section
from raysuite.errors import UserError
from raysuite.kernel.directions import FEWEST_UNITS
from raysuite.kernel.objectives import OBJECTIVES
from raysuite.stages.checkpoint import by_updates

STANDARD: Mapping[str, Mapping[str, Any]] = {
    "ddpo": {"clip": None, "advantage_clip": 5.0},
    "trajectory_dpo": {"strength": 10.0, "discount": 1.0},
    "diffusion_dpo": {"beta": 500.0, "draws": 6},
    "dspo": {"beta": 0.01, "draws": 6},
    "dmpo": {"beta": 500.0, "draws": 6},
    "cal_dpo": {"beta": 500.0, "share": 0.1, "weight": 0.05, "draws": 6},
    "sft": {"draws": 6},
    "forward_rl": {"contrast": 1.0, "advantage_limit": 5.0, "draws": 3},
}
"""Settings of an objective that is asked for by its bare name, unless the run itself has it. At the reference most of them
only scale the gradient, which no cosine sees."""
ROLLOUTS = ("prompts", "samples", "prompts_per_block", "replay")
"""What of a run's rollouts matters here."""
LEARN = ("microbatch", "betas", "epsilon")
"""What of its learning does: the size of batches, and the optimiser's scale."""
OF_TRAINING = ("budget", "reference", "guards", "checkpoints", "trackers")
"""Sections of a run that say nothing here: what contradicts itself in them is none of a study's."""
UNREAD = (
    *("updates", *OF_TRAINING, "cluster.workers", "cluster.shard"),
    *("evaluation.ema", "evaluation.every", "evaluation.rankings", "preferences.held_out", "preferences.across_draws"),
)
"""What does not: a study takes no step of training, so that nothing follows its policy."""


@dataclass(frozen=True)
class Rung:
    """One measurement: the study with one setting changed, at one policy."""

    number: int
    along: str
    """The path of the changed setting; empty where nothing is changed."""
    value: Any
    checkpoint: int
    """Updates that the policy has had."""
    configs: Mapping[str, RunConfig]
    """A run for each objective, by its label: what it learns from, and how."""
    rankings: int | None
    """The most of a prompt's rankings in a set that make a unit, `preferences.limit`; None for all of them."""

    @cached_property
    def config(self) -> RunConfig:
        """What all of them have in common: model, sampler, prompts, rewards, rollouts."""
        drawing = [c for c in self.configs.values() if c.preferences.source is None] or list(self.configs.values())
        # credit is known only to a run that learns from rewards, and previews only to one that learns from steps
        best = min(
            drawing, key=lambda c: (c.built_objective.consumes != "advantages", c.built_objective.process != "reverse")
        )
        return best.model_copy(update={"rollouts": best.rollouts.model_copy(update={"keep": True})})

    @property
    def rewarded(self) -> dict[str, RunConfig]:
        """Runs that learn from rewards, by their objectives' process: what rewards are worth to it."""
        return {
            config.built_objective.process: config
            for config in self.configs.values()
            if config.built_objective.consumes == "advantages"
        }

    @property
    def draws(self) -> bool:
        """Whether rollouts are drawn, in place of replayed or of pairs taken from a set."""
        return self.config.rollouts.replay is None and any(c.preferences.source is None for c in self.configs.values())

    def rounds(self, units: int) -> int:
        """How many updates' worth of prompts make so many units."""
        return units // self.config.rollouts.prompts

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"rung-{self.number:02d}"


class Gain(Section):
    """Predicted against realised gain: a step along every objective's direction."""

    kl: PositiveFloat
    """KL from the policy that every step ends at, nats a trajectory."""


class Study(Section):
    """Settings of a study. The same settings give the same numbers, bit for bit on the same hardware."""

    run: dict[str, Any]
    """A run's settings as in a recipe. `credit` says what rewards are worth, `preferences` who is compared."""
    directory: str | None = None
    """The run that holds the checkpoints; null studies the model as it came."""
    objectives: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By label: `name` and fields, as in a run."""
    checkpoints: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Updates of the policies; 0 is the model as it came."""
    along: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The ladder: values of a setting, by its path. Each value is a rung; two paths are two ladders, not a grid."""
    units: PositiveInt = 64
    """Prompts' groups of samples, or of a set the rankings of one prompt, at most `preferences.limit` of them."""
    bins: PositiveInt = 4
    """Equal ranges of the training timesteps."""
    width: PositiveInt = 4096
    """Places that a gradient keeps of every block of layers; larger blocks are projected (`kernel.sketch`)."""
    probes: NonNegativeInt = 8
    """Points of the prediction space at which the effect of a gradient is looked at; 0 for none."""
    gain: Gain | None = None
    until: PositiveFloat | None = None
    """Go on with twice as many units until the cosine of every two objectives is known to so much on either side."""
    most: PositiveInt | None = None
    """Units at which to give that up; by default 16 times as many as at first."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of units at which it is looked whether they are enough."""
        if self.until is None:
            return (self.units,)
        most = self.most or 16 * self.units
        doubled = [self.units * 2**k for k in range(64) if self.units * 2**k < most]
        return (*doubled, most)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """All measurements, in order.

        Raises:
            UserError: a rung contradicts itself.
        """
        return tuple(self._rungs())

    def _rungs(self) -> Iterator[Rung]:
        ladder = [(path, value) for path, values in self.along.items() for value in values] or [("", None)]
        steps = [(checkpoint, path, value) for checkpoint in self.checkpoints for path, value in ladder]
        for number, (checkpoint, path, value) in enumerate(steps):
            tree, objectives = deepcopy(self.run), deepcopy(self.objectives)
            if path:
                _put(tree, objectives, path, value)
            configs = {label: _config(tree, objective) for label, objective in objectives.items()}
            if any(config.reward_scale != "given" for config in configs.values()):
                raise UserError(
                    "expected reward_scale=given in a study of directions, whose units know no batch: set it, and give rewards "
                    "weights that suit their own scales"
                )
            compared = tree.get("preferences") or {}
            limit = compared.get("limit") if compared.get("source") is not None else None
            yield Rung(number, path, value, checkpoint, configs, None if limit is None else int(limit))

    def canonical(self) -> dict[str, Any]:
        """Plain JSON values: what study.json holds. The order of mappings counts, and JSON does not promise to keep it."""
        unset = {name for name in ("until", "most") if getattr(self, name) is None}
        return {**json.loads(self.model_dump_json(exclude=unset)), "order": [list(self.objectives), list(self.along)]}


def declare(
    source: str,
    *,
    objectives: Sequence[str],
    checkpoint: str | None = None,
    settings: Mapping[str, str] | None = None,
    along: Mapping[str, str] | None = None,
    **options: Any,
) -> Study:
    """A study of a run, a recipe or a YAML file.

    Args:
        source: directory of a run, name of a recipe, or a YAML file.
        objectives: names of objectives, recipes and YAML files whose objectives are meant, or import paths of a user's own, which are
            then called by their class.
        checkpoint: a number of updates, `all`, or None for the last (the model as it came, without a run).
        settings: by path, as `--set`; `objectives.<label>.<field>` too. Values are YAML.
        along: the same with lists.
        options: fields of `Study`.

    Raises:
        UserError: anything unknown, mistyped, out of range or contradictory.
    """
    run = place if (place := places.whole(source)).is_dir() else None
    if run and not (run / "config.json").is_file():
        raise UserError(
            f"expected a run in {run}, found no config.json: name the --out of a `raysuite train`, or a recipe"
        )
    tree = json.loads((run / "config.json").read_text()) if run else configuration.read(source)
    labels = [configuration.label_of(name) for name in objectives]
    if repeated := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise UserError(
            f"expected every objective of --objectives once, got {repeated[0]} again: it agrees with itself; to compare two settings "
            "of one, name two YAML files"
        )
    own = tree.pop("objective", {})
    chosen = {label: _objective(name, own) for label, name in zip(labels, objectives, strict=True)}
    held = (deepcopy(tree.get("model")), deepcopy(tree.get("parameters")))
    for path, text in (settings or {}).items():
        value = configuration.parse(path, text)
        for inner in [f"{path}.{name}" for name in value] if isinstance(value, dict) and value else [path]:
            _check_read(inner, chosen.values())
        _put(tree, chosen, path, value)
    for path in along or {}:
        _check_read(path, chosen.values())
    checkpoints = _checkpoints(run, checkpoint)
    tree["rollouts"] = {k: v for k, v in (tree.get("rollouts") or {}).items() if k in ROLLOUTS}
    tree["cluster"] = {**(tree.get("cluster") or {}), "workers": 1, "shard": False}
    fields = {
        "run": tree,
        "directory": str(run.absolute()) if run and any(checkpoints) else None,
        "objectives": chosen,
        "checkpoints": checkpoints,
        "along": {path: _values(path, text) for path, text in (along or {}).items()},
        **options,
    }
    try:
        study = Study.model_validate(fields)
    except ValidationError as error:
        raise UserError(configuration.sentence(error, Study.model_fields)) from error
    _check_units(study)
    _check_held(study, *held)
    _check_ladders(study)
    return study


def _objective(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    if name == own.get("name"):
        return dict(own)
    if name in STANDARD:
        return {"name": name, **STANDARD[name]}
    if name in configuration.recipes() or name.endswith((".yaml", ".yml")):
        return dict(configuration.read(name)["objective"])
    if ":" in name and configuration.class_of(name):
        return {"name": name}
    known = [*OBJECTIVES, *configuration.recipes()]
    raise UserError(
        f"expected --objectives from {', '.join(OBJECTIVES)}, recipes whose objectives are meant, or package.module:Class, got "
        f"{name!r}" + (f": did you mean {meant}?" if (meant := configuration.nearest(name, known)) else "")
    )


def _values(path: str, text: str) -> tuple[Any, ...]:
    values = configuration.parse(path, text)
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"expected a list of at least two values for {path}, such as {path}=[a, b], got {text!r}")
    return tuple(values)


def _put(tree: dict[str, Any], objectives: dict[str, dict[str, Any]], path: str, value: Any) -> None:
    first, *rest = path.split(".")
    if first == "objective":
        raise UserError(f"expected objectives.<one of {', '.join(objectives)}>.<field> in a study, got {path!r}")
    if first != "objectives":
        configuration.put(tree, path, value)
    elif len(rest) == 2 and rest[0] in objectives:
        objectives[rest[0]][rest[1]] = value
    else:
        raise UserError(
            f"expected objectives.<one of {', '.join(objectives)}>.<field>, got {path!r}: name an objective of this study"
        )


def _check_read(path: str, objectives: Collection[Mapping[str, Any]]) -> None:
    """Refuse a setting that a study would show and not use."""
    section, _, rest = path.partition(".")
    wanted = {"credit": "advantages", "preferences": "preferences"}.get(section)
    known = [configuration.class_of(objective.get("name")) for objective in objectives]
    if wanted and all(cls is not None and cls.consumes != wanted for cls in known):
        of = "rewards" if section == "credit" else "preferences"
        raise UserError(f"expected an objective that learns from {of} with the setting {path}, got none: leave it out")
    name, read = rest.partition(".")[0], {"learn": LEARN, "rollouts": ROLLOUTS}.get(section)
    if any(f"{path}.".startswith(f"{unread}.") for unread in UNREAD) or (read and name and name not in read):
        raise UserError(
            f"expected a setting that changes what a study of directions measures, got {path}: a study draws and measures, and takes "
            "no step of training; leave it out"
        )


def _config(tree: Mapping[str, Any], objective: Mapping[str, Any]) -> RunConfig:
    """A run that learns with this objective: with those settings alone that mean something to it."""
    kept = {name: section for name, section in tree.items() if name not in OF_TRAINING}
    cls = configuration.class_of(objective.get("name"))
    if cls is not None:
        if cls.reference_is_sampler:  # units are drawn by the policy that is measured: it is its own old one
            kept["reference"] = {"refresh": 1}
        kept.pop("preferences" if cls.consumes == "advantages" else "credit", None)
    compared = kept.get("preferences") or {}
    if compared.get("source") is not None:  # in a set it is settled who is compared
        kept["preferences"] = {name: compared[name] for name in ("source", "members") if name in compared}
    if cls is not None and cls.process == "forward" and "credit" in kept:  # it learns from finished pictures
        kept["credit"] = {**(kept["credit"] or {}), "kind": "terminal", "discount": 1.0}
    for name in ("credit", "preferences", "parameters"):  # a ladder goes from one kind to the other
        kept[name] = configuration.without_idle(name, kept.get(name) or {})
    learn = {name: value for name, value in (tree.get("learn") or {}).items() if name in LEARN}
    kept["evaluation"] = {**(kept.get("evaluation") or {}), "ema": False}  # evaluated are the weights that are measured
    return configuration.validate({**kept, "updates": 1, "learn": learn, "objective": dict(objective)})


def _checkpoints(run: Path | None, wanted: str | None) -> tuple[int, ...]:
    """Numbers of updates."""
    found = sorted(by_updates(run)) if run else []
    if wanted is None:
        return (found[-1] if found else 0,)
    if wanted == "all":
        return (0, *(number for number in found if number))
    if not wanted.isdigit() or int(wanted) not in (0, *found):
        has = f"{run}, which has {found or 'none'}" if run else "a recipe, which has none"
        raise UserError(
            f"expected a checkpoint of {has}, got {wanted!r}: name a number of updates, `all`, or 0 for the model as it came"
        )
    return (int(wanted),)


def _check_held(study: Study, model: Any, parameters: Any) -> None:
    """Whether checkpoints hold what every rung takes from them, whichever way it was set."""
    for config in (rung.config for rung in study.rungs if rung.checkpoint):
        if config.model != Model.model_validate(model) or config.parameters != Parameters.model_validate(
            parameters or {}
        ):
            raise UserError(
                f"expected the model and the parametrisation of {study.directory}, whose checkpoints hold just those, got others: "
                "leave model and parameters as they are, or study --checkpoint 0"
            )


def _check_ladders(study: Study) -> None:
    """Whether every rung of a ladder measures something of its own."""
    for a, b in combinations(study.rungs, 2):
        if a.along and (a.checkpoint, a.along, a.configs, a.rankings) == (b.checkpoint, b.along, b.configs, b.rankings):
            raise UserError(
                f"expected rungs along {a.along} that measure different things, got the same for {a.value} and {b.value}: a study "
                "does not read it, or it has no effect beside the other settings; leave it out, or set what makes it count"
            )


def _check_units(study: Study) -> None:
    if study.units < FEWEST_UNITS:
        raise UserError(
            f"expected --units of at least {FEWEST_UNITS}, got {study.units}: fewer say nothing about their spread"
        )
    if study.until is None and study.most is not None:
        raise UserError("expected --until with --most, got none: it says what more units are for; leave --most out")
    if study.most is not None and study.most < study.units:
        raise UserError(f"expected --most of at least --units={study.units}, got {study.most}: raise it")
    if study.until is not None and study.gain is not None:
        raise UserError(
            "expected no --gain-kl with --until, got both: take steps along what a study found in another one"
        )
    for rung in study.rungs:
        prompts = rung.config.rollouts.prompts
        for name, units in (("units", study.units), ("most", study.most or 0)):
            if units % prompts:
                raise UserError(
                    f"expected --{name} as a multiple of rollouts.prompts={prompts}, got {units}: change one of them"
                )
        if (study.probes or study.gain) and rung.config.model.precision != "float32":
            option, remedy = ("--probes above 0", "set --probes 0") if study.probes else ("--gain-kl", "leave it out")
            raise UserError(
                f"expected model.precision=float32 with {option}, got bfloat16: small changes of predictions drown in its rounding; "
                f"{remedy}"
            )
