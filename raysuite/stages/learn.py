"""(advantages | preferences) -> objective -> gradient -> update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.families.sharding import is_share, whole
from raysuite.imported import in_a_sentence
from raysuite.kernel.credit import (
    PromptTracker,
    discount_weights,
    global_advantages,
    group_advantages,
    returns_to_go,
)
from raysuite.kernel.objectives import Objective
from raysuite.kernel.schedule import Schedule
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.types import Block, Cost, Loss, Preferences, Queries, Rollouts, Transitions

Metrics = dict[str, float]
Batch = Transitions | Preferences


def advantages(
    config: RunConfig,
    credits: Mapping[int, np.ndarray],
    prompts: Mapping[int, Sequence[str]],
    tracker: PromptTracker,
    roundings: Mapping[int, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """The advantage of every step, (N, K) by block, from the credit of all blocks of an update.

    Normalised over all blocks, whichever worker learns from them, and then weighted by the discount.

    Args:
        config: of the run.
        credits: (N, K) by block.
        prompts: of the N samples, by block.
        tracker: of the run.
        roundings: what each sample's credit may be off by (N,), by block, where it was computed from larger numbers.
    """
    numbers = sorted(credits)
    rounding_N = None if roundings is None else np.concatenate([roundings[b] for b in numbers])
    credit_NK = np.concatenate([credits[b] for b in numbers])
    prompts_N = [prompt for b in numbers for prompt in prompts[b]]
    if config.credit.normalise == "tracked":
        advantage_N = tracker.advantages(credit_NK.sum(1), prompts_N, rounding_N)
        advantage_NK = np.repeat(advantage_N[:, None], credit_NK.shape[1], axis=1)
    else:
        # a terminal reward is every step's return: all steps were needed for it, whatever the decay
        decay = 1.0 if config.credit.kind == "terminal" else config.credit.decay
        return_NK = returns_to_go(credit_NK, decay=decay)
        if config.credit.normalise == "global":
            advantage_NK = global_advantages(return_NK, rounding_N)
        else:
            deviation: Literal["group", "batch"] = "group" if config.credit.normalise == "group" else "batch"
            advantage_NK = group_advantages(return_NK, prompts_N, rounding_N, deviation=deviation)
    advantage_NK = advantage_NK * discount_weights(credit_NK.shape[1], gamma=config.credit.discount)
    ends = np.cumsum([len(prompts[b]) for b in numbers])[:-1]
    return dict(zip(numbers, np.split(advantage_NK, ends), strict=True))


def transitions(rollouts: Rollouts, advantage_NK: np.ndarray) -> Transitions:
    """One block as an objective sees it."""
    assert rollouts.latents_NK is not None and rollouts.logp_NK is not None
    return Transitions(
        latents_NK=torch.from_numpy(rollouts.latents_NK.copy()),  # arrays from the object store are read-only
        logp_NK=torch.from_numpy(rollouts.logp_NK.copy()),
        advantage_NK=torch.from_numpy(advantage_NK).float(),
        prompts_N=rollouts.block.prompt_of_N,
        window=rollouts.block.window,
        draws_N=None if rollouts.draws_N is None else torch.from_numpy(rollouts.draws_N.copy()),
    )


def minibatches(config: RunConfig, update: int, epoch: int = 0) -> list[list[int]]:
    """The numbers of the blocks in each minibatch of an update, the same for any number of workers.

    Every epoch has the same minibatches, since a worker keeps its blocks, in an order of its own: whose are last has moved furthest
    from the policy that drew.
    """
    rng = numpy_generator(seed=config.seed, stage=Stage.MINIBATCHES, update=update)
    shares = np.split(rng.permutation(config.rollouts.blocks), config.learn.minibatches)
    if epoch:
        rng = numpy_generator(seed=config.seed, stage=Stage.MINIBATCHES, update=update, sample=epoch)
        shares = [shares[i] for i in rng.permutation(len(shares))]
    return [share.tolist() for share in shares]


def ask(objective: Objective[Any], policy: Policy, batch: Batch, generator: torch.Generator) -> Queries:
    """What an objective asks of a policy about one block.

    Where the policy draws prompts and nobody knows with which draws the pictures were made (people's, or another model's), every
    unit gets a draw, which its members share as they share their noise.
    """
    with _told(objective):
        queries = objective.queries(batch, policy.table, generator)
    if policy.draws_prompts and queries.draws_UM is None:
        # drawn last, so that all else is as without
        label_U = torch.randint(2**63 - 1, (len(queries), 1), generator=generator)
        queries = replace(queries, draws_UM=label_U.expand(queries.t_UM.shape))
    return queries


def gradient(
    objective: Objective[Any],
    policy: Policy,
    batches: Sequence[tuple[Batch, torch.Generator]],
    *,
    microbatch: int,
    total: Callable[[int], int] = lambda units: units,
    most: Callable[[int], int] = lambda rounds: rounds,
    check: Callable[[], None] = lambda: None,
) -> tuple[Metrics, Cost]:
    """Add the gradient of the objective's mean over all units of `batches` to the parameters' `grad`.

    All training calls it. A study takes each unit's gradient by itself from the same queries and losses (study/gradients.py).
    Any `microbatch` gives the same gradient up to rounding.

    Args:
        objective: what is descended.
        policy: whose trainable parameters get the gradient.
        batches: blocks, each with the generator that its queries draw from.
        microbatch: points through the network at once, at most.
        total: the number of units of a whole minibatch, from the number in these batches. Where workers hold parts of a
            minibatch, the sum of their gradients is its gradient, and so with their metrics.
        most: the largest of such a number among those who share the network, as it is spread over them: a layer is gathered
            by all at once, so that who has fewer microbatches goes through the network as often, for nothing.
        check: called before every microbatch; what it raises ends the work.

    Returns:
        The objective's metrics, with `loss`, as means over all units (empty where there are none), and the cost.
    """
    queries = [ask(objective, policy, batch, generator) for batch, generator in batches if len(batch)]
    units = total(sum(map(len, queries)))
    sums: dict[str, float | Tensor] = defaultdict(float)
    cost, spans = Cost(), [(asked, *span) for asked in queries for span in _spans(asked, microbatch)]
    missing = most(len(spans)) - len(spans)
    pieces = most(max((math.ceil(asked.t_UM.shape[1] / microbatch) for asked in queries), default=0))
    for asked, start, stop in spans:
        check()
        chunk = asked.rows(start, stop)
        loss, spent = _backward(objective, policy, chunk.to(policy.device), microbatch=microbatch, scale=1 / units)
        for name, values in {"loss": loss.terms_U.detach(), **loss.metrics}.items():
            sums[name] += values.detach().double().sum()  # read at the end, and not at every microbatch
        cost += spent
    for each in queries:
        for name, summed in policy.regularise(each.prompts_U, scale=1 / units).items():
            sums[name] += summed
    for _ in range(missing):
        check()
        _keep_company(objective, policy, pieces=pieces)
    return {name: total_of / units for name, total_of in zip(sums, _read(sums.values()), strict=True)}, cost


def _name(objective: Objective[Any]) -> str:
    """As an objective of a user's is named in a configuration."""
    return f"{type(objective).__module__}:{type(objective).__qualname__}"


