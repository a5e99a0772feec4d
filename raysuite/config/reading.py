"""Runs from recipes and YAML files, with settings overridden by path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raysuite import places
from raysuite.config.objective import settings_of
from raysuite.config.run import RunConfig
from raysuite.config.sections import Model, paths, spelled_out, texts
from raysuite.config.words import one_of, sentence
from raysuite.errors import UserError, in_a_line

MOST_BYTES = 200_000
"""Of a YAML file of settings: a second's reading. (libyaml is faster, and ends the process where brackets lie deep.)"""

REPLACED = {"sampler.noise", "cluster.judges"}
"""Like an objective, replaced whole by what extends them: of another kind, and entries by name."""


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

    A recipe's budget was measured out for its model: a run that names another has none, unless it names one, too.

    Raises:
        UserError: anything unknown, mistyped, out of range or contradictory.
    """
    tree = read(recipe_or_file)
    model = _path_of_model(tree)
    for path, value in (overrides or {}).items():
        put(tree, path, parse(path, value))
    if _path_of_model(tree) != model and "budget" not in (overrides or {}):
        tree.pop("budget", None)
    return validate(tree)


def _path_of_model(tree: Mapping[str, Any]) -> Any:
    model = tree.get("model")
    return model.get("path") if isinstance(model, Mapping) else model


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """A run from plain values.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(sentence(error, set(paths()))) from error


def load_model(told: Mapping[str, Any], overrides: Mapping[str, str]) -> Model:
    """A run's model without the run, with overrides by dotted path as the run has them (`model.precision`).

    Raises:
        UserError: an override of something else than the model, or anything unknown, mistyped or out of range.
    """
    tree: dict[str, Any] = {"model": dict(told)}
    for path, value in overrides.items():
        if not path.startswith("model."):
            raise UserError(f"expected settings of the model alone, such as model.precision, got {path}: leave it out")
        put(tree, path, parse(path, value))
    try:
        return Model.model_validate(tree["model"])
    except ValidationError as error:
        raise UserError(sentence(error, set(paths()), "model.")) from error


