"""`raysuite encode` with real processes, killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from raysuite.cluster import encode
from raysuite.cluster.encode import Encoder
from raysuite.cluster.pairs import make_pairs
from raysuite.config import Model, load
from raysuite.datasets.encode import Pairs
from raysuite.datasets.sources import Part, Source, open_source
from raysuite.errors import UserError
from raysuite.families import Policy
from raysuite.progress import Counting
from raysuite.stages.preference_set import PreferenceSet, finished_blocks
from tests.processes import below, end, until

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ROWS, SIZE = 60, 2
LARGE = 20
"""The row whose pictures take seconds, so that a slow machine, too, finds the command at work."""


def command(source: Path, out: Path) -> list[str]:
    arguments = ["encode", str(source), "--out", str(out), "--model", "toy", "--rows-per-block", str(SIZE)]
    return [sys.executable, "-m", "raysuite.cli", *arguments]


def made_source(directory: Path) -> Path:
    """Toy pictures of every redness, one bad row."""
    lines = ["no JSON"]
    for number in range(ROWS - 1):
        for name, red in (("good", 100 + number), ("bad", 100 - number - 1)):
            size = 6_000 if number == LARGE else 8
            Image.new("RGB", (size, size), (red, 128, 128)).save(directory / f"{name}{number}.png", compress_level=1)
        row = {"prompt": "left", "preferred": f"good{number}.png", "rejected": f"bad{number}.png"}
        lines.append(json.dumps(row))
    (directory / "pairs.jsonl").write_text("\n".join(lines))
    return directory / "pairs.jsonl"


@pytest.mark.slow
def test_a_killed_encode_goes_on_and_redoes_nothing(tmp_path: Path) -> None:
    source, out = made_source(tmp_path), tmp_path / "set"
    began = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: len(finished_blocks(out)) >= 3 or began.poll() is not None, "three blocks", every=0.005)
    workers = below(began)
    began.kill()
    began.wait()
    end(workers)
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


def test_a_file_that_breaks_off_is_a_sentence_whoever_reads_it(tmp_path: Path) -> None:
    """What an actor returns: Ray Data would wrap what it raises, and print where."""
    source = made_source(tmp_path)
    actor = Encoder(Model(path="toy"), "jsonl", [str(source)], "train", {}, "all", str(tmp_path / "set"), 1, "cpu")
    parts = [Part(number=n, file=str(source), start=SIZE * n, stop=SIZE * (n + 1), first=SIZE * n) for n in range(2)]
    batch = {field.name: np.array([getattr(part, field.name) for part in parts]) for field in fields(Part)}
    (tmp_path / "set" / "blocks").mkdir(parents=True)
    assert actor(batch)["fault"].tolist() == ["", ""]

    def fault(policy: Policy, source: Source, part: Part, directory: Path, *, pairs: Pairs) -> None:
        if part.number == 1:
            raise UserError("expected a whole file, got half of one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "encode_block", fault)
        said = actor(batch)
    assert said["number"].tolist() == [0, 1]
    assert said["fault"].tolist() == ["", "expected a whole file, got half of one"]


def encoded(out: Path, model: str, counting: Counting) -> None:
    source = out.parent / "pairs.jsonl"
    source.write_text("{}\n")
    encode.encode(
        open_source([str(source)], layout=None, split="train"),
        out,
        model=Model(path=model),
        pairs="all",
        rows_per_block=SIZE,
        actors=1,
        actor_gpus=0.0,
        command=["test"],
        counting=counting,
    )


def drawn(out: Path, model: str, counting: Counting) -> None:
    config = load("scenes-diffusion-dpo", {"model.path": model})
    make_pairs(config, out, prompts=16, trajectories=False, command=["test"], counting=counting)


@pytest.mark.parametrize("make", [encoded, drawn])
def test_an_occupied_directory_is_refused_before_a_model_is_opened(
    tmp_path: Path, make: Callable[[Path, str, Counting], None]
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"expected an empty or new directory, .* name another --out"):
        make(tmp_path / "set", str(tmp_path / "no-model"), Counting("making", "blocks", Console(quiet=True)))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["thesis.txt"]