def _told(objective: Objective[Any]) -> AbstractContextManager[None]:
    """What a user's objective raises becomes a sentence; one of the suite's own is a fault to be seen whole."""
    ours = type(objective).__module__.startswith("raysuite.")
    return nullcontext() if ours else in_a_sentence(f"the objective {_name(objective)} raised")


def loss_of(
    objective: Objective[Any], asked: Queries, schedule: Schedule, prediction_UM: Tensor, reference_UM: Tensor | None
) -> Loss:
    """An objective's loss of these units.

    Raises:
        UserError: it raised, or its terms or a metric are not one number a unit. (Reduced, they would be learned from all the same,
            with a wrong weight.)
    """
    with _told(objective):
        loss = objective.loss(asked, schedule, prediction_UM, reference_UM)
    for name, values in {"terms_U": loss.terms_U, **loss.metrics}.items():
        if values.shape != (len(asked),):
            raise UserError(
                f"expected {name} of the objective {_name(objective)} to be one number for each of {len(asked)} units, got shape "
                f"{tuple(values.shape)}: return them as they are, neither summed nor averaged"
            )
    return loss


def _read(values: Iterable[float | Tensor]) -> list[float]:
    """Numbers, fetched from their device at once."""
    found = list(values)
    where = next((value.device for value in found if isinstance(value, Tensor)), None)
    return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=where) for v in found]).tolist() if found else []


