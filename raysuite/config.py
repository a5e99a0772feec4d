"""A run, declared: small frozen sections, read from YAML, overridable by path, checked across fields.

>>> config = load("scenes-ddpo", {"learn.learning_rate": "3e-5"})
>>> config.learn.learning_rate
3e-05
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from raysuite.errors import UserError
from raysuite.kernel.objectives import OBJECTIVES, Objective
from raysuite.kernel.preferences import Choice, Label
from raysuite.kernel.schedule import Spacing

NonNegativeInt = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Model(Section):
    """What is aligned."""

    path: str
    """`scenes` (bundled), `toy`, a diffusers pipeline directory, or a hub id."""
    variant: str | None = None
    """Weight variant of a hub model, such as fp16."""
    size: PositiveInt | None = None
    """Pixels on a side; the model's own by default."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the networks run in. Trained parameters, densities and losses are float32 in any case."""


class Sampler(Section):
    """How pictures are drawn, in rollouts, learning and evaluation alike."""

    steps: PositiveInt = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 is ancestral (DDPM) sampling, 0 deterministic DDIM."""
    guidance: Annotated[float, Field(ge=1)] = 1.0
    """Classifier-free guidance scale; 1 is none, and halves the cost."""
    spacing: Spacing | None = None
    """Spacing of timesteps; the model's own by default."""


class Parameters(Section):
    """What is trained."""

    kind: Literal["lora", "all"] = "lora"
    rank: PositiveInt = 16
    """LoRA rank."""
    alpha: PositiveFloat | None = None
    """LoRA scale numerator; the rank by default, which makes the scale 1."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the layers that get an adapter."""


class Prompts(Section):
    """Where prompts come from."""

    training: str = "scenes"
    """`scenes`, `toy`, or a file: .txt with a prompt a line, or .jsonl with `prompt` and any metadata."""
    held_out: str | None = "scenes"
    """The same, for prompts that are only evaluated."""


class Reward(Section):
    """One term of the reward."""

    name: str
    """A registered reward, or a function as `package.module:function`."""
    weight: float = 1.0
    seconds: PositiveFloat = 600.0
    """What it may take for the pictures of one block; then it has hung, and its process is replaced. Rewards that are only
    watched have these defaults too."""
    retries: NonNegativeInt = 1
    """Times that it is asked again for the same pictures after it raised or hung; then the run ends."""


class RolloutSettings(Section):
    """What one update samples."""

    prompts: PositiveInt = 16
    samples: PositiveInt = 8
    """Pictures a prompt: a group."""
    prompts_per_block: PositiveInt = 4
    """Prompts that go through the network in one batch. Part of the result: see docs/architecture.md."""
    staleness: Annotated[int, Field(ge=0, le=4)] = 0
    """How many updates the sampling policy may be behind: 0 is exactly on-policy, 1 lets sampling overlap learning."""
    keep: bool = False
    """Store every update's rollouts under rollouts/, so that another run can learn from the same (`--keep-rollouts`)."""
    replay: str | None = None
    """Learn from the rollouts that the run in this directory kept, in place of drawing any."""

    @property
    def blocks(self) -> int:
        """Blocks an update."""
        return self.prompts // self.prompts_per_block


class Credit(Section):
    """How the reward of a picture becomes an advantage of every step."""

    kind: Literal["terminal", "previews"] = "terminal"
    """`previews` scores the image that the model predicts at some steps and pays each stretch of steps its gain."""
    previews: tuple[PositiveInt, ...] = ()
    """After how many steps previews are taken (the final picture is always the last)."""
    preview_steps: NonNegativeInt = 0
    """Deterministic steps taken before a preview is decoded; 0 decodes the predicted clean latent at once."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1: a step is answerable for all later gains; below 1: less for those of later steps."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight gamma^k of step k counted from pure noise: below 1 favours the first steps."""
    normalise: Literal["global", "group", "tracked"] = "group"
    """Over the batch, per prompt group (as GRPO), or by each prompt's running statistics (as DDPO)."""
    tracker_size: PositiveInt = 32
    tracker_minimum: PositiveInt = 16


