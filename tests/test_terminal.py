"""What is printed never fails for a terminal's encoding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raysuite.terminal import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("−0.1 [−0.2, 0.0] → 3 × 4 …", "-0.1 [-0.2, 0.0] -> 3 x 4 ..."),
        ("cliché", "cliche"),
        ("1.2\N{NARROW NO-BREAK SPACE}M", "1.2 M"),
        ("雨", "?"),
        ("plain", "plain"),
    ],
)
def test_signs_have_stand_ins(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_a_terminal_without_our_signs(environment: dict[str, str]) -> None:
    print_it = (
        "import sys; from raysuite.terminal import speak_plainly; speak_plainly(); "
        "print('a \\u2192 b'); print('\\u2013', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", print_it], env={**os.environ, **environment}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"a -> b\n", b"-\n")
