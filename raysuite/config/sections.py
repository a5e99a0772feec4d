"""The sections of a run: small frozen groups of settings, a line and a sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from raysuite import places
from raysuite.config.objective import build
from raysuite.config.words import refuse_truth
from raysuite.errors import UserError
from raysuite.kernel.learning_rate import Decline
from raysuite.kernel.objectives import Objective
from raysuite.kernel.preferences import Choice, Label
from raysuite.kernel.schedule import NoiseKind, Spacing, check_level
from raysuite.kernel.soft_prompts import Draw

TOYS = ("toy", "toy-flow")
"""Models that are built in: Gaussian mixtures with three prompts, for trying things out."""


def located(path: str | None) -> str | None:
    """A setting that names a place: what is there is named from the root, since processes of a cluster may run in other
    directories, and the home directory is written out. What is built in, on a hub or nowhere keeps its name; so do files that
    come with a submitted job, which every machine finds in its own copy.
    """
    if path is None or path in ("scenes", "scenes-flow", "scenes-users", *TOYS):
        return path
    if path.startswith("~"):
        return str(places.whole(path))
    try:
        exists = Path(path).exists() and not places.in_job()
    except OSError:  # no name of a file: whoever looks there will say so
        return path
    return str(Path(path).absolute()) if exists else path


def _located_clip(options: dict[str, Any]) -> dict[str, Any]:
    """The same of a network that a reward reads beside its own."""
    return options | ({"clip": located(options["clip"])} if isinstance(options.get("clip"), str) else {})


Location = Annotated[str, AfterValidator(located)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _truth_is_no_number(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        value = read(given)
        refuse_truth(given, value)
        return value


class Model(Section):
    """What is aligned."""

    path: Location
    """`scenes` or `scenes-flow` (bundled), `toy` or `toy-flow`, a diffusers pipeline directory, or a hub id."""
    variant: str | None = None
    """Weight variant of a hub model, such as fp16."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Pixels on a side, or [height, width]; the model's own by default."""
    arguments: dict[str, Any] = {}
    """More arguments of the pipeline's own call, such as {max_sequence_length: 128}."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the networks run in. Trained parameters, densities and losses are float32 in any case."""
    channels_last: bool = False
    """Keep a U-Net's channels side by side in memory, as GPUs' convolutions in bfloat16 want them. The same but for rounding."""
    compile: bool = False
    """Compile the denoising network, a U-Net as a whole and of a transformer the blocks that it repeats, before the first update.
    The same but for rounding: first ratios are then 1 to within 1e-5 in float32. Not run on a GPU yet."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_float16(cls, given: Any) -> Any:
        if given in ("float16", "fp16", "half"):
            raise UserError(
                f"expected model.precision of float32 or bfloat16, got {given}: gradients below 6e-8 vanish in it and numbers above "
                "65504 overflow, which takes a loss scale and steps that are left out; set bfloat16, or float32 on cards that lack "
                "it (model.variant=fp16 reads weights that are stored so)"
            )
        return given

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """`size` as a pair."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Noise(Section):
    """The noise that steps add: what a policy explores with, and what gives its steps a density."""

    kind: NoiseKind = "ddim"
    """`ddim` and `cps` for any model, `flow_sde` (Flow-GRPO) and `dance` (DanceGRPO) for flow models."""
    level: float = 1.0
    """How much. 0 is deterministic. ddim: eta, 1 is ancestral (DDPM) sampling. Published: cps 0.8; flow_sde 0.7 for SD3.5-M, 0.9 for
    FLUX.1-dev, 1.2 for Qwen-Image; dance 0.3."""
    floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    """No noise in steps that end at this sigma or below; by default 0.03 for flow models and 0 for others."""

    @model_validator(mode="after")
    def _level_in_range(self) -> Noise:
        check_level(self.kind, self.level)
        return self