class Preferences(Section):
    """Which pictures are compared and who is preferred, for objectives that learn from preferences."""

    source: str | None = None
    """A preference set (`raysuite encode`, `raysuite pairs`) to learn from; null compares the run's own rollouts. From a set,
    an update takes rollouts.prompts rankings, whatever rollouts.samples."""
    choose: Choice = "best_worst"
    """Of a prompt's samples: the best with the worst, `random` or `all` tuples, or those among `kept` of spread quantiles."""
    members: Annotated[int, Field(ge=2)] = 2
    """Pictures in a ranking; more than two (Plackett-Luce) with trajectory_dpo."""
    kept: PositiveInt = 5
    """Samples that `choose: spread` keeps."""
    limit: PositiveInt | None = None
    """Rankings a prompt, at most, drawn at random; null for all that `choose` gives."""
    label: Label = "argmax"
    """`argmax` of the reward, or drawn from `bradley_terry` at `temperature`."""
    temperature: PositiveFloat = 1.0
    """Of bradley_terry, in units of reward."""
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a ranking is turned round."""


class Reference(Section):
    """What preference objectives and KL terms compare with: the model as it came, unless it is refreshed."""

    refresh: NonNegativeInt = 0
    """Every how many updates the reference follows the policy; 0 is never."""
    decay: Decay = 0.0
    """Share of the old reference that a refresh keeps: 0 copies the policy, more is a running mean."""


class Learn(Section):
    """How an update learns from its rollouts. AdamW."""

    learning_rate: PositiveFloat = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    minibatches: PositiveInt = 1
    """Optimiser steps per pass over the rollouts."""
    epochs: PositiveInt = 1
    microbatch: PositiveInt = 32
    """Points through the network at once. With the size of a block, the first ratio is exactly 1."""


class Evaluation(Section):
    """Fixed prompts and seeds, before the first update, every few updates, and after the last."""

    every: PositiveInt = 10
    prompts: PositiveInt = 96
    """Prompts of each split."""
    samples: PositiveInt = 1
    """Pictures a prompt along the way."""
    final_samples: PositiveInt = 2
    """Pictures a prompt before the first update and after the last."""
    rewards: tuple[str, ...] = ()
    """Rewards that are only watched."""
    kl: bool = True
    """Measure the KL from the reference on one block."""
    pictures: NonNegativeInt = 8
    """Prompts of each split whose first picture is kept."""
    seed: NonNegativeInt = 0
    """Evaluation draws depend on this and never on the run's seed."""


Reaction = Literal["warn", "stop", "ignore"]


class Guards(Section):
    """What is watched as a run goes on: each warns in terminal, metrics and report, or stops the run, at its last checkpoint.
    A loss or gradient that is not finite always stops it.
    """

    held_out: Reaction = "warn"
    """The trained reward rose on training prompts since the beginning, and fell on held-out ones (95 % interval below 0)."""
    diversity: Reaction = "warn"
    """Pictures of the same prompt have become alike."""
    diversity_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the diversity at the beginning, below which it has collapsed."""
    kl: Reaction = "warn"
    """The KL from the model as it came is beyond `kl_limit`."""
    kl_limit: PositiveFloat = 500.0
    """Nats a trajectory. Runs of the bundled model that went well ended at 30 to 250, those that broke it above 800."""
    ratio: Reaction = "warn"
    """The importance ratio before the first step of an update is off 1, with rollouts of the policy itself."""
    ratio_tolerance: PositiveFloat = 0.01
    finite: Reaction = "warn"
    """A metric is not a finite number."""


class Cluster(Section):
    """Where work runs."""

    workers: PositiveInt = 1
    """Learner processes (Ray Train workers)."""
    actors: PositiveInt = 1
    """Rollout processes."""
    worker_cpus: PositiveFloat = 1.0
    worker_gpus: Annotated[float, Field(ge=0)] = 0.0
    """Of each learner. A share, such as 0.6 beside actor_gpus=0.4, lets actors have the rest: one GPU does both in turn."""
    actor_cpus: PositiveFloat = 1.0
    actor_gpus: Annotated[float, Field(ge=0)] = 0.0
    """Of each actor; whole ones set actors apart from learners."""
    shard: bool = False
    """Spread the network, its gradients and moments over the workers (FSDP2), in place of a copy in each: all weights only."""
    threads: PositiveInt | None = None
    """Torch threads of each process. By default as many as keep busy processes from outnumbering cores."""
    max_failures: NonNegativeInt = 2
    """Times a learner may be lost and restarted from its last checkpoint."""


class Checkpoints(Section):
    """What is kept."""

    every: PositiveInt = 10
    keep: PositiveInt = 2
    """Most recent checkpoints that stay on disk."""


class Wandb(Section):
    """Weights & Biases."""

    project: str | None = None
    """Where runs go; naming it turns the tracker on."""
    entity: str | None = None
    """The user or team; the logged-in user's own by default."""
    group: str | None = None
    """Shown together: a sweep's name, say."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files, which `wandb sync` sends later."""


