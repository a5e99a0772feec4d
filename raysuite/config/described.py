"""Every setting in words: what the site's page and `raysuite settings` show, made from the sections and the objectives."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from raysuite.config.sections import Run, Section
from raysuite.kernel.objectives import OBJECTIVES

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
}


@dataclass(frozen=True)
class Setting:
    """One setting. What is to be typed stands between backticks."""

    path: str
    values: str
    """What it takes, such as `whole number, at least 1`."""
    default: str | None
    """As YAML has it; None where there is none."""
    meaning: str


@dataclass(frozen=True)
class Group:
    """A section of a run, or an objective."""

    name: str
    """The section's path or the objective's name; empty for settings that belong to no section."""
    said: str
    settings: Sequence[Setting]


def sections(section: type[Section] = Run, prefix: str = "") -> Iterator[Group]:
    """The settings of a run, section by section; those of its objective are in `objectives`."""
    schema = section.model_json_schema()
    inner, found = [], []
    for name, field in section.model_fields.items():
        if name == "objective":
            continue
        annotation: Any = field.annotation
        if listed := _listed(annotation):
            inner.append((prefix + name, listed))
        if isinstance(annotation, type) and issubclass(annotation, Section):
            inner.append((prefix + name, annotation))
        else:
            found.append(_setting(name, schema, prefix))
    said = inspect.cleandoc(section.__doc__ or "") if prefix else "Settings that belong to no section."
    yield Group(prefix[:-1], said, found)
    for path, of in inner:
        yield from sections(of, f"{path}.")


def objectives() -> Iterator[Group]:
    """The settings of each objective."""
    for name, cls in OBJECTIVES.items():
        schema, said = TypeAdapter(cls).json_schema(), dict(_attributes(cls))
        for field, values in schema["properties"].items():
            values.setdefault("description", said.get(field, ""))
        module = inspect.getmodule(cls)
        first = inspect.cleandoc((module and module.__doc__) or "").splitlines()[0]
        yield Group(name, first, [_setting(field, schema, "objective.") for field in schema["properties"]])


def fields(section: type[Section]) -> list[Setting]:
    """Those of a section alone, with their bare names."""
    schema = section.model_json_schema()
    return [_setting(name, schema, "") for name in section.model_fields]


def _listed(annotation: Any) -> type[Section] | None:
    """The section that a list or a mapping has for each of its entries."""
    inside = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, Section)]
    return inside[0] if inside else None


def _attributes(cls: type) -> Iterator[tuple[str, str]]:
    """What stands below each field of a class and of those that it is made from."""
    for base in reversed(cls.__mro__[:-1]):
        if not base.__module__.startswith("raysuite."):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                yield ast.unparse(field.target), inspect.cleandoc(str(after.value.value))


def _setting(name: str, schema: Mapping[str, Any], prefix: str) -> Setting:
    values = schema["properties"][name]
    default = None if name in schema.get("required", ()) else _yaml(values.get("default"))
    return Setting(prefix + name, _values(values, schema), default, " ".join(values.get("description", "").split()))


def _values(values: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """In words what values a setting takes."""
    if "$ref" in values:
        return _values(schema["$defs"][values["$ref"].split("/")[-1]], schema)
    if "anyOf" in values:
        return " or ".join(_values(one, schema) for one in values["anyOf"])
    if "enum" in values or "const" in values:
        return " or ".join(f"`{value}`" for value in values.get("enum", [values.get("const")]))
    if values.get("type") == "array":
        if "prefixItems" in values:
            return f"{len(values['prefixItems'])} of: {_values(values['prefixItems'][0], schema)}"
        return f"list of: {_values(values['items'], schema)}"
    if values.get("type") == "object":
        return "settings of their own, below" if "properties" in values else "mapping"
    bounds = [f"{words} {values[bound]:g}" for bound, words in BOUNDS.items() if bound in values]
    return ", ".join([KINDS[values.get("type", "string")], *bounds])


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
