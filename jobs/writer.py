"""Train writers as Ray jobs: `ray job submit --working-dir . -- python jobs/writer.py train /shared/pairs --out /shared/writer`.

`pairs`, `grpo` and `evaluate` go the same way. On several machines, --out must be on storage that all of them see.
"""

from __future__ import annotations

import sys

from raysuite.cli import main

if __name__ == "__main__":
    main(["writer", *sys.argv[1:]])