class Window(Section):
    """Noise in some steps only, which alone are learned from: the others follow the deterministic path.

    Source: Li et al., "MixGRPO", 2025 (4 of 25 steps, moved by one every 25 updates, or at random); Liu et al., "Flow-GRPO", 2025,
    whose fast variant begins a window of 2 or so steps at random in the first half, where a group's samples part.
    """

    size: PositiveInt
    """Steps in the window."""
    first: NonNegativeInt = 0
    """The step that it begins with, counted from pure noise; where it moves, the lowest such step."""
    until: NonNegativeInt | None = None
    """The highest step that a moving window begins with; by default it moves until it ends with the last step."""
    move: Literal["fixed", "progressive", "random"] = "fixed"
    """`progressive`: by `stride` steps at a time from first to until, and then from first again. Evaluations draw with the
    window in its first place in any case, so that they can be compared."""
    every: PositiveInt = 1
    """Updates between two moves."""
    stride: PositiveInt = 1
    """Steps that `progressive` moves by."""
    shared_start: bool = False
    """All samples of a prompt begin from the same noise in training, and part where the window begins (Flow-GRPO-Fast)."""

    def places(self, steps: int) -> range:
        """The steps that it may begin with."""
        last = steps - self.size if self.until is None else self.until
        return range(self.first, (self.first if self.move == "fixed" else last) + 1, self.stride)


class Sampler(Section):
    """How pictures are drawn, in rollouts, learning and evaluation alike. `eta: 0.5` is short for noise of kind ddim and level 0.5."""

    steps: PositiveInt = 50
    """Denoising steps of a picture."""
    noise: Noise = Noise()
    window: Window | None = None
    """Where noise is added; null for every step."""
    guidance: Annotated[float, Field(ge=1)] = 1.0
    """Classifier-free guidance scale; 1 is none, and halves the cost. The same number means the same for every model, whatever
    its pipeline calls it."""
    negative_prompt: str | None = None
    """What guidance leads away from; the pipeline's own by default."""
    embedded_guidance: Annotated[float, Field(ge=0)] | None = None
    """The guidance that the network of a distilled model (FLUX.1-dev, FLUX.2-dev) is told; the pipeline's own by default."""
    spacing: Spacing | None = None
    """Spacing of timesteps; the model's own by default."""

    @property
    def evaluations_per_prediction(self) -> int:
        """Network evaluations of one step of a picture."""
        return 1 if self.guidance == 1 else 2

    @property
    def evaluated_window(self) -> tuple[int, int] | None:
        """The steps that add noise in evaluations, from the first to before the second: its first place. None without a window."""
        return (self.window.first, self.window.first + self.window.size) if self.window else None

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        return spelled_out(given) if isinstance(given, Mapping) else given


