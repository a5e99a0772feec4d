"""Terminals that cannot show every character: an approximation, in place of a traceback."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

PLAIN = {
    **dict.fromkeys(
        "\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}\N{BOX DRAWINGS LIGHT HORIZONTAL}\N{BOX DRAWINGS HEAVY HORIZONTAL}", "-"
    ),
    **dict.fromkeys("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}", "'"),
    **dict.fromkeys("\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MIDDLE DOT}": ".",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
}
ERRORS = "raysuite.plain"
"""The name under which streams ask for it."""


def plain(text: str) -> str:
    """The text in ASCII: our signs by what stands for them, letters without their accents, `?` for the rest."""
    signs = "".join(PLAIN.get(character, character) for character in text)
    letters = (letter for letter in unicodedata.normalize("NFKD", signs) if not unicodedata.combining(letter))
    return "".join(letters).encode("ascii", "replace").decode()


def speak_plainly() -> None:
    """Let what is printed from here on never fail for a character that the terminal's encoding does not have."""

    def approximate(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return plain(error.object[error.start : error.end]), error.end

    codecs.register_error(ERRORS, approximate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
