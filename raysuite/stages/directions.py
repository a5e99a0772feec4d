"""One unit's gradients under several objectives, by parameter block and timestep bin: what agreement is estimated from.

They are the gradients that `stages.learn.gradient` would add up; a test says so. Objectives that ask about the same points
share the network's forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raysuite.families.policy import Policy
from raysuite.kernel.objectives import Objective
from raysuite.kernel.sketch import Sketch
from raysuite.stages.learn import Batch
from raysuite.types import Cost, Queries


def unit_gradients(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    batches: Mapping[str, Batch],
    *,
    generator: Callable[[], torch.Generator],
    sketch: Sketch,
    bins: int,
    microbatch: int,
    scale: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Cost]:
    """The gradient of every objective's mean over one unit's queries, (L, T, width) each, and what that cost.

    Args:
        objectives: by name.
        policy: at which they are taken. Its parameters' `grad` is left alone.
        batches: the unit as each objective sees it.
        generator: makes the generator that queries draw from, the same for every objective: those that noise the same
            pictures noise them alike.
        sketch: of the policy's trainable parameters.
        bins: T, equal ranges of the training timesteps.
        microbatch: points through the network at once, at most.
        scale: multiplies the gradient of each parameter, as an optimiser would; None for none.
    """
    asked = {name: o.queries(batches[name], policy.schedule, generator()) for name, o in objectives.items()}
    out = {name: torch.zeros(len(sketch.blocks), bins, sketch.width) for name in objectives}
    cost = Cost()
    for names in sharing(asked):
        at_one_level = bool((asked[names[0]].t_UM == asked[names[0]].t_UM[:, :1]).all())
        take = _by_unit if at_one_level else _by_point
        cost += take({name: objectives[name] for name in names}, policy, asked, out, sketch, bins, microbatch, scale)
    return out, cost


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
        and torch.equal(one.t_UM, other.t_UM)
        and torch.equal(one.x_UM, other.x_UM)
    )


def _bin(t: Tensor, policy: Policy, bins: int) -> Tensor:
    return t * bins // len(policy.schedule.alpha_bar_T)


def _by_unit(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    asked: Mapping[str, Queries],
    out: Mapping[str, Tensor],
    sketch: Sketch,
    bins: int,
    microbatch: int,
    scale: Mapping[str, Tensor] | None,
) -> Cost:
    """Units whose members are all at one noise level: a chunk belongs to one bin, and one forward pass serves all."""
    first, needed, cost = asked[next(iter(objectives))], any(o.needs_reference for o in objectives.values()), Cost()
    bin_U = _bin(first.t_UM[:, 0], policy, bins)
    for number in bin_U.unique().tolist():
        for units in (bin_U == number).nonzero().flatten().split(max(1, microbatch // first.t_UM.shape[1])):
            chunks = {name: asked[name].select(units).to(policy.device) for name in objectives}
            chunk = next(iter(chunks.values()))
            prediction = _predict(policy, chunk)
            reference = _predict(policy, chunk, reference=True) if needed else None
            for place, (name, objective) in enumerate(objectives.items()):
                own = reference if objective.needs_reference else None
                loss = objective.loss(chunks[name], policy.schedule, prediction, own).terms_U.sum() / len(first)
                kept = place < len(objectives) - 1
                out[name][:, number] += sketch(_gradients(policy, loss, None, scale, retain=kept))
            cost += _cost(policy, chunk, forward=1 + needed, backward=len(objectives))
    return cost


def _by_point(
    objectives: Mapping[str, Objective[Any]],
    policy: Policy,
    asked: Mapping[str, Queries],
    out: Mapping[str, Tensor],
    sketch: Sketch,
    bins: int,
    microbatch: int,
    scale: Mapping[str, Tensor] | None,
) -> Cost:
    """Units that span noise levels: what each loss says of every prediction first, then the points bin by bin."""
    first, needed, cost = asked[next(iter(objectives))], any(o.needs_reference for o in objectives.values()), Cost()
    members = first.t_UM.shape[1]
    pieces = [
        first.select(units).to(policy.device) for units in torch.arange(len(first)).split(max(1, microbatch // members))
    ]
    with torch.no_grad():
        prediction = torch.cat([_in_pieces(policy, piece, microbatch) for piece in pieces]).requires_grad_()
        reference = (
            torch.cat([_in_pieces(policy, piece, microbatch, reference=True) for piece in pieces]) if needed else None
        )
    said = {}
    for name, objective in objectives.items():
        whole = asked[name].to(policy.device)
        own = reference if objective.needs_reference else None
        loss = objective.loss(whole, policy.schedule, prediction, own).terms_U.sum() / len(first)
        (said[name],) = torch.autograd.grad(loss, prediction)
    cost += _cost(policy, first, forward=1 + needed, backward=0)
    x, t = first.x_UM.flatten(0, 1), first.t_UM.flatten()
    prompts = [prompt for prompt in first.prompts_U for _ in range(members)]
    bin_P = _bin(t, policy, bins)
    for number in bin_P.unique().tolist():
        for points in (bin_P == number).nonzero().flatten().split(microbatch):
            output = policy.predict(
                x[points].to(policy.device),
                t[points].to(policy.device),
                [prompts[point] for point in points.tolist()],
                guided=first.guided,
            )
            for place, name in enumerate(objectives):
                kept = place < len(objectives) - 1
                weight = said[name].flatten(0, 1)[points.to(policy.device)]
                out[name][:, number] += sketch(_gradients(policy, output, weight, scale, retain=kept))
            evaluations = len(points) * (policy.evaluations_per_prediction if first.guided else 1)
            cost += Cost(forward=evaluations, backward=len(objectives) * evaluations)
    return cost


def _predict(policy: Policy, chunk: Queries, *, reference: bool = False) -> Tensor:
    prompts = [prompt for prompt in chunk.prompts_U for _ in range(chunk.t_UM.shape[1])]
    x, t = chunk.x_UM.flatten(0, 1), chunk.t_UM.flatten()
    return policy.predict(x, t, prompts, reference=reference, guided=chunk.guided).unflatten(0, chunk.t_UM.shape)


def _in_pieces(policy: Policy, chunk: Queries, microbatch: int, *, reference: bool = False) -> Tensor:
    prompts = [prompt for prompt in chunk.prompts_U for _ in range(chunk.t_UM.shape[1])]
    x, t = chunk.x_UM.flatten(0, 1), chunk.t_UM.flatten()
    starts: Sequence[int] = range(0, len(x), microbatch)
    outputs = [
        policy.predict(
            x[s : s + microbatch],
            t[s : s + microbatch],
            prompts[s : s + microbatch],
            reference=reference,
            guided=chunk.guided,
        )
        for s in starts
    ]
    return torch.cat(outputs).unflatten(0, chunk.t_UM.shape)


def _gradients(
    policy: Policy, value: Tensor, weight: Tensor | None, scale: Mapping[str, Tensor] | None, *, retain: bool
) -> dict[str, Tensor]:
    parameters = policy.trainable()
    gradients = torch.autograd.grad(value, list(parameters.values()), weight, retain_graph=retain)
    found = dict(zip(parameters, gradients, strict=True))
    return found if scale is None else {name: g * scale[name] for name, g in found.items()}


def _cost(policy: Policy, chunk: Queries, *, forward: int, backward: int) -> Cost:
    points = chunk.t_UM.numel() * (policy.evaluations_per_prediction if chunk.guided else 1)
    return Cost(forward=forward * points, backward=backward * points)
