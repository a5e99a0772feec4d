"""What users bring: a function or a class of their own, named by its import path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from raysuite.errors import UserError, in_words


def imported(path: str, what: str) -> Any:
    """What lies at `package.module:name`. A module beside the place where the command is called is found, as by `python -m`.

    Args:
        path: with its colon.
        what: what it should be, in words, such as "a function".

    Raises:
        UserError: there is nothing.
    """
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a user's module raises as it is imported
        raise UserError(f"expected {what} at {path}, could not import it: {in_words(error)}") from error
    if not hasattr(found, name):
        raise UserError(f"expected {what} at {path}, {module} has none of that name: check it")
    return getattr(found, name)
