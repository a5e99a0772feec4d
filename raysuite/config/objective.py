"""A run's objective: from its name and settings to the value that learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raysuite.config.words import nearest, one_of, refuse_truth, sentence
from raysuite.errors import UserError
from raysuite.kernel.objectives import OBJECTIVES, Objective


def build(fields: Mapping[str, Any]) -> Objective[Any]:
    """The objective as a value.

    Raises:
        UserError: there is no such objective, or a setting is unknown, mistyped or out of range.
    """
    options = dict(fields)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        meant = nearest(name, sorted(OBJECTIVES))
        hint = f": did you mean {meant}?" if meant else ": name one of those"
        raise UserError(f"expected objective.name to be {' or '.join(sorted(OBJECTIVES))}, got {name!r}{hint}")
    known = set(settings_of(name))
    for option in options:
        if option not in known:
            raise UserError(f"expected a setting of {name} ({one_of(option, known)}), got objective.{option}")
    try:
        objective: Objective[Any] = TypeAdapter(OBJECTIVES[name]).validate_python(options)
    except ValidationError as error:
        raise UserError(sentence(error, prefix="objective.")) from error
    for option, given in options.items():
        try:
            refuse_truth(given, getattr(objective, option))
        except ValueError as error:
            raise UserError(f"expected objective.{option} to be {error}, got {given}: correct it") from error
    return objective


def settings_of(name: object) -> Iterator[str]:
    """Names of the settings of a registered objective; none of an unknown one."""
    cls = OBJECTIVES.get(str(name))
    return (field.name for field in dataclasses.fields(cls)) if cls else iter(())  # type: ignore[arg-type]
