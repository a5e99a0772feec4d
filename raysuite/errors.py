"""Errors for the person who can mend them."""

import errno
import signal


class UserError(ValueError):
    """A sentence for the person who can mend it: what was expected, what came, what to do."""

    status = 2
    """The exit status of a command that ends with it."""


class RewardHung(UserError):
    """A reward took longer than its limit. The thread that it runs in cannot be ended, only its process."""

    def __init__(self, message: str, retries: int = 0) -> None:
        super().__init__(message)
        self.retries = retries
        """How often it may be asked again."""


class Stopped(UserError):
    """A run stopped because it was told to, by a signal."""

    def __init__(self, message: str, signum: signal.Signals, *, left: bool = False) -> None:
        super().__init__(message)
        self.left = left
        """Whether a thread was left that still waits for Ray: ending the interpreter in order would end it with that."""
        self.status = 128 + signum
        """The exit status that shells know: 130 after Ctrl-C, 143 after SIGTERM."""


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_words(error: BaseException) -> str:
    """An exception in words: its message may be empty, or say too little without its kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def in_a_line(error: Exception, most: int | None = None) -> str:
    """What another library's error says, without its line breaks; of many words the first."""
    return " ".join(str(error).split())[:most]