class Mlflow(Section):
    """MLflow."""

    experiment: str | None = None
    """Where runs go; naming it turns the tracker on."""
    uri: str | None = None
    """A tracking server or a directory; by default MLFLOW_TRACKING_URI, or trackers/mlflow in the run directory."""


class Trackers(Section):
    """Where numbers and pictures go besides the run directory."""

    tensorboard: bool = False
    """Event files in trackers/tensorboard of the run directory."""
    wandb: Wandb = Wandb()
    mlflow: Mlflow = Mlflow()


class RunConfig(Section):
    """A whole run."""

    seed: NonNegativeInt = 0
    updates: PositiveInt
    """Updates after which the run ends."""
    budget: PositiveInt | None = None
    """Network evaluations of training: the run ends with the update that reaches it, if `updates` does not end it before."""
    model: Model
    sampler: Sampler = Sampler()
    parameters: Parameters = Parameters()
    prompts: Prompts = Prompts()
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)]
    rollouts: RolloutSettings = RolloutSettings()
    credit: Credit = Credit()
    preferences: Preferences = Preferences()
    objective: dict[str, Any]
    """`name` of a registered objective, and its fields."""
    reference: Reference = Reference()
    learn: Learn = Learn()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    cluster: Cluster = Cluster()
    checkpoints: Checkpoints = Checkpoints()
    trackers: Trackers = Trackers()

    @cached_property
    def built_objective(self) -> Objective[Any]:
        """The objective as a value."""
        return _build_objective(self.objective)

    @model_validator(mode="after")
    def _fields_agree(self) -> RunConfig:
        for check in (_check_objective, _check_rollouts, _check_credit, _check_preferences, _check_cluster):
            check(self)
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise UserError(f"expected every reward once, got {names}: add the weights up")
        if self.model.path == "toy" and "scenes" in (self.prompts.training, self.prompts.held_out):
            raise UserError(
                "expected prompts.training=toy and prompts.held_out=toy with model.path=toy: it knows three prompts"
            )
        return self

    def canonical(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values: what config.json holds."""
        return json.loads(self.model_dump_json())

    def identity(self) -> dict[str, Any]:
        """What decides a run's numbers: all but where it runs, what watches it, and how long it waits."""
        tree = self.canonical()
        for reward in tree["rewards"]:
            del reward["seconds"], reward["retries"]
        return {name: section for name, section in tree.items() if name not in ("cluster", "guards", "trackers")}

    def reward(self, name: str) -> Reward:
        """The settings of a reward, trained or only watched."""
        return next((reward for reward in self.rewards if reward.name == name), Reward(name=name))


def _check_objective(config: RunConfig) -> None:
    objective, name = config.built_objective, config.objective["name"]
    if objective.process == "reverse" and config.sampler.eta == 0:
        raise UserError(
            f"expected sampler.eta above 0 for {name}, got 0: it scores noisy steps, and a deterministic sampler has none; "
            "set sampler.eta=1"
        )
    if config.reference != Reference() and not objective.needs_reference:
        raise UserError(f"expected no reference settings with {name}, which compares with none: leave reference out")
    if config.reference.decay > 0 and not config.reference.refresh:
        raise UserError(
            "expected reference.refresh above 0 with reference.decay, got 0: set how often the reference follows"
        )


def _check_rollouts(config: RunConfig) -> None:
    rollouts, shares = config.rollouts, config.learn.minibatches * config.cluster.workers
    if rollouts.prompts % rollouts.prompts_per_block:
        raise UserError(
            f"expected rollouts.prompts to be a multiple of rollouts.prompts_per_block, got {rollouts.prompts} and "
            f"{rollouts.prompts_per_block}: change one of them"
        )
    if rollouts.blocks % shares:
        raise UserError(
            f"expected the {rollouts.blocks} blocks of an update (rollouts.prompts / rollouts.prompts_per_block) to divide "
            f"evenly among learn.minibatches x cluster.workers = {shares}: change one of them"
        )
    drawn = rollouts.replay is None and config.preferences.source is None
    if not drawn and (rollouts.keep or rollouts.staleness):
        raise UserError(
            "expected rollouts to keep or to be stale, got a run that draws none (rollouts.replay or preferences.source is "
            "set): leave rollouts.keep and rollouts.staleness out"
        )


def _check_credit(config: RunConfig) -> None:
    rollouts, credit, name = config.rollouts, config.credit, config.objective["name"]
    if config.built_objective.consumes != "advantages":
        if credit != Credit():
            raise UserError(
                f"expected no credit settings with {name}, which learns from preferences: leave credit out "
                "(trajectory_dpo has objective.discount)"
            )
        return
    if credit.normalise == "group" and rollouts.samples < 2:
        raise UserError(
            "expected rollouts.samples of at least 2 with credit.normalise=group, got 1: a group of one has no spread"
        )
    if credit.kind == "previews":
        if not credit.previews or any(k >= config.sampler.steps for k in credit.previews):
            raise UserError(
                f"expected credit.previews to name numbers of steps below sampler.steps={config.sampler.steps}, got "
                f"{list(credit.previews)}: set for example credit.previews=[{max(1, config.sampler.steps // 2)}]"
            )
        if list(credit.previews) != sorted(set(credit.previews)):
            raise UserError(f"expected credit.previews in ascending order, got {list(credit.previews)}")
        if credit.normalise == "tracked":
            raise UserError(
                "expected credit.normalise of group or global with credit.kind=previews, got tracked: running statistics "
                "are of whole rewards, not of steps"
            )
    elif credit.previews:
        raise UserError(
            "expected no credit.previews with credit.kind=terminal: set credit.kind=previews or leave them out"
        )
    if credit.normalise == "tracked" and credit.tracker_minimum > credit.tracker_size:
        raise UserError(
            f"expected credit.tracker_minimum of at most credit.tracker_size, got {credit.tracker_minimum} and "
            f"{credit.tracker_size}: a prompt's own statistics would never count"
        )


def _check_preferences(config: RunConfig) -> None:
    preferences, name, process = config.preferences, config.objective["name"], config.built_objective.process
    if config.built_objective.consumes != "preferences":
        if preferences != Preferences():
            raise UserError(
                f"expected no preferences settings with {name}, which learns from rewards: leave preferences out"
            )
        return
    if preferences.source is not None:
        if config.rollouts.replay is not None:
            raise UserError("expected preferences.source or rollouts.replay, got both: leave one out")
        if preferences != Preferences(source=preferences.source, members=preferences.members):
            raise UserError(
                "expected no settings of preferences besides source and members, got others: in a set it is settled who "
                "is compared and who is preferred"
            )
    elif preferences.members > config.rollouts.samples:
        raise UserError(
            f"expected preferences.members of at most rollouts.samples, got {preferences.members} and "
            f"{config.rollouts.samples}: a ranking compares samples of one prompt"
        )
    if preferences.members > 2 and process == "forward":
        raise UserError(
            f"expected preferences.members=2 with {name}, got {preferences.members}: rankings are for trajectory_dpo"
        )
    spread = preferences.choose == "spread"
    if spread and not preferences.members <= preferences.kept <= config.rollouts.samples:
        raise UserError(
            f"expected preferences.kept from preferences.members={preferences.members} to rollouts.samples="
            f"{config.rollouts.samples}, got {preferences.kept}: correct it"
        )
    if preferences.choose == "random" and preferences.limit is None:
        raise UserError("expected preferences.limit with preferences.choose=random: say how many rankings a prompt")


def _check_cluster(config: RunConfig) -> None:
    cluster = config.cluster
    if cluster.workers > 1 and 0 < cluster.worker_gpus <= 0.5:
        raise UserError(
            f"expected cluster.worker_gpus above 0.5 with several workers, got {cluster.worker_gpus:g}: two learners on one GPU "
            "cannot sum their gradients; set for example cluster.worker_gpus=0.6 and cluster.actor_gpus=0.4"
        )
    if cluster.shard and (config.parameters.kind != "all" or cluster.workers == 1):
        raise UserError(
            f"expected parameters.kind=all and several cluster.workers with cluster.shard, got {config.parameters.kind} and "
            f"{cluster.workers}: a LoRA is small, and one worker has nobody to share with; leave it out"
        )
    for name in ("worker_gpus", "actor_gpus"):
        gpus = getattr(cluster, name)
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"expected cluster.{name} of at most 1 or a whole number, got {gpus:g}: correct it")


