"""`raysuite encode` with real processes, killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysuite.stages.preference_set import PreferenceSet, finished_blocks
from tests.processes import until

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ROWS, SIZE = 60, 2


def command(source: Path, out: Path) -> list[str]:
    arguments = ["encode", str(source), "--out", str(out), "--model", "toy", "--rows-per-block", str(SIZE)]
    return [sys.executable, "-m", "raysuite.cli", *arguments]


def made_source(directory: Path) -> Path:
    """Toy pictures of every redness, one bad row."""
    lines = ["no JSON"]
    for number in range(ROWS - 1):
        for name, red in (("good", 100 + number), ("bad", 100 - number - 1)):
            pixels = np.full((8, 8, 3), (red, 128, 128), np.uint8)
            Image.fromarray(pixels).save(directory / f"{name}{number}.png")
        row = {"prompt": "left", "preferred": f"good{number}.png", "rejected": f"bad{number}.png"}
        lines.append(json.dumps(row))
    (directory / "pairs.jsonl").write_text("\n".join(lines))
    return directory / "pairs.jsonl"


def test_a_killed_encode_goes_on_and_redoes_nothing(tmp_path: Path) -> None:
    source, out = made_source(tmp_path), tmp_path / "set"
    began = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: len(finished_blocks(out)) >= 3 or began.poll() is not None, "three blocks", every=0.005)
    os.killpg(began.pid, signal.SIGKILL)
    began.wait()
    time.sleep(2)  # what Ray's own processes still had in hand
    before = {path: path.stat().st_mtime_ns for path in (out / "blocks").glob("[0-9]*")}
    finished = finished_blocks(out)
    assert finished and not (out / "summary.json").exists()

    again = subprocess.run(command(source, out), capture_output=True, text=True, check=True)
    assert f"{len(finished)} of {ROWS // SIZE} blocks were there" in again.stdout
    assert f"{ROWS - 1} pairs of {ROWS} rows" in again.stdout and "1 x not JSON" in again.stdout
    for number in finished:
        for path in (out / "blocks").glob(f"{number:06d}.*"):
            assert path.stat().st_mtime_ns == before[path]
    found = PreferenceSet(out)
    assert len(found) == ROWS - 1
    reds = found.rows(range(len(found))).clean_RM[..., 0]
    numbers = np.arange(ROWS - 1)
    assert np.array_equal(reds[:, 0].numpy() * 32 + 128, 100 + numbers)
    assert np.array_equal(reds[:, 1].numpy() * 32 + 128, 100 - numbers - 1)
