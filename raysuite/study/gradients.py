"""One unit's gradients under several objectives, by parameter block and timestep bin: what agreement is estimated from.

They are the gradients that `stages.learn.gradient` would add up; a test says so. Objectives that ask about the same points
share the network's forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from raysuite.families.policy import Policy
from raysuite.kernel.objectives import Objective
from raysuite.stages.learn import Batch, ask, loss_of
from raysuite.types import Cost, Preferences, Queries

Add = Callable[[str, int, dict[str, Tensor]], None]
"""Takes a part of an objective's gradient in a timestep bin, by parameter: parts add up."""


def unit_gradients(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    batches: Mapping[str, Batch],
    add: Add,
    *,
    generator: Callable[[], torch.Generator],
    bins: int,
    microbatch: int,
    rankings: float | None = None,
) -> Cost:
    """Hand the gradient of every objective's mean over one unit's queries to `add`, and return what that cost.

    Where `rankings` says how many a unit has, one with fewer, since pictures tie, counts for as much less. So it does in
    training, which divides by the rankings of the whole minibatch: the direction is E[sum] / E[number], and not E[mean].

    Args:
        objectives: by name.
        policy: at which they are taken. Its parameters' `grad` is left alone.
        batches: the unit as each objective sees it; objectives without a batch have no gradient.
        add: gets every gradient in parts.
        generator: makes the generator that queries draw from, the same for every objective: those that noise the same
            pictures noise them alike.
        bins: T, equal ranges of the training timesteps.
        microbatch: points through the network at once, at most.
        rankings: by which the sum over a unit's rankings is divided, the same for all units; None for their own number.
    """
    share = {
        name: len(batch) / rankings if rankings and isinstance(batch, Preferences) else 1.0
        for name, batch in batches.items()
    }
    asked = {name: ask(objectives[name], policy, batch, generator()) for name, batch in batches.items()}
    cost = Cost()
    for names in sharing(asked):
        at_one_level = bool((asked[names[0]].t_UM == asked[names[0]].t_UM[:, :1]).all())
        take = _by_unit if at_one_level else _by_point
        cost += take({name: objectives[name] for name in names}, policy, asked, share, add, bins, microbatch)
    return cost


