"""TensorBoard: event files in the run's trackers/tensorboard, so that `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import yaml
from PIL import Image
from tensorboardX import SummaryWriter

from raysuite.trackers.tracker import Picture, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Event files, written by tensorboardX, which Ray Tune brings."""

    def __init__(self, run: TrackedRun) -> None:
        place = run.place / "tensorboard"
        self.destination = "events"
        parts = len(
            list(place.glob("events*"))
        )  # files are named after the second: a number keeps parts of a run apart
        self._writer = SummaryWriter(str(place), filename_suffix=f".{parts}")
        if not parts:
            self._writer.add_text("config", f"```\n{yaml.safe_dump(run.config.canonical(), sort_keys=False)}\n```")

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        """Take metrics, by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()

    def pictures(self, update: int, pictures: Sequence[Picture]) -> None:
        """Take an evaluation's pictures; each prompt is a text of the same name."""
        for picture in pictures:
            pixels = np.asarray(Image.open(picture.file).convert("RGB"))
            self._writer.add_image(picture.name, pixels, update, dataformats="HWC")
            self._writer.add_text(picture.name, picture.prompt, update)
        self._writer.flush()

    def close(self, *, completed: bool) -> None:
        """Close the file."""
        self._writer.close()