def spelled_out(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's settings with `eta` as the noise that it is short for.

    Raises:
        UserError: both are there.
    """
    rest = {name: value for name, value in sampler.items() if name != "eta"}
    if "eta" not in sampler:
        return rest
    if "noise" in rest:
        raise UserError("expected sampler.noise or its short form sampler.eta, got both: leave sampler.eta out")
    return {**rest, "noise": {"kind": "ddim", "level": sampler["eta"]}}


class SoftPrompts(Section):
    """A distribution of soft prompts: `count` times `tokens` embeddings beside every prompt, whose encodings are drawn from.

    Source: Zhao et al., "Learning Prompt Distribution for Diverse In-distribution Generation" (DreamDistribution), ICLR 2025.
    """

    count: PositiveInt = 32
    """Soft prompts, K."""
    tokens: PositiveInt = 4
    """Tokens of each."""
    placement: Literal["before", "after"] = "before"
    """Where the soft tokens stand: before the text, or after it, which leaves the states of the text's words as they are in CLIP.
    `before` is refused where a pooled vector would be read at a soft token (`eos_token_id: 2` in the config of a CLIP encoder, as in
    SDXL)."""
    draw: Draw = "independent"
    """What a picture is drawn from: the encodings' mean with noise of their spread, `independent` in every number (the paper's) or
    `correlated` as the encodings are; one `member`; or the `mean`."""
    spread: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the noise; 0 is the mean."""
    orthogonality: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the loss that holds the soft prompts apart: their mean squared cosine at the end of the text."""
    start: Literal["noise", "plain"] = "noise"
    """`plain` adds to a prompt's own states what a draw has moved since the beginning, and so begins at the model as it came. Its
    members are no prompts by themselves: they are not written as textual inversion."""
    words: str | None = None
    """Words whose mean embedding the soft tokens begin around, in place of 0."""
    scale: PositiveFloat | None = None
    """Spread of the soft tokens' first values; by default that of the model's own embeddings."""


class Parameters(Section):
    """What is trained."""

    kind: Literal["lora", "all", "prompts"] = "lora"
    """Low-rank adapters, all weights, or a distribution of soft prompts before a network that stays as it is."""
    rank: PositiveInt = 16
    """LoRA rank."""
    alpha: PositiveFloat | None = None
    """LoRA scale numerator; the rank by default, which makes the scale 1."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the layers that get an adapter, or how these end; by default the attention of the model's class (docs/models.md)."""
    start: Annotated[str | None, AfterValidator(located)] = None
    """A LoRA file to begin from. Its adapter is trained on, with its rank, alpha and targets, and belongs to the reference too."""
    prompts: SoftPrompts = SoftPrompts()
    checkpointing: bool = False
    """Compute activations again on the way back rather than keeping them: less memory for a third more time. The same numbers."""


SPLITS = ("training", "held_out", "test")
"""Of prompts."""


class Prompts(Section):
    """Where prompts come from."""

    training: Location = "scenes"
    """`scenes`, `scenes-users` (the same world in the words of users), `toy`, or a file: .txt with a prompt a line, .json, .jsonl,
    .csv, .tsv or .parquet with `prompt` and any metadata; or a data set with such columns, a directory or `owner/name` or
    `owner/name:split` on a hub."""
    held_out: Annotated[str | None, AfterValidator(located)] = "scenes"
    """The same, for prompts that are only evaluated: to look at as a run goes on, and to choose settings by."""
    test: Annotated[str | None, AfterValidator(located)] = None
    """The same, for prompts that are evaluated before the first update and after the last alone: so nothing need be chosen by them.
    The held-out scenes come in two halves for that: `scenes-validation`, and `scenes-test`, which has an order of words of its own."""
    writer: Annotated[str | None, AfterValidator(located)] = None
    """A language model that rewrites all prompts once, before the run begins; the image model is given its words. `scenes-writer`
    (bundled), the `--out` of `raysuite writer train`, a causal language model's directory or a hub id."""
    best_of: NonNegativeInt = 0
    """Pictures of each prompt as typed, and of its rewrite, that are drawn before the run begins: what was typed stays where its
    trained reward is higher. 0 draws none and keeps all rewrites."""


