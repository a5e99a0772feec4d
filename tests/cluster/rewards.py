"""Rewards as a user would write them, with known faults."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch


def fails_on_right(images, prompts, metadata):
    if "right" in prompts:
        raise RuntimeError("out of paint")
    return np.zeros(len(images))


def leaves_on_right(images, prompts, metadata):
    if "right" in prompts:
        sys.exit("out of paint")
    return np.zeros(len(images))


def blind_on_left(images, prompts, metadata):
    """Redness, but every picture of "left" is as good as any."""
    red = images[..., 0].astype(float).mean((1, 2))
    return np.where(np.array(prompts) == "left", 0.0, red)


def disturbed(images, prompts, metadata):
    """Redness; and, at the calls that files in $CHAOS name ("7-hang": the seventh), what they ask for, once."""
    if chaos := os.environ.get("CHAOS"):
        strike(Path(chaos))
    return images[..., 0].astype(float).mean((1, 2))


def strike(chaos):
    call = 1
    while True:
        try:
            (chaos / f"call-{call}").touch(exist_ok=False)
            break
        except FileExistsError:
            call += 1
    for fault in chaos.glob(f"{call}-*"):
        fault.rename(chaos / f"done-{fault.name}")
        kind = fault.name.split("-")[1]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "raise":
            raise RuntimeError("out of paint")
        elif kind == "hang":
            threading.Event().wait()
        elif kind == "wait":  # until the test has done something to another process
            while not (chaos / "go").exists():
                time.sleep(0.02)


def hangs_on_left(images, prompts, metadata):
    if "left" in prompts:
        threading.Event().wait()
    return np.zeros(len(images))


def together(images, prompts, metadata):
    """Answers when two processes have been asked."""
    chaos = Path(os.environ["CHAOS"])
    (chaos / f"asked-{os.getpid()}").touch()
    while len(list(chaos.glob("asked-*"))) < 2:
        time.sleep(0.02)
    return np.zeros(len(images))


def ends(images, prompts, metadata):
    os._exit(1)


def spoils(images, prompts, metadata):
    """Leaves nothing of torch's settings as it was, time and again."""
    for seed in range(200):
        torch.set_default_dtype((torch.float64, torch.float16)[seed % 2])
        torch.manual_seed(seed)
        torch.set_num_threads(1 + seed % 2)
        time.sleep(0.001)
    return np.zeros(len(images))


class NoPaint:
    def __init__(self):
        raise RuntimeError("out of paint")

    def __call__(self, images, prompts, metadata):
        return np.zeros(len(images))
