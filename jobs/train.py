"""Train as a Ray job: `ray job submit --working-dir . -- python jobs/train.py scenes-ddpo [--out DIR] [--set ...]`.

Without --out the run goes to ~/raysuite-runs/<recipe>, since a job's own folder does not outlive it; on several
machines, --out must be on storage that all of them see.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raysuite.cli import main


def with_place(arguments: list[str]) -> list[str]:
    """The command's arguments, with --out where there is none."""
    if any(word == "--out" or word.startswith("--out=") for word in arguments):
        return arguments
    before = ["", *arguments]
    named = [word for last, word in zip(before, arguments, strict=False) if last != "--set" and word[:1] != "-"]
    if not named:
        return arguments
    return [*arguments, "--out", str(Path.home() / "raysuite-runs" / Path(named[0]).stem)]


if __name__ == "__main__":
    main(["train", *with_place(sys.argv[1:])])