def bin_ranges(policy: Policy, bins: int) -> list[tuple[int, int]]:
    """First and last of the training levels of every bin, the least noisy first; timesteps, where they are whole numbers."""
    total = len(policy.schedule.training)
    starts = [-(-number * total // bins) for number in range(bins + 1)]
    return [(start, stop - 1) for start, stop in pairwise(starts)]


def sharing(asked: Mapping[str, Queries]) -> list[list[str]]:
    """Names in groups that ask for predictions at the same points."""
    groups: list[list[str]] = []
    for name, queries in asked.items():
        for group in groups:
            if _same_points(asked[group[0]], queries):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _same_points(one: Queries, other: Queries) -> bool:
    return (
        one.guided == other.guided
        and one.prompts_U == other.prompts_U
        and one.x_UM.shape == other.x_UM.shape
        and (one.draws_UM is None) == (other.draws_UM is None)
        and (one.draws_UM is None or other.draws_UM is None or torch.equal(one.draws_UM, other.draws_UM))
        and torch.equal(one.t_UM, other.t_UM)
        and torch.equal(one.x_UM, other.x_UM)
    )


def _bin(t: Tensor, policy: Policy, bins: int) -> Tensor:
    levels = policy.schedule.training
    return levels.nearest(t) * bins // len(levels)


def _by_unit(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    asked: Mapping[str, Queries],
    share: Mapping[str, float],
    add: Add,
    bins: int,
    microbatch: int,
) -> Cost:
    """Units whose members are all at one noise level: a chunk belongs to one bin, and one forward pass serves all."""
    first, needed, cost = asked[next(iter(objectives))], _reference_is_needed(objectives), Cost()
    held = any(objective.needs_base for objective in objectives.values())
    bin_U = _bin(first.t_UM[:, 0], policy, bins)
    for number in bin_U.unique().tolist():
        for units in (bin_U == number).nonzero().flatten().split(max(1, microbatch // first.t_UM.shape[1])):
            chunks = {name: asked[name].select(units).to(policy.device) for name in objectives}
            chunk = next(iter(chunks.values()))
            prediction = _predict(policy, chunk, microbatch)
            reference = _predict(policy, chunk, microbatch, reference=True) if needed else None
            base = {"base": _predict(policy, chunk, microbatch, base=True)} if held else {}
            for place, (name, objective) in enumerate(objectives.items()):
                compared, known = _compared(objective, prediction, reference), chunks[name].knowing(**base)
                terms_U = loss_of(objective, known, policy.schedule, prediction, compared).terms_U
                loss = share[name] * terms_U.sum() / len(first)
                add(name, number, _gradients(policy, loss, None, retain=place < len(objectives) - 1))
            cost += _cost(policy, chunk, forward=1 + needed + held, backward=len(objectives))
    return cost


def _by_point(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    asked: Mapping[str, Queries],
    share: Mapping[str, float],
    add: Add,
    bins: int,
    microbatch: int,
) -> Cost:
    """Units that span noise levels: what each loss says of every prediction first, then the points bin by bin."""
    first, needed, members = (
        asked[next(iter(objectives))],
        _reference_is_needed(objectives),
        asked[next(iter(objectives))].t_UM.shape[1],
    )
    whole = first.to(policy.device)
    with torch.no_grad():
        prediction = _predict(policy, whole, microbatch).requires_grad_()
        reference = _predict(policy, whole, microbatch, reference=True) if needed else None
    said = {}
    for name, objective in objectives.items():
        compared = _compared(objective, prediction, reference)
        queries = asked[name].to(policy.device)
        terms_U = loss_of(objective, queries, policy.schedule, prediction, compared).terms_U
        loss = share[name] * terms_U.sum() / len(first)
        (said[name],) = torch.autograd.grad(loss, prediction)
    cost = _cost(policy, first, forward=1 + needed, backward=0)
    x, t = whole.x_UM.flatten(0, 1), whole.t_UM.flatten()
    prompts = [prompt for prompt in first.prompts_U for _ in range(members)]
    draws = None if first.draws_UM is None else first.draws_UM.flatten()
    bin_P = _bin(t, policy, bins)
    for number in bin_P.unique().tolist():
        for points in (bin_P == number).nonzero().flatten().split(microbatch):
            chosen = [prompts[point] for point in points.tolist()]
            own = None if draws is None else draws[points.cpu()]
            output = policy.predict(x[points], t[points], chosen, guided=first.guided, draws_N=own)
            for place, name in enumerate(objectives):
                weight = said[name].flatten(0, 1)[points]
                add(name, number, _gradients(policy, output, weight, retain=place < len(objectives) - 1))
            evaluations = len(points) * (policy.evaluations_per_prediction if first.guided else 1)
            cost += Cost(forward=evaluations, backward=len(objectives) * evaluations)
    return cost


def _reference_is_needed(objectives: Mapping[str, Objective[Any]]) -> bool:
    return any(o.needs_reference and not o.reference_is_sampler for o in objectives.values())


def _compared(objective: Objective[Any], prediction: Tensor, reference: Tensor | None) -> Tensor | None:
    """What an objective compares the policy with: units are drawn by the policy itself, so that it is its own old policy."""
    if not objective.needs_reference:
        return None
    return prediction.detach() if objective.reference_is_sampler else reference


def _predict(policy: Policy, chunk: Queries, microbatch: int, **who: bool) -> Tensor:
    """Predictions (U, M, ...), a microbatch at a time."""
    prompts = [prompt for prompt in chunk.prompts_U for _ in range(chunk.t_UM.shape[1])]
    x, t = chunk.x_UM.flatten(0, 1), chunk.t_UM.flatten()
    pieces = [slice(start, start + microbatch) for start in range(0, len(x), microbatch)]
    draws = None if chunk.draws_UM is None else chunk.draws_UM.flatten()
    outputs = [
        policy.predict(x[p], t[p], prompts[p], guided=chunk.guided, draws_N=None if draws is None else draws[p], **who)
        for p in pieces
    ]
    return torch.cat(outputs).unflatten(0, chunk.t_UM.shape)


def _gradients(policy: Policy, value: Tensor, weight: Tensor | None, *, retain: bool) -> dict[str, Tensor]:
    """Zeros for what no gradient reaches: some networks have layers whose output nothing reads."""
    parameters = policy.trainable()
    found = torch.autograd.grad(
        value, list(parameters.values()), weight, retain_graph=retain, allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, found, strict=True))


def _cost(policy: Policy, chunk: Queries, *, forward: int, backward: int) -> Cost:
    points = chunk.t_UM.numel() * (policy.evaluations_per_prediction if chunk.guided else 1)
    return Cost(forward=forward * points, backward=backward * points)
