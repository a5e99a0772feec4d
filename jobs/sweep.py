"""Sweep as a Ray job: `ray job submit --working-dir . -- python jobs/sweep.py scenes-race --out DIR [--set ...]`.

On several machines, --out must be on storage that all of them see.
"""

from __future__ import annotations

import sys

from raysuite.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