class Reward(Section):
    """One term of the reward; a name alone is the reward as it comes."""

    name: str
    """A registered reward, or a function or class as `package.module:name`."""
    weight: float = 1.0
    """Factor of this reward in the sum."""
    model: Annotated[str | None, AfterValidator(located)] = None
    """Hub id or directory of a reward that is a network; by default the weights that it was published with, where a hub has them."""
    options: Annotated[dict[str, Any], AfterValidator(_located_clip)] = Field(default_factory=dict)
    """Other arguments of a reward that is a class, such as `{precision: bfloat16, batch: 8}`."""
    seconds: PositiveFloat = 600.0
    """What it may take for the pictures of one block; then it has hung, and its process is replaced. Rewards that are only
    watched have these defaults too."""
    retries: NonNegativeInt = 1
    """Times that it is asked again for the same pictures after it raised or hung; then the run ends."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class RolloutSettings(Section):
    """What one update samples."""

    prompts: PositiveInt = 16
    """Prompts an update."""
    samples: PositiveInt = 8
    """Pictures a prompt: a group."""
    prompts_per_block: PositiveInt = 4
    """Prompts that go through the network in one batch. Part of the result: see docs/architecture.md."""
    staleness: Annotated[int, Field(ge=0, le=4)] = 0
    """How many updates the sampling policy may be behind: 0 is exactly on-policy, 1 lets sampling overlap learning."""
    keep: bool = False
    """Store every update's rollouts under rollouts/, so that another run can learn from the same (`--keep-rollouts`)."""
    replay: Annotated[str | None, AfterValidator(located)] = None
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
    """Weight gamma^k of step k counted from pure noise: below 1 favours the first steps. Weights have mean 1 over all steps of the
    sampler: in a window of it they may be all above 1, or all below."""
    normalise: Literal["global", "group", "group_mean", "tracked"] = "group"
    """Over the batch; per prompt group (as GRPO); each group's mean with the batch's deviation (as Flow-GRPO and DiffusionNFT); or
    by each prompt's running statistics (as DDPO). Deviations are over all steps of the sampler: with previews and a window of it, the
    advantages that are learned from are as large as where the window lies makes them."""
    tracker_size: PositiveInt = 32
    """Rewards that `tracked` remembers of each prompt."""
    tracker_minimum: PositiveInt = 16
    """Rewards of a prompt below which `tracked` takes the batch's statistics."""


class Preferences(Section):
    """Which pictures are compared and who is preferred, for objectives that learn from preferences."""

    source: Annotated[str | None, AfterValidator(located)] = None
    """A preference set (`raysuite encode`, `raysuite pairs`) to learn from; null compares the run's own rollouts. From a set,
    an update takes rollouts.prompts rankings, whatever rollouts.samples."""
    held_out: Annotated[str | None, AfterValidator(located)] = None
    """Another preference set, of which nothing is learned: evaluations measure the objective's loss, margin and accuracy on
    `evaluation.rankings` of its rankings, always the same ones with the same noise."""
    choose: Choice = "best_worst"
    """Which of a prompt's samples: the best with the worst, `random` or `all` tuples, or those among `kept` of spread quantiles."""
    members: PositiveInt = 2
    """Pictures in a ranking; more than two (Plackett-Luce) with trajectory_dpo, one with sft and a set of good pictures alone."""
    kept: PositiveInt = 5
    """Samples that `choose: spread` keeps."""
    limit: PositiveInt | None = None
    """Rankings a prompt, at most, drawn at random; null for all that `choose` gives."""
    label: Label = "argmax"
    """`argmax` of the reward, or drawn from `bradley_terry` at `temperature`."""
    temperature: PositiveFloat = 1.0
    """Temperature of bradley_terry, in units of reward."""
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a ranking is turned round."""
    across_draws: bool = False
    """Where what a prompt means is drawn, every sample has a draw of its own, and pictures of different draws are compared. By
    default the samples of a prompt share theirs."""


class Reference(Section):
    """What preference objectives and KL terms compare with: the model as it came, unless it is refreshed."""

    refresh: NonNegativeInt = 0
    """Every how many updates the reference follows the policy; 0 is never."""
    decay: Decay = 0.0
    """Share of the old reference that a refresh keeps: 0 copies the policy, more is a running mean."""


class Learn(Section):
    """How an update learns from its rollouts. AdamW."""

    learning_rate: PositiveFloat = 3e-4
    """AdamW's: the highest."""
    warmup: NonNegativeInt = 0
    """Updates over which the learning rate rises to it, in equal steps."""
    decline: Decline = "constant"
    """How the learning rate falls after that, to 0 in update `decline_until`: on a line, or on half a cosine."""
    decline_until: PositiveInt | None = None
    """The number of updates by which it has fallen; at least the run's `updates`, which may grow as long as they stay below."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW's."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of the moments."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's."""
    fused: bool = False
    """AdamW's step as one kernel, on a GPU: faster, and equal but for rounding. Not run on a GPU yet."""
    moment_bits: Literal[8, 32] = 32
    """Of AdamW's moments: 8 take a quarter of the memory, through torchao, whose step is compiled. Not run on a GPU yet."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are scaled down to it."""
    minibatches: PositiveInt = 1
    """Optimiser steps per pass over the rollouts."""
    epochs: PositiveInt = 1
    """Passes over the rollouts of an update."""
    microbatch: PositiveInt = 32
    """Points through the network at once. With the size of a block, the first ratio is exactly 1."""
    ema: Decay | None = None
    """Decay of an exponential moving average of the weights, kept beside them in every checkpoint (`ema/`): 0.99, say. After u updates
    it is at most (1 + u) / (10 + u), so that the first weights are soon forgotten. Null keeps none."""


