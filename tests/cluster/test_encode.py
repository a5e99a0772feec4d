"""`raysuite encode` with real processes, killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from raysuite.cluster import encode, session
from raysuite.cluster.encode import Encoder
from raysuite.cluster.pairs import make_pairs
from raysuite.config import Model, load
from raysuite.datasets.encode import Pairs
from raysuite.datasets.sources import Part, Source, open_source
from raysuite.errors import UserError
from raysuite.families import Policy
from raysuite.progress import Counting
from raysuite.stages.preference_set import PreferenceSet, claim, finished_blocks
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


def actor_of(source: Path, model: str, out: Path) -> Encoder:
    return Encoder(Model(path=model), "jsonl", [str(source)], "train", {}, "all", str(out), 1, "cpu")


def two_parts(source: Path) -> dict[str, np.ndarray]:
    """As an actor is given them."""
    parts = [Part(number=n, file=str(source), start=SIZE * n, stop=SIZE * (n + 1), first=SIZE * n) for n in range(2)]
    return {field.name: np.array([getattr(part, field.name) for part in parts]) for field in fields(Part)}


def test_a_file_that_breaks_off_is_a_sentence_whoever_reads_it(tmp_path: Path) -> None:
    """What an actor returns: Ray Data would wrap what it raises, and print where."""
    source, out = made_source(tmp_path), tmp_path / "set"
    claim(out, {}, ["test"])
    actor, batch = actor_of(source, "toy", out), two_parts(source)
    assert actor(batch)["fault"].tolist() == ["", ""]

    def fault(policy: Policy, source: Source, part: Part, directory: Path, *, pairs: Pairs) -> None:
        if part.number == 1:
            raise UserError("expected a whole file, got half of one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "encode_block", fault)
        said = actor(batch)
    assert said["number"].tolist() == [0, 1]
    assert said["fault"].tolist() == ["", "expected a whole file, got half of one"]


def test_an_actor_without_the_sets_directory_or_the_model_says_so_and_writes_nothing(tmp_path: Path) -> None:
    """As on another machine than the command's."""
    source, out = tmp_path / "pairs.jsonl", tmp_path / "set"
    source.write_text("{}\n" * 2 * SIZE)
    (unseen, again) = actor_of(source, "toy", out)(two_parts(source))["fault"]
    assert unseen == again and f"that all machines share, got {out}, which an actor on" in unseen
    assert not out.exists()
    claim(out, {}, ["test"])
    (fault, _) = actor_of(source, str(tmp_path / "elsewhere"), out)(two_parts(source))["fault"]
    assert fault.startswith("expected") and "elsewhere" in fault
    assert not finished_blocks(out)


def test_a_set_is_not_finished_before_all_its_blocks_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that write to another machine's disk, where an earlier attempt has left a set."""
    made_source(tmp_path)

    def written_elsewhere(*_: object) -> Iterator[int]:
        yield from range(ROWS // SIZE)

    monkeypatch.setattr(encode, "_encoded", written_elsewhere)
    monkeypatch.setattr(session, "connect", lambda: None)
    monkeypatch.setattr(encode, "check_room", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"expected 30 finished blocks in .*set, 30 that actors wrote are not there"):
        encoded(tmp_path / "set", "toy", Counting("encoding", "blocks", Console(quiet=True)))
    assert not (tmp_path / "set" / "summary.json").exists()


def encoded(out: Path, model: str, counting: Counting) -> None:
    encode.encode(
        open_source([str(out.parent / "pairs.jsonl")], layout=None, split="train"),
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
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"expected an empty or new directory, .* name another --out"):
        make(tmp_path / "set", str(tmp_path / "no-model"), Counting("making", "blocks", Console(quiet=True)))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["thesis.txt"]