def _build_objective(fields: Mapping[str, Any]) -> Objective[Any]:
    options = dict(fields)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        meant = _nearest(name, sorted(OBJECTIVES))
        hint = f": did you mean {meant}?" if meant else ": name one of those"
        raise UserError(f"expected objective.name to be {' or '.join(sorted(OBJECTIVES))}, got {name!r}{hint}")
    known = {field.name for field in dataclasses.fields(OBJECTIVES[name])}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise UserError(f"expected a setting of {name} ({one_of(option, known)}), got objective.{option}")
    try:
        return TypeAdapter(OBJECTIVES[name]).validate_python(options)
    except ValidationError as error:
        raise UserError(sentence(error, prefix="objective.")) from error


def recipes() -> dict[str, str]:
    """Name and first comment line of every recipe that ships with the package."""
    files = resources.files("raysuite.recipes").iterdir()
    first_lines = {
        file.name.removesuffix(".yaml"): file.read_text().splitlines()[0].lstrip("# ")
        for file in files
        if file.name.endswith(".yaml")
    }
    return dict(sorted(first_lines.items()))


def load(recipe_or_file: str, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """A run from a recipe's name or a YAML file, with overrides by dotted path (values are YAML).

    Raises:
        UserError: anything unknown, mistyped, out of range or contradictory.
    """
    tree = read(recipe_or_file)
    for path, value in (overrides or {}).items():
        put(tree, path, parse(path, value))
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """A run from plain values.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(sentence(error)) from error


def read(recipe_or_file: str) -> dict[str, Any]:
    """A recipe's or a YAML file's plain values, on top of those of the recipe that it extends.

    Raises:
        UserError: there is no such recipe or file, or it holds something else.
    """
    if recipe_or_file in recipes():
        text = (resources.files("raysuite.recipes") / f"{recipe_or_file}.yaml").read_bytes()
    elif Path(recipe_or_file).is_file():
        text = Path(recipe_or_file).read_bytes()
    elif recipe_or_file.endswith((".yaml", ".yml")):
        raise UserError(f"expected a YAML file, found nothing at {recipe_or_file}: check the path")
    else:
        raise UserError(
            f"expected a recipe ({one_of(recipe_or_file, recipes())}) or a YAML file, got {recipe_or_file!r}: "
            "`raysuite recipes` lists them"
        )
    tree = sections(text, recipe_or_file)
    base = tree.pop("extends", None)
    return _over(read(base), tree) if base else tree


def sections(text: bytes, where: str) -> dict[str, Any]:
    """A YAML document that has named sections.

    Raises:
        UserError: it is something else.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"expected YAML in {where}, got something else: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"expected sections such as `model:` in {where}, got {type(tree).__name__}: see a recipe")
    return tree


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A base with changes: sections merge, but objectives are replaced whole, and a section that is null has its defaults."""
    merged = {**base, **changes}
    for name, section in changes.items():
        if section is None:
            del merged[name]
        elif name != "objective" and isinstance(section, dict) and isinstance(base.get(name), dict):
            merged[name] = base[name] | section
    return merged


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set one value of a tree by its dotted path; null for a whole section gives it its defaults.

    Raises:
        UserError: there is no such setting.
    """
    settings = set(_paths(RunConfig)) | {f"objective.{name}" for name in ("name", *_objective_fields(tree))}
    sections = {name for name in RunConfig.model_fields if any(known.startswith(f"{name}.") for known in settings)}
    known = settings | sections
    if path not in known:
        raise UserError(f"expected a setting's path ({one_of(path, known)}), got {path!r}")
    if path in sections and value is None:
        tree.pop(path, None)
        return
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


def parse(path: str, text: str) -> Any:
    """The value that a text at the command line stands for: YAML.

    Raises:
        UserError: it is none.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"expected a YAML value for {path}, got {text!r}") from error
    return number(value) if isinstance(value, str) else value


def number(text: str) -> float | str:
    """YAML 1.1 reads 3e-5 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _objective_fields(tree: Mapping[str, Any]) -> Iterator[str]:
    cls = OBJECTIVES.get(str((tree.get("objective") or {}).get("name")))
    return (field.name for field in dataclasses.fields(cls)) if cls else iter(())  # type: ignore[arg-type]


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{name}.")
        elif name != "objective":
            yield prefix + name


def one_of(given: object, known: Iterable[str]) -> str:
    """`known` in words: the nearest if there is one, all of them otherwise."""
    names = sorted(known)
    nearest = _nearest(given, names)
    if nearest:
        return f"did you mean {nearest}?"
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, ..."


def _nearest(given: object, names: Sequence[str]) -> str | None:
    """What was probably meant: a like name, or the right leaf under another section."""
    leaf = str(given).rsplit(".", 1)[-1]
    likely = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    return next((name for name in (*likely, *names) if name in likely or name.rsplit(".", 1)[-1] == leaf), None)


def sentence(error: ValidationError, prefix: str = "") -> str:
    """The first thing that is wrong, for the person who can mend it."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    path = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"expected a value for {path}, found none: add it"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"expected a setting's path ({one_of(path, set(_paths(RunConfig)))}), got {path!r}"
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {path} to be {message}, got {first['input']!r}: correct it"