def _spans(asked: Queries, microbatch: int) -> Iterator[tuple[int, int]]:
    """First and last unit of what goes through the network at once, or of one unit that has more points than that."""
    for group in range(0, len(asked), asked.together):
        width = max(1, min(microbatch // asked.t_UM.shape[1], asked.together))
        for start in range(group, group + asked.together, width):
            yield start, min(start + width, group + asked.together)


class _Chunk:
    """Units that go through the network together, in pieces of at most a microbatch of points."""

    def __init__(self, objective: Objective[Any], policy: Policy, asked: Queries, microbatch: int) -> None:
        self._objective, self._policy, self._asked = objective, policy, asked
        self._x, self._t = asked.x_UM.flatten(0, 1), asked.t_UM.flatten()
        self._prompts = [prompt for prompt in asked.prompts_U for _ in range(asked.t_UM.shape[1])]
        self._draws = None if asked.draws_UM is None else asked.draws_UM.flatten()
        self.pieces = [slice(start, start + microbatch) for start in range(0, len(self._x), microbatch)]
        self.points = len(self._x) * (policy.evaluations_per_prediction if asked.guided else 1)
        self.passes = 1 + objective.needs_reference + objective.needs_base

    def predict(self, piece: slice, *, reference: bool = False, base: bool = False) -> Tensor:
        about, own = (self._x[piece], self._t[piece], self._prompts[piece]), None
        if self._draws is not None:
            own = self._draws[piece]
        return self._policy.predict(*about, reference=reference, base=base, guided=self._asked.guided, draws_N=own)

    def loss(self, prediction: Tensor) -> Loss:
        """Of the predictions of all points."""
        shape, known, reference = self._asked.t_UM.shape, self._asked, None
        if self._objective.needs_reference:
            reference = torch.cat([self.predict(piece, reference=True) for piece in self.pieces]).unflatten(0, shape)
        if self._objective.needs_base:
            base = torch.cat([self.predict(piece, base=True) for piece in self.pieces])
            known = self._asked.knowing(base=base.unflatten(0, shape))
        return loss_of(self._objective, known, self._policy.schedule, prediction.unflatten(0, shape), reference)


def _backward(
    objective: Objective[Any], policy: Policy, asked: Queries, *, microbatch: int, scale: float
) -> tuple[Loss, Cost]:
    """Add the gradient of the chunk's terms times `scale`.

    A unit may have more points than a microbatch (a pair of whole trajectories). Its loss is then taken from predictions
    without a graph, and what the loss says of each prediction is sent back through one microbatch after the other: the
    same gradient in bounded memory, for one more forward pass.
    """
    chunk = _Chunk(objective, policy, asked, microbatch)
    whole_at_once = len(chunk.pieces) == 1
    if whole_at_once:
        prediction = chunk.predict(chunk.pieces[0])
    else:
        with torch.no_grad():
            prediction = torch.cat([chunk.predict(piece) for piece in chunk.pieces])
        prediction.requires_grad_()
    loss = chunk.loss(prediction)
    (loss.terms_U.sum() * scale).backward()
    if not whole_at_once:
        assert prediction.grad is not None
        for piece in chunk.pieces:
            chunk.predict(piece).backward(prediction.grad[piece])
    return loss, Cost(forward=chunk.points * (chunk.passes + (not whole_at_once)), backward=chunk.points)


@torch.no_grad()
def judge(
    objective: Objective[Any],
    policy: Policy,
    batch: Batch,
    generator: torch.Generator,
    *,
    microbatch: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, np.ndarray], Cost]:
    """What the objective says of each element of a batch, and no gradient.

    Args:
        objective: who judges.
        policy: who is judged.
        batch: a block.
        generator: what its queries draw from.
        microbatch: points through the network at once, at most.
        check: called before every microbatch; what it raises ends the work.

    Returns:
        The objective's metrics, with `loss`, (N,) means over the units of each of the N elements, and the cost.
    """
    asked = ask(objective, policy, batch, generator)
    found: dict[str, list[Tensor]] = defaultdict(list)
    cost = Cost()
    for start, stop in _spans(asked, microbatch):
        check()
        chunk = _Chunk(objective, policy, asked.rows(start, stop).to(policy.device), microbatch)
        loss = chunk.loss(torch.cat([chunk.predict(piece) for piece in chunk.pieces]))
        for name, values in {"loss": loss.terms_U, **loss.metrics}.items():
            found[name].append(values.double().cpu())
        cost += Cost(forward=chunk.points * chunk.passes)
    each = len(asked) // len(batch)  # an element's units follow one another
    return {name: torch.cat(values).unflatten(0, (-1, each)).mean(1).numpy() for name, values in found.items()}, cost


def _keep_company(objective: Objective[Any], policy: Policy, *, pieces: int) -> None:
    """Go through the network as often and in the order that `_backward` does, and add nothing."""
    x = torch.zeros(1, *policy.latent_shape, device=policy.device)
    t = policy.table.timesteps_K[:1]

    guided = objective.process == "reverse"  # with guidance some pipelines call their network twice

    def predict(*, reference: bool = False, base: bool = False) -> Tensor:
        return policy.predict(x, t, [""], reference=reference, base=base, guided=guided)

    with torch.set_grad_enabled(pieces == 1):
        predictions = [predict() for _ in range(pieces)]
    for _ in range(pieces if objective.needs_reference else 0):
        predict(reference=True)
    for _ in range(pieces if objective.needs_base else 0):
        predict(base=True)
    for prediction in predictions:
        ((prediction if pieces == 1 else predict()) * 0).sum().backward()


def learn(
    config: RunConfig,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    blocks: Mapping[int, Batch],
    *,
    update: int,
    accelerator: Accelerator,
    check: Callable[[], None] = lambda: None,
) -> tuple[Metrics, Cost]:
    """All optimiser steps of one update, from this worker's blocks by number.

    Gradients are summed over workers once per optimiser step. A minibatch without a unit (all its rankings were ties)
    makes none. `check` is called before every microbatch; what it raises leaves the update half done.

    Raises:
        UserError: a loss or gradient is not finite; the weights are then as they were before the step.
    """
    parameters = list(policy.trainable().values())
    sharded = is_share(parameters[0])
    rank, workers = accelerator.process_index, accelerator.num_processes
    history: list[Metrics] = []
    cost = Cost()
    for epoch in range(config.learn.epochs):
        for number, members in enumerate(minibatches(config, update, epoch)):
            mine = members[rank::workers]
            batches = [(blocks[b], generator_of(config, update, b, epoch)) for b in mine]
            optimizer.zero_grad(set_to_none=True)
            metrics, spent = gradient(
                config.built_objective,
                policy,
                batches,
                microbatch=config.learn.microbatch,
                total=lambda units: _total(units, accelerator),
                most=lambda rounds: _most(rounds, accelerator) if sharded else rounds,
                check=check,
            )
            metrics = _reduce(parameters, metrics, accelerator)
            if not metrics:
                continue
            norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, config.learn.max_grad_norm)))
            if not np.isfinite([norm, metrics["loss"]]).all():
                raise UserError(
                    f"expected a finite loss and gradient in update {update}, minibatch {number}, got loss {metrics['loss']} and "
                    f"gradient norm {norm}: the weights were not touched; lower learn.learning_rate, or use float32"
                )
            optimizer.step()
            history.append({**metrics, "grad_norm": norm})
            cost += spent
    optimizer.zero_grad(set_to_none=True)
    if not history:
        return {}, cost
    means = {f"learn/{name}": float(np.mean([m[name] for m in history])) for name in history[0]}
    if "ratio" in history[0]:
        means["learn/ratio"] = history[0]["ratio"]  # before any step of this update: 1 when on-policy
        means["learn/clipped_at_first"] = history[0].get("clip_fraction", 0.0)  # the same: none
    return means, cost