def read(recipe_or_file: str, extended_by: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's or a YAML file's plain values, on top of those of the recipe that it extends.

    Args:
        recipe_or_file: a name or a path.
        extended_by: what led here, by `extends`.

    Raises:
        UserError: there is no such recipe or file, it holds something else, or it extends itself.
    """
    if recipe_or_file in recipes():
        text = (resources.files("raysuite.recipes") / f"{recipe_or_file}.yaml").read_bytes()
    elif (path := places.whole(recipe_or_file)).is_file():
        text = contents(path)
    elif recipe_or_file.endswith((".yaml", ".yml")):
        raise UserError(f"expected a YAML file, found nothing at {recipe_or_file}: check the path")
    else:
        raise UserError(
            f"expected a recipe ({one_of(recipe_or_file, recipes())}) or a YAML file, got {recipe_or_file!r}: "
            "`raysuite recipes` lists them"
        )
    tree = document(text, recipe_or_file)
    if isinstance(tree.get("sampler"), dict):  # before it meets another's: noise replaces noise, whichever form it has
        tree["sampler"] = spelled_out(tree["sampler"])
    chain = (*extended_by, recipe_or_file)
    base = base_of(tree, chain)
    return tree if base is None else _over(read(base, chain), tree)


def base_of(tree: dict[str, Any], chain: Sequence[str]) -> str | None:
    """Take what a document extends out of it: the name of a recipe or of a file.

    Args:
        tree: the document.
        chain: what led to it by `extends`, and its own name.

    Raises:
        UserError: it is no name, or leads back into the chain.
    """
    base = tree.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"expected the name of one recipe or file as `extends` in {chain[-1]}, got {base!r}: name one")
    if base is not None and os.path.realpath(base) in map(os.path.realpath, chain):
        raise UserError(
            f"expected `extends` to come to an end, got {' -> '.join((*chain, base))}: take one of them out"
        )
    return base


def contents(path: Path) -> bytes:
    """What a YAML file holds.

    Raises:
        UserError: it cannot be read, or is too large to be settings.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(
                f"expected settings of at most {MOST_BYTES // 1000:,} kB in {path}, got {size // 1000:,} kB: this is another file"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"expected a YAML file at {path}, could not read it ({error.strerror}): check it") from error


def document(text: bytes, where: str) -> dict[str, Any]:
    """A YAML document that has named sections.

    Raises:
        UserError: it is something else.
    """
    try:
        tree = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"expected YAML with settings in {where}, but {_problem(error)}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"expected YAML in {where}, got something else: {in_a_line(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"expected sections such as `model:` in {where}, got {type(tree).__name__}: see a recipe")
    if nameless := [key for key in tree if not isinstance(key, str)]:
        raise UserError(f"expected names of sections such as `model:` in {where}, got {nameless[0]!r}: see a recipe")
    return tree


def _problem(error: yaml.constructor.ConstructorError) -> str:
    where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
    return f"{error.problem}{where}"


class _Loader(yaml.SafeLoader):
    """Plain words mean what people mean by them. YAML 1.1, which PyYAML reads, takes 010 for eight, 1:30 for ninety, `no` for false,
    2024-01-01 for a date, and 3e-5 for text. No key is given twice: the last would count in silence.
    """

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as its base declares it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base does it.

        Raises:
            ConstructorError: a key is given twice.
        """
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in seen:
                first, again = (at.start_mark.line + 1 for at in (seen[name], key))
                problem = f"{key.value} is given twice, in lines {first} and {again}: leave one out"
                raise yaml.constructor.ConstructorError(None, None, problem)
            seen[name] = key
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


for kind, words, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{words})$"), first)
_Loader.add_constructor(  # leading zeros are decimal
    "tag:yaml.org,2002:int", lambda loader, node: int(str(node.value))
)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A base with changes: a budget is inherited with the model that it was measured out for."""
    merged = _merged(base, changes, merging())
    if _path_of_model(merged) != _path_of_model(base) and "budget" not in changes:
        merged.pop("budget", None)
    return merged


def merging() -> set[str]:
    """Paths of the sections that merge with those of what they extend."""
    return {path.rpartition(".")[0] for path in paths()} - REPLACED


def _merged(base: dict[str, Any], changes: dict[str, Any], sections: set[str], prefix: str = "") -> dict[str, Any]:
    """A base with changes: sections merge, and those in them, and one that is null has its defaults."""
    merged = {**base, **changes}
    for name, section in changes.items():
        path = prefix + name
        if section is None and (path in sections or not prefix):
            del merged[name]
        elif path in sections and isinstance(section, dict) and isinstance(base.get(name), dict):
            merged[name] = _merged(base[name], section, sections, f"{path}.")
    return merged


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set one value of a tree by its dotted path; null for a whole section gives it its defaults.

    Raises:
        UserError: there is no such setting.
    """
    settings = set(paths()) | {
        f"objective.{name}" for name in ("name", *settings_of((tree.get("objective") or {}).get("name")))
    }
    sections = {setting[:at] for setting in settings for at, letter in enumerate(setting) if letter == "."}
    known = settings | sections | {"sampler.eta"}
    if path not in known:
        raise UserError(f"expected a setting's path ({one_of(path, known)}), got {path!r}")
    if path == "sampler.eta":
        path, value = "sampler.noise", {"kind": "ddim", "level": value}
    *parents, leaf = path.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # a section that is not there, or one that may be null
            tree[parent] = {}
        tree = tree[parent]
    if path in sections and value is None:
        tree.pop(leaf, None)
    else:
        tree[leaf] = value


def parse(path: str, text: str) -> Any:
    """The value that a text at the command line stands for: YAML, and where a setting is text, a number's own digits.

    Raises:
        UserError: it is none.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"expected a YAML value for {path}, got {text!r}, where {_problem(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"expected a YAML value for {path}, got {text!r}") from error
    return text.strip() if path in texts() and isinstance(value, bool | int | float) else value
