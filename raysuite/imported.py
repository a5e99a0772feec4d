"""What users bring: a function or a class of their own, named by its import path."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
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
        raise UserError(
            f"expected {what} at {path}, could not import it: {in_words(error)}; mend it, put it into {Path.cwd()}, or "
            "install it"
        ) from error
    if not hasattr(found, name):
        raise UserError(f"expected {what} at {path}, {module} has none of that name: check it")
    return getattr(found, name)


@contextmanager
def in_a_sentence(what: str) -> Iterator[None]:
    """Turn what a user's code raises within into a sentence that begins so, with the line of theirs."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever that is
        raise UserError(f"{what} {in_words(error)}{where(error)}") from error


def where(error: BaseException) -> str:
    """The last line of the user's own that an exception came through, in words; nothing where there is none."""
    others = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