class Evaluation(Section):
    """Fixed prompts and seeds, before the first update, every few updates, and after the last."""

    every: PositiveInt = 10
    """Updates from one evaluation to the next."""
    prompts: PositiveInt = 96
    """Prompts of each split."""
    samples: PositiveInt = 1
    """Pictures a prompt along the way."""
    final_samples: PositiveInt = 2
    """Pictures a prompt before the first update and after the last."""
    rewards: tuple[str | Reward, ...] = ()
    """Rewards that are only watched: names, or entries as in `rewards`."""
    kl: bool = True
    """Measure the KL from the model as it came on one block. Between samplers without noise there is none: nothing is measured."""
    pictures: NonNegativeInt = 8
    """Prompts of each split whose first picture is kept."""
    seed: NonNegativeInt = 0
    """Evaluation draws depend on this and never on the run's seed."""
    ema: bool = False
    """Evaluate the average that `learn.ema` keeps, in place of the weights that learn."""
    rankings: PositiveInt = 256
    """Rankings of preferences.held_out that each evaluation judges, or all that it has."""

    @property
    def entries(self) -> tuple[Reward, ...]:
        """`rewards`, names as entries."""
        return tuple(map(Reward.model_validate, self.rewards))


Reaction = Literal["warn", "stop", "ignore"]


class Guards(Section):
    """What is watched as a run goes on: each warns in terminal, metrics and report, or stops the run, at its last checkpoint.
    A loss or gradient that is not finite always stops it.
    """

    held_out: Reaction = "warn"
    """The trained reward rose on training prompts since the beginning, and fell on held-out ones (95 % interval below 0)."""
    watched: Reaction = "warn"
    """The trained reward rose since the beginning, and one of `evaluation.rewards` fell, on the same held-out prompts (95 % intervals
    above and below 0); on training prompts where none are held out. Every evaluation is asked by itself: of rewards that do not
    move, one in six seems to fall in one of ten evaluations with 96 prompts, and every other one with four."""
    diversity: Reaction = "warn"
    """Pictures of the same prompt have become alike."""
    diversity_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the diversity at the beginning, below which it has collapsed."""
    kl: Reaction = "warn"
    """The KL from the model as it came is beyond `kl_limit`."""
    kl_limit: PositiveFloat | None = None
    """Nats a trajectory; null for 2 for each number of a latent. The bundled model's latents have 256: its methods ended at 42 to 538
    nats, tuned at 72 to 719; of runs above 800 some had collapsed, others had gained."""
    ratio: Reaction = "warn"
    """Importance ratios before the first step of an update are off 1, with rollouts of the policy itself."""
    ratio_tolerance: PositiveFloat = 0.01
    """How far their mean may be off 1, and what share of them may be clipped."""
    spread: Reaction = "warn"
    """In an update the pictures of most prompts had equal rewards."""
    prompts: Reaction = "warn"
    """Soft prompts have become alike: their spread is below `diversity_share` of what it was."""
    finite: Reaction = "warn"
    """A metric is not a finite number."""


class Judge(Section):
    """Processes of its own for a reward: pictures go to them as they are drawn, and drawing goes on meanwhile."""

    actors: PositiveInt = 1
    """How many processes. Each scores whole blocks."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray sets aside for each, and how many threads torch has there (one at least)."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU of each, which computes on CPUs without one; a share such as 0.2 lets others have the rest."""
    pip: tuple[str, ...] = ()
    """Packages that the reward needs there besides or in place of those that are installed: Ray makes an environment of them."""
    conda: str | dict[str, Any] | None = None
    """The same through conda: the name of an environment that every machine has, or what an environment.yml says."""

    @model_validator(mode="after")
    def _one_environment(self) -> Judge:
        if self.pip and self.conda is not None:
            raise UserError("expected pip or conda for a judge, got both: leave one out")
        return self

    @property
    def environment(self) -> dict[str, Any] | None:
        """Ray's runtime environment."""
        if self.pip:
            return {"pip": list(self.pip)}
        return None if self.conda is None else {"conda": self.conda}


