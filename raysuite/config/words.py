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
    """`known` in words: the nearest if there is one, all of them otherwise."""
    names = sorted(known)
    meant = nearest(given, names)
    if meant:
        return f"did you mean {meant}?"
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, ..."


def nearest(given: object, names: Sequence[str]) -> str | None:
    """What was probably meant: a like name, or the right leaf under another section."""
    leaf = str(given).rsplit(".", 1)[-1]
    likely = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    return next((name for name in (*likely, *names) if name in likely or name.rsplit(".", 1)[-1] == leaf), None)


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
