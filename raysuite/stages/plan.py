"""What each process of a run will hold, found from configurations before anything is loaded, and whether it fits a GPU.

Bytes of weights, gradients, moments and latents follow from shapes. Those of calls of the network are counted, operation by
operation, on tensors without memory (`families.outline`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from raysuite.config import TOYS, Model, Parameters, RunConfig, Sampler, put, validate
from raysuite.errors import UserError
from raysuite.families.outline import Outline
from raysuite.families.text import REMEMBERED_BYTES
from raysuite.kernel.objectives import Objective
from raysuite.kernel.objectives.forward import ForwardObjective
from raysuite.rewards import weights_of
from raysuite.stages.preferences import tuples
from raysuite.stages.prompts import PromptSet, drawn, latents_kept, load_prompts, measures_kl

GB = 10**9
GPUS: Mapping[str, int] = {
    "T4": 16,
    "A10G": 24,
    "L4": 24,
    "3090": 24,
    "4090": 24,
    "5090": 32,
    "L40S": 48,
    "A6000": 48,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
"""Memory of GPUs that come with one size, GB."""
ROOM = 0.9
"""Share of a GPU that may be planned for: the rest is for CUDA's context, libraries' workspaces and gaps."""
STAND_IN = "a picture of " + ", ".join(f"a thing of colour number {number}" for number in range(16))
"""In place of prompts whose file is not here."""
LOADED = "the model as it loads"
"""What main memory holds only until the model is on its GPU."""


@dataclass(frozen=True)
class Process:
    """One kind of process of a run."""

    name: str
    number: int
    """How many of it there are."""
    gpus: float
    """Of each."""
    device: Mapping[str, int]
    """Bytes where it computes, by what they are."""
    main: Mapping[str, int]
    """Bytes that it keeps in main memory beside these."""

    @property
    def total(self) -> int:
        """Bytes where it computes."""
        return sum(self.device.values())


@dataclass(frozen=True)
class Plan:
    """A run's processes."""

    model: str
    """Class, size of pictures, type, and what is trained."""
    processes: tuple[Process, ...]
    notes: tuple[str, ...] = ()

    def on_one_gpu(self) -> dict[str, int]:
        """How many processes of each name the fullest GPU has; none where all compute on CPUs."""
        places = [p for p in self.processes if p.gpus]
        if sum(p.gpus for p in places) <= 1 or all(p.gpus < 1 for p in places):
            shared: dict[str, int] = {}
            room = 1.0
            for place in places:  # as Ray deals: a learner first, and what is left to actors
                shared[place.name] = min(place.number, int(room / place.gpus + 1e-9))
                room -= shared[place.name] * place.gpus
            return {name: count for name, count in shared.items() if count}
        fullest = max(places, key=lambda p: p.total * min(p.number, max(1, int(1 / p.gpus))))
        return {fullest.name: min(fullest.number, max(1, int(1 / fullest.gpus)))}

    @property
    def fullest(self) -> int:
        """Bytes on the fullest GPU."""
        number = self.on_one_gpu()
        return sum(number.get(p.name, 0) * p.total for p in self.processes)

    def fits(self, memory: int) -> bool:
        """Whether a GPU with so many GB has room for it, if none to spare."""
        return self.fullest <= memory * GB


