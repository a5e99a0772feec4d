"""One learner worker of several, without Ray: `RANK=0 WORLD_SIZE=2 ... python tests/stages/worker.py CONFIG.json DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from raysuite.config import validate
from raysuite.families import open_policy
from raysuite.stages.collect import LocalCollector
from raysuite.stages.train import Training
from tests.cluster import rewards  # noqa: F401 - the configuration names a reward in it


def main(config_file: str, directory: str) -> None:
    torch.set_num_threads(1)
    config = validate(json.loads(Path(config_file).read_text()))
    policy, accelerator = open_policy(config, torch.device("cpu")), Accelerator(cpu=True)
    Training(config, Path(directory), policy, LocalCollector(policy, config), accelerator).train()
    np.save(Path(directory) / f"weights{accelerator.process_index}.npy", policy.weights())


if __name__ == "__main__":
    main(*sys.argv[1:])