def generator_of(config: RunConfig, update: int, block: int, epoch: int) -> torch.Generator:
    """What a block's queries draw from in one pass over an update's rollouts."""
    return torch_generator(seed=config.seed, stage=Stage.OBJECTIVE, update=update, prompt=block, sample=epoch)


def _total(units: int, accelerator: Accelerator) -> int:
    """Units over all workers."""
    if accelerator.num_processes == 1:
        return units
    return int(accelerator.reduce(torch.tensor(units, device=accelerator.device), reduction="sum"))


def _most(rounds: int, accelerator: Accelerator) -> int:
    """The largest over all workers."""
    return max(gather_object([rounds]))


def _reduce(parameters: Sequence[torch.nn.Parameter], metrics: Metrics, accelerator: Accelerator) -> Metrics:
    """Sum gradients and metrics over workers, once per optimiser step. A worker without units adds zeros.

    Gradients of a network that is spread over the workers are sums already. Accelerate's own wrapper would send gradients after
    every microbatch, and wrap the network that rollouts share.
    """
    if accelerator.num_processes == 1:
        return metrics
    facts = gather_object([(list(metrics), [p.grad is not None for p in parameters])])
    names = sorted({name for found, _ in facts for name in found})
    if not names:
        return {}
    learned = [
        p
        for p, somewhere in zip(parameters, map(any, zip(*(has for _, has in facts), strict=True)), strict=True)
        if somewhere
    ]
    if not is_share(parameters[0]):
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in learned])
        torch.distributed.all_reduce(flat)  # in place: Accelerate would make a second copy of all gradients
        for p, piece in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            if p.grad is None:
                p.grad = torch.empty_like(p)
            p.grad.copy_(piece.view(p.shape))  # laid out as the parameter is
    values = torch.tensor([metrics.get(n, 0.0) for n in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(values, reduction="sum").tolist(), strict=True))


def blocks_of_worker(config: RunConfig, blocks: Sequence[Block], update: int, rank: int, workers: int) -> list[Block]:
    """The blocks that a worker learns from, in the order in which it will need them."""
    return [blocks[b] for members in minibatches(config, update) for b in members[rank::workers]]
