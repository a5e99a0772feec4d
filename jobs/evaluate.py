"""Evaluate as a Ray job: `ray job submit --working-dir . -- python jobs/evaluate.py /shared/run [--checkpoint N] [--samples N]`.

On several machines, the run must be on storage that all of them see.
"""

from __future__ import annotations

import sys

from raysuite.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