def _actors(given: Mapping[str, Any]) -> int:
    """Of a cluster that says no number: nobody means to draw on CPUs what is learned from on a GPU."""
    return 0 if given.get("worker_gpus") and not given.get("actor_gpus") else 1


class Cluster(Section):
    """Where work runs."""

    workers: PositiveInt = 1
    """Learner processes (Ray Train workers)."""
    worker_cpus: PositiveFloat = 1.0
    """CPUs that Ray sets aside for each learner."""
    worker_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU of each learner, which computes on one. A share, such as 0.6 beside actor_gpus=0.4, lets actors have the rest."""
    actor_cpus: PositiveFloat = 1.0
    """CPUs that Ray sets aside for each rollout actor."""
    actor_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs of each rollout actor; 1 sets actors apart from learners."""
    actors: NonNegativeInt = Field(default_factory=_actors, json_schema_extra={"default": 1})
    """Rollout processes. With 0, which is the default where learners have GPUs and actors none, learners draw for themselves, in turn
    with learning, and hold the network once; one learner then needs no other process."""
    judges: dict[str, Judge] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """Rewards that run in processes of their own, by name, such as `{pickscore: {actors: 2, gpus: 0.5}}`. Others run where pictures
    are drawn."""
    shard: bool = False
    """Spread the network, its gradients and moments over the workers (FSDP2), in place of a copy in each: all weights only."""
    threads: PositiveInt | None = None
    """Torch threads of each process. By default as many as keep busy processes from outnumbering cores."""
    encode_once: bool = False
    """Encode prompts before anything is drawn, into texts/ of the run's or command's directory: learners and actors then load no
    text encoder."""
    max_failures: NonNegativeInt = 2
    """Times a learner may be lost and restarted from its last checkpoint; one that does everything is the command itself."""
    patience: PositiveFloat = 900.0
    """Seconds that a cluster which was joined may take to grow to what the run wants."""

    @property
    def alone(self) -> bool:
        """Whether one process does everything."""
        return self.workers == 1 and not self.actors and not self.judges

    def with_actors(self) -> Cluster:
        """For work without learners: where they would draw for themselves, actors in their places."""
        if self.actors:
            return self
        return self.model_copy(
            update={"actors": self.workers, "actor_cpus": self.worker_cpus, "actor_gpus": self.worker_gpus}
        )

    def wanted(self, kind: Literal["cpus", "gpus"], *, workers: int) -> float:
        """What actors, judges and so many learners take together."""
        each = [(workers, getattr(self, f"worker_{kind}")), (self.actors, getattr(self, f"actor_{kind}"))]
        each += [(judge.actors, getattr(judge, kind)) for judge in self.judges.values()]
        together = sum(number * size for number, size in each)
        if kind == "gpus":  # two shares above a half do not fit on one GPU
            together = max(together, sum(number * math.ceil(size) for number, size in each if size > 0.5))
        return float(together)


class Checkpoints(Section):
    """What is kept."""

    every: PositiveInt = 10
    """Updates from one checkpoint to the next; there is one at every evaluation, too."""
    keep: PositiveInt = 2
    """Most recent checkpoints that stay on disk."""
    best: bool | str = False
    """The one with the highest trained reward on held-out prompts stays, too (on training prompts where none are held out), or the one
    with the highest score of the reward of this name, such as one that is only watched, where the trained one may be gamed."""


