"""A run's objective: from its name and settings to the value that learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raysuite.config.words import nearest, one_of, refuse_truth, sentence, with_colon
from raysuite.errors import UserError
from raysuite.imported import imported
from raysuite.kernel.objectives import OBJECTIVES, Objective

KNOWN_AS = {
    "grpo": "ddpo, with credit.normalise=group_mean for Flow-GRPO's",
    "flow_grpo": "ddpo, with credit.normalise=group_mean",
    "ppo": "ddpo",
    "reinforce": "ddpo, with objective.clip=null",
    "dpo": "diffusion_dpo, or trajectory_dpo for steps of the sampler",
    "discounted_dpo": "trajectory_dpo, with objective.discount",
    "nft": "forward_rl",
    "diffusion_nft": "forward_rl",
}
"""What else objectives are called, and what they are here."""


def build(fields: Mapping[str, Any]) -> Objective[Any]:
    """The objective as a value.

    Raises:
        UserError: there is no such objective, or a setting is unknown, mistyped or out of range.
    """
    options = dict(fields)
    name = options.pop("name", None)
    if (cls := class_of(name)) is None:
        meant = _meant(name)
        hint = (
            f": did you mean {meant}?"
            if meant
            else ": name one of those, or a class of your own as package.module:Class"
        )
        raise UserError(f"expected objective.name to be {' or '.join(sorted(OBJECTIVES))}, got {name!r}{hint}")
    known = set(settings_of(name))
    for option in options:
        if option not in known:
            raise UserError(f"expected a setting of {name} ({one_of(option, known)}), got objective.{option}")
    try:
        objective: Objective[Any] = TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise UserError(sentence(error, prefix="objective.")) from error
    for option, given in options.items():
        try:
            refuse_truth(given, getattr(objective, option))
        except ValueError as error:
            raise UserError(f"expected objective.{option} to be {error}, got {given}: correct it") from error
    return objective


def settings_of(name: object) -> Iterator[str]:
    """Names of the settings of an objective; none of an unknown one."""
    cls = class_of(name)
    return (field.name for field in dataclasses.fields(cls)) if cls else iter(())  # type: ignore[arg-type]


def class_of(name: object) -> type[Objective[Any]] | None:
    """The class of an objective: one of the suite by its name, a user's by its import path, `package.module:Class`; None of any
    other name.

    Raises:
        UserError: what lies at the import path is no objective.
    """
    if not isinstance(name, str) or not name.partition(":")[2]:
        return OBJECTIVES.get(str(name))
    found = imported(name, "an objective")
    if not (dataclasses.is_dataclass(found) and isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(
            f"expected an objective at {name}, a dataclass that extends raysuite.kernel.objectives.Objective, got "
            f"{getattr(found, '__name__', type(found).__name__)}: docs/add-an-objective.md shows one"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    missing += [fact for fact in ("consumes", "process") if not hasattr(found, fact)]
    if missing:
        raise UserError(f"expected an objective at {name} with {', '.join(missing)}, found none: write it")
    return found


def _meant(name: object) -> str | None:
    """What an unknown name probably stands for."""
    spelled = str(name).lower().replace("-", "_")
    if spelled in KNOWN_AS:
        return KNOWN_AS[spelled]
    return nearest(spelled, sorted(OBJECTIVES)) or with_colon(str(name))


def is_foreign(named: object, ours: object) -> bool:
    """Whether a directory's configuration names an objective that would be imported, and that the command's own does not name: nothing
    is imported because it is found somewhere.
    """
    return str(named) not in OBJECTIVES and named != ours


def label_of(name: object) -> str:
    """How an objective is called where several are named: by its name, or by a user's class without its module."""
    return str(name).rpartition(":")[2]