def plan(config: RunConfig) -> Plan:
    """What a run's processes will hold.

    Raises:
        UserError: there is no such model, or its shapes depend on what its tensors hold.
    """
    if config.model.path in TOYS:
        raise UserError(
            f"expected a pipeline of diffusers to plan for, got {config.model.path}, which takes a few kilobytes"
        )
    if config.parameters.kind == "prompts":
        raise UserError(
            "expected parameters.kind=lora or all to plan for, got prompts: what gradients through text encoders keep is not counted"
        )
    cluster, notes = config.cluster, []
    read, prompts = config.rollouts.prompts, _prompts(config)
    if prompts is None:
        prompt = STAND_IN
        notes.append(
            f"prompts.training={config.prompts.training} is not here: a prompt of {len(prompt)} characters stands in"
        )
    else:
        prompt = max((prompt.text for prompt in prompts.all), key=len)
        of_a_set = config.preferences.source is not None
        read = len(drawn(config, prompts)) + (config.rollouts.prompts if of_a_set else 0)
    about = (
        config.model.model_dump_json(),
        config.sampler.model_dump_json(),
        config.parameters.model_dump_json(),
        prompt,
    )
    learns = _outline(*about, cluster.worker_gpus > 0)
    texts = read * learns.text
    processes = [_learner(config, learns, texts)]
    if cluster.actors:
        processes.append(_actor(config, _outline(*about, cluster.actor_gpus > 0), texts))
    if cluster.encode_once and texts:
        notes.append(
            f"on disk, in texts/ of the run: {_gb(texts)} GB, the text states of {read:,} prompts as long as the longest"
        )
    if config.model.compile:
        notes.append(
            "counted without model.compile: what a compiler keeps for the way back, and works with, is its own choice"
        )
    networks = {r.name: r.model or weights_of(r.name) for r in (*config.rewards, *config.watched)}
    if told := [f"{name} ({what})" for name, what in networks.items() if what]:
        notes.append(f"networks of rewards are not counted: {', '.join(told)}")
    height, width = learns.image_size
    trained = f"{'LoRA' if learns.lora else 'all weights'}, {learns.trained / 1e6:.1f} million numbers"
    return Plan(
        model=f"{learns.name}, {height} x {width}, {config.model.precision}, {trained}",
        processes=tuple(processes),
        notes=tuple(notes),
    )


@lru_cache(maxsize=4)
def _outline(model: str, sampler: str, parameters: str, prompt: str, gpu: bool) -> Outline:
    """One outline serves all plans that differ in other settings."""
    return Outline(
        model=Model.model_validate_json(model),
        sampler=Sampler.model_validate_json(sampler),
        parameters=Parameters.model_validate_json(parameters),
        prompt=prompt,
        gpu=gpu,
    )


