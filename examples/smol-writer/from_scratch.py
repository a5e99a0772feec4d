"""The bundled writer's network, taught the same prompts from nothing: `python from_scratch.py --prompts 200 --out scratch-200`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from translations import chosen

from raysuite.writer.bundled import taught

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--prompts", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--steps", type=int, default=300, help="of 64 prompts")
    ask.add_argument("--out", type=Path, default=Path("scratch-200"))
    given = ask.parse_args()
    torch.set_num_threads(1)
    taught(chosen(given.prompts, given.seed), wrong=0.0, steps=given.steps, seed=given.seed).save(given.out)
