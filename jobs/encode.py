"""Encode preference data as a Ray job: `ray job submit --working-dir . -- python jobs/encode.py SOURCE --out /shared/set ...`.

On several machines, source and --out must be on storage that all of them see.
"""

from __future__ import annotations

import sys

from raysuite.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
