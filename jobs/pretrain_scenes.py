"""Make the bundled scenes model: `python jobs/pretrain_scenes.py --out DIR` (about an hour on two cores)."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from raysuite.worlds.scenes.pretrain import Pretraining, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the pipeline")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    for field in fields(Pretraining):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    pretrain(directory=arguments.pop("out"), options=Pretraining(**arguments))


if __name__ == "__main__":
    main()