def _learner(config: RunConfig, outline: Outline, texts: int) -> Process:
    objective, cluster, learn = config.built_objective, config.cluster, config.learn
    shares = cluster.workers if cluster.shard else 1
    network = outline.weights[outline.part]
    measured = not cluster.actors and measures_kl(config)
    copies = (outline.copy if objective.needs_reference or measured else 0) + (
        outline.copy if objective.needs_base and config.reference.refresh else 0
    )
    second = 4 * outline.trained if config.reference.refresh else 0
    guided = objective.process == "reverse"
    block = config.rollouts.prompts_per_block * config.rollouts.samples
    rows = min(learn.microbatch, _points(config))
    activations = outline.learning(rows, guided=guided, reference=objective.needs_reference or objective.needs_base)
    passing = 4 * outline.trained // shares  # of the optimiser's step, or gradients that are summed over workers
    device = {
        **_weights(config, outline, network // shares),
        "reference": (second if outline.lora else copies) // shares,
        "gradients": 4 * outline.trained // shares,
        "moments": learn.moment_bits // 4 * outline.trained // shares,
        "activations": max(activations, passing),
    }
    if not cluster.actors:
        calls = _calls_of_drawing(config, outline)
        if calls > device["activations"] + device["gradients"]:  # there are none while pictures are drawn
            device |= {"activations": calls, "gradients": 0}
    follows = config.reference.refresh > 0
    # the policy's versions, the average, the reference, and where a learner draws for itself the model as it came
    weights = 1 + config.rollouts.staleness + (learn.ema is not None) + follows + (follows and not cluster.actors)
    if config.preferences.source is not None:
        block = config.rollouts.prompts_per_block * config.preferences.members
    kept, pictures = _latents(config), -(-config.rollouts.blocks // cluster.workers) * block
    main = {
        "latents of an update": kept * outline.latent * pictures,
        "copies for a minibatch": _asked(objective, kept) * outline.latent * pictures // learn.minibatches,
        "text states": min(texts, REMEMBERED_BYTES),
        "weights and moments": (4 * weights + learn.moment_bits // 4) * outline.trained,
        LOADED: _loaded(config, outline) if cluster.worker_gpus else 0,
        "checkpoint being written": 0 if outline.lora else 4 * outline.trained + _encoders_loaded(config, outline),
    }
    return Process("learner", cluster.workers, cluster.worker_gpus, device, main)


def _points(config: RunConfig) -> int:
    """What may go through the network at once: a microbatch crosses no block, and no step of one."""
    objective, rollouts, compared = config.built_objective, config.rollouts, config.preferences
    pictures = rollouts.samples
    if objective.consumes == "preferences":
        rankings = 1
        if compared.source is None:
            rankings = len(tuples(compared, np.arange(rollouts.samples), np.random.default_rng(0)))
        pictures = rankings * compared.members
    draws = objective.draws if isinstance(objective, ForwardObjective) else 1  # noise levels of each picture
    return rollouts.prompts_per_block * pictures * draws


def _asked(objective: Objective[Any], kept: int) -> int:
    """Latents that the queries of a whole minibatch hold of each picture: they are made before the first of them is answered."""
    if isinstance(objective, ForwardObjective):  # the clean one, the noisy one and what the network should say there
        return 3 * objective.draws
    return 2 * (kept - 1)  # before and after each step


def _actor(config: RunConfig, outline: Outline, texts: int) -> Process:
    reference = outline.copy if not outline.lora and measures_kl(config) else 0
    device = {
        **_weights(config, outline, outline.weights[outline.part]),
        "reference": reference,
        "activations": _calls_of_drawing(config, outline),
    }
    main = {
        "text states": min(texts, REMEMBERED_BYTES),
        "weights and moments": 4 * outline.trained,
        LOADED: _loaded(config, outline) if config.cluster.actor_gpus else 0,
    }
    return Process("actor", config.cluster.actors, config.cluster.actor_gpus, device, main)


def _loaded(config: RunConfig, outline: Outline) -> int:
    """Bytes of a pipeline that is read into main memory before it goes to a GPU."""
    return sum(_weights(config, outline, outline.weights[outline.part]).values())


def _encoders_loaded(config: RunConfig, outline: Outline) -> int:
    """Bytes of text encoders that a checkpoint of all weights reads anew: in float32, where here they are rounded."""
    return 0 if config.model.precision == "float32" else 2 * outline.encoders


def _weights(config: RunConfig, outline: Outline, network: int) -> dict[str, int]:
    encoders = 0 if config.cluster.encode_once else outline.encoders
    return {"network": network, "VAE": outline.rest, "text encoders": encoders}


def _calls_of_drawing(config: RunConfig, outline: Outline) -> int:
    """Peak bytes of drawing a block and decoding it, noise and latents of its trajectories included."""
    rows = config.rollouts.prompts_per_block * config.rollouts.samples
    window = config.sampler.window.size if config.sampler.window else config.sampler.steps
    noise, kept = window * rows * outline.latent, _latents(config) * rows * outline.latent
    return noise + kept + max(outline.drawing(rows), outline.decoding(rows), kept)


def _latents(config: RunConfig) -> int:
    """Latents that are kept of a picture, at the most: a window that moves begins before the last steps."""
    return latents_kept(config, config.sampler.evaluated_window)


def _prompts(config: RunConfig) -> PromptSet | None:
    """Those of the run; None where their files are not here."""
    try:
        return load_prompts(config.prompts)
    except UserError:
        return None


# whether it fits


def memory_of(gpu: str) -> int:
    """GB of a GPU's memory, from its name: `H100 80GB`, `NVIDIA H200`.

    Raises:
        UserError: the name says no size, and is none of `GPUS`.
    """
    if said := re.search(r"(\d+)\s*Gi?B", gpu, re.IGNORECASE):
        return int(said[1])
    known = [size for name, size in GPUS.items() if re.search(rf"(?<![A-Z0-9]){name}(?![A-Z0-9])", gpu, re.IGNORECASE)]
    if len(known) != 1:
        raise UserError(
            f"expected a GPU with its memory, such as 'A100 40GB', or one of {', '.join(GPUS)}, got {gpu!r}: say its memory (--memory)"
        )
    return known[0]


def verdict(config: RunConfig, planned: Plan, memory: int | None) -> Iterator[str]:
    """Whether the fullest GPU has room for its processes, and what to change if not.

    Args:
        config: of the run.
        planned: its plan.
        memory: of one GPU, GB; None where none was named.
    """
    shared = planned.on_one_gpu()
    if not shared:
        total = sum(p.number * (p.total + sum(p.main.values())) for p in planned.processes)
        yield f"all on CPUs: {_gb(total)} GB of main memory, beside what Python and its libraries take in each process"
        if memory is not None:
            yield "no process of this run uses a GPU: plan it with --set cluster.worker_gpus=1"
        return
    who = " and ".join(f"{number} {name}{'s' if number > 1 else ''}" for name, number in shared.items())
    if memory is None:
        yield f"on the fullest GPU, {who}: {_gb(planned.fullest)} GB; name one (--gpu or --memory) to see whether it has room"
        return
    limit, of = ROOM * memory * GB, f"{_gb(planned.fullest)} of {memory} GB"
    if planned.fullest <= limit:
        yield f"it fits: on the fullest GPU, {who}: {of}"
        return
    yield (
        f"it fits, but nothing is to spare (more than {ROOM:.0%}): on the fullest GPU, {who}: {of}"
        if planned.fits(memory)
        else f"it does not fit: on the fullest GPU, {who}: {of}"
    )
    found = fitting(config, int(limit))
    if found is None:
        yield "no setting that raysuite knows makes it fit: take a larger GPU, or a smaller model"
        return
    changes, better = found
    settings = " ".join(f"--set {path}={str(value).lower()}" for path, value in changes.items())
    yield f"with {settings} the fullest GPU has {_gb(better.fullest)} GB"


def fitting(config: RunConfig, limit: int) -> tuple[dict[str, Any], Plan] | None:
    """A few settings with which the fullest GPU holds at most `limit` bytes, and the plan with them; None if there are none."""
    changes: dict[str, Any] = {}
    best = plan(config)
    for settings in _remedies(config):
        tree = config.canonical()
        for path, value in {**changes, **settings}.items():
            put(tree, path, value)
        try:
            tried = plan(validate(tree))
        except UserError:  # not with the run's other settings
            continue
        if tried.fullest < best.fullest:
            best = tried
            changes |= settings
            if best.fullest <= limit:
                return changes, best
    return None


def _remedies(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Settings that hold less, those first that change no number, to be taken one after the other."""
    cluster, rollouts = config.cluster, config.rollouts
    yield {"cluster.encode_once": True}
    yield {"parameters.checkpointing": True}
    if cluster.worker_gpus < 1 or cluster.actor_gpus < 1:
        yield {"cluster.worker_gpus": 1.0, "cluster.actor_gpus": 1.0}
    microbatch = config.learn.microbatch
    while microbatch > 1:
        microbatch //= 2
        yield {"learn.microbatch": microbatch}
    for width in range(rollouts.prompts_per_block - 1, 0, -1):
        if rollouts.prompts_per_block % width == 0:
            yield {"rollouts.prompts_per_block": width}
    yield {"model.precision": "bfloat16"}
    yield {"parameters.kind": "lora"}


def as_text(plan: Plan) -> str:
    """A plan as a table, processes side by side."""
    unit = "GB" if max(p.total for p in plan.processes) >= GB else "MB"
    kinds = {kind: None for p in plan.processes for kind in (*p.device, *p.main)}
    names = [f"{p.number} {p.name}{'s' if p.number > 1 else ''}" for p in plan.processes]

    def line(kind: str, values: Iterable[str]) -> str:
        return f"{kind:26}" + "".join(f"{value:>14}" for value in values)

    def rows(of: Callable[[Process], Mapping[str, int]]) -> Iterator[str]:
        for kind in kinds:
            held = [of(p).get(kind, 0) for p in plan.processes]
            if any(held):
                yield line(f"  {kind}", (_in(unit, value) for value in held))

    where = ["GPU" if p.gpus else "CPU" for p in plan.processes]
    return "\n".join(
        [
            plan.model,
            line(f"{unit} each", names),
            line("computes on", where),
            *rows(lambda p: p.device),
            line("  together", (_in(unit, p.total) for p in plan.processes)),
            "in main memory besides",
            *rows(lambda p: p.main),
            *plan.notes,
        ]
    )


def _gb(size: int) -> str:
    return f"{size / GB:.1f}" if size >= GB else f"{size / GB:.2g}"


def _in(unit: str, size: int) -> str:
    scaled = size / {"GB": GB, "MB": 10**6}[unit]
    return "-" if not size else f"{scaled:.2f}" if scaled >= 0.01 else "< 0.01"
