"""What a wrong setting is told: the nearest name, and one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from raysuite.errors import UserError

WORDS = {
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "dict_type": "settings by name, such as {name: value}",
    "model_type": "settings by name, such as {name: value}",
    "model_attributes_type": "settings by name, such as {name: value}",
    "mapping_type": "settings by name, such as {name: value}",
}
"""What was expected, where pydantic says it in words of Python."""


def one_of(given: object, known: Iterable[str]) -> str:
    """`known` in words: the nearest if there is one, else those of the same section, or all of them."""
    names = sorted(known)
    if meant := nearest(given, names):
        return f"did you mean {meant}?"
    section = str(given).rpartition(".")[0]
    names = [name for name in names if section and name.rpartition(".")[0] == section] or names
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, ..."


def nearest(given: object, names: Sequence[str]) -> str | None:
    """What was probably meant: the only name that begins so, a like one, or the right leaf under another section."""
    begun = [name for name in names if name.startswith(f"{given}_")]
    if len(begun) == 1:
        return begun[0]
    section, _, leaf = str(given).rpartition(".")
    own = [name for name in names if section and name.rpartition(".")[0] == section]
    # of a section that is right the leaves alone are compared: what they share before would make all alike
    spelled = {name.rpartition(".")[2] if own else name: name for name in own or names}
    alike = difflib.get_close_matches(leaf if own else str(given), spelled, n=1, cutoff=0.6)
    elsewhere = (name for name in names if name.rpartition(".")[2] == leaf)
    return spelled[alike[0]] if alike else next(elsewhere, None)


def with_colon(given: str) -> str | None:
    """An import path that was written with dots alone, as it should be: `package.module:name`."""
    module, _, name = given.rpartition(".")
    return f"{module}:{name}" if module and given.replace(".", "").isidentifier() else None


def refuse_truth(given: Any, read: Any) -> None:
    """Refuse a true or false that was read as a number.

    Raises:
        ValueError: one was, here or in a list.
    """
    if isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        raise ValueError("a number")
    if isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for one, other in zip(given, read, strict=False):
            refuse_truth(one, other)


def sentence(error: ValidationError, known: Iterable[str] = (), prefix: str = "") -> str:
    """The first thing that is wrong, for the person who can mend it; `known` are the names that are right."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    path = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"expected a value for {path}, found none: add it"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"expected a setting's path ({one_of(path, known)}), got {path!r}"
    message = WORDS.get(first["type"]) or first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {path} to be {message}, got {first['input']!r}: correct it"
