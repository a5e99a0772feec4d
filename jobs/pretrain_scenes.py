"""Make a bundled scenes model: `python jobs/pretrain_scenes.py --out DIR [--model scenes-flow]` (about an hour on two cores)."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import torch

from raysuite.worlds.scenes.bundled import BUNDLED
from raysuite.worlds.scenes.pretrain import SETTINGS, Pretraining, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True, help="directory of the pipeline")
    parser.add_argument("--model", choices=BUNDLED, default="scenes", help="which of the bundled models")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    for field in fields(Pretraining):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    name, out = arguments.pop("model"), arguments.pop("out")
    pretrain(BUNDLED[name], replace(SETTINGS[name], **arguments), out)


if __name__ == "__main__":
    main()
