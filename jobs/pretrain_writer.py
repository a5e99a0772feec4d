"""Make the bundled writer: `python jobs/pretrain_writer.py --out DIR` (about a minute on one core)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from raysuite.writer.bundled import STEPS, WRONG, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the writer")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 64 pairs")
    parser.add_argument("--wrong", type=float, default=WRONG, help="share of what is taught wrongly")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make(arguments.out, wrong=arguments.wrong, steps=arguments.steps)
    print((arguments.out / "README.md").read_text())


if __name__ == "__main__":
    main()