class Wandb(Section):
    """Weights & Biases."""

    project: str | None = None
    """Where runs go; naming it turns the tracker on."""
    entity: str | None = None
    """The user or team; the logged-in user's own by default."""
    group: str | None = None
    """Shown together: a sweep's name, say."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes files, which `wandb sync` sends later; by default as WANDB_MODE says, or online."""

    @model_validator(mode="after")
    def _turned_on(self) -> Wandb:
        if self.project is None and (self.entity or self.group or self.mode):
            raise UserError(
                "expected trackers.wandb.project, which turns the tracker on, with other settings of trackers.wandb, got none: name it"
            )
        return self


class Mlflow(Section):
    """MLflow."""

    experiment: str | None = None
    """Where runs go; naming it turns the tracker on."""
    uri: Annotated[str | None, AfterValidator(located)] = None
    """A tracking server or a directory; by default MLFLOW_TRACKING_URI, or trackers/mlflow in the run directory."""

    @model_validator(mode="after")
    def _turned_on(self) -> Mlflow:
        if self.experiment is None and self.uri is not None:
            raise UserError(
                "expected trackers.mlflow.experiment, which turns the tracker on, with trackers.mlflow.uri, got none: name it"
            )
        return self


class Trackers(Section):
    """Where numbers and pictures go besides the run directory."""

    tensorboard: bool = False
    """Event files in trackers/tensorboard of the run directory."""
    wandb: Wandb = Wandb()
    mlflow: Mlflow = Mlflow()


class Run(Section):
    """All sections side by side, whether they agree or not: `RunConfig` is a run whose sections do."""

    seed: NonNegativeInt = 0
    """Of everything that the run draws, but for its evaluations."""
    updates: PositiveInt
    """Updates after which the run ends."""
    budget: PositiveInt | None = None
    """Network evaluations of training: the run ends with the update that reaches it, if `updates` does not end it before."""
    model: Model
    sampler: Sampler = Sampler()
    parameters: Parameters = Parameters()
    prompts: Prompts = Prompts()
    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)]
    """Terms of the trained reward, which is their weighted sum."""
    reward_scale: Literal["given", "batch", "running"] = "given"
    """Scale of each term, before its weight: as its reward gives it, or less its mean and over its standard deviation, in the update's
    `batch` or `running` over all updates so far. A weight then says what a term counts for, whatever its units. Curves, evaluations
    and guards have rewards, and their weighted sum, as they are given."""
    rollouts: RolloutSettings = RolloutSettings()
    credit: Credit = Credit()
    preferences: Preferences = Preferences()
    objective: dict[str, Any]
    """`name` of an objective (one of the suite, or the import path of a class of your own, `package.module:Class`), and its fields."""
    reference: Reference = Reference()
    learn: Learn = Learn()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    cluster: Cluster = Cluster()
    checkpoints: Checkpoints = Checkpoints()
    trackers: Trackers = Trackers()

    @property
    def watched(self) -> tuple[Reward, ...]:
        """Rewards that are evaluated besides the trained ones."""
        trained = {reward.name for reward in self.rewards}
        return tuple(entry for entry in self.evaluation.entries if entry.name not in trained)

    @cached_property
    def built_objective(self) -> Objective[Any]:
        """The objective as a value."""
        return build(self.objective)


def fields(section: type[BaseModel] = Run, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and type of all settings, but for the objective's own."""
    for name, field in section.model_fields.items():
        sections = [a for a in (field.annotation, *get_args(field.annotation)) if _is_section(a)]
        for inner in sections:
            yield from fields(inner, f"{prefix}{name}.")
        if not sections and name != "objective":
            yield prefix + name, field.annotation


def paths() -> Iterator[str]:
    """Dotted paths of all settings, but for the objective's own."""
    return (path for path, _ in fields())


def texts() -> set[str]:
    """Dotted paths of the settings that are text."""
    return {path for path, kind in fields() if kind in (str, str | None)}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
