"""Train as a Ray job: `ray job submit --working-dir . -- python jobs/train.py scenes-ddpo [--out DIR] [--set ...]`.

Without --out the run goes to ~/raysuite-runs/<recipe>, since a job's own folder does not outlive it; on several
machines, --out must be on storage that all of them see.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raysuite.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and not any(word == "--out" or word.startswith("--out=") for word in arguments):
        arguments += ["--out", str(Path.home() / "raysuite-runs" / Path(arguments[0]).stem)]
    main(["train", *arguments])
