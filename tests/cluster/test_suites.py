"""Evaluations on suites as a user starts them: prompts in the published form, tiny pipelines and reward models, a real kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from raysuite import cli
from raysuite.config import RunConfig
from raysuite.results.suites.read import read_suite
from tests.processes import below, end, until
from tests.rewards import networks
from tests.rewards.test_geneval import save_detector
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]

ROWS = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "single_object", "include": [{"class": "tv", "count": 1}], "prompt": "a photo of a tv"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"},
    {
        "tag": "position",
        "include": [{"class": "tv", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a cat above a tv",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "tv", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red cat and a blue tv",
    },
]
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\nlife\tAbstract\tBasic\tBiology\n"
    '"GO" on a sign\tArts\tWriting & Symbols\t\nlife\tArts\tBasic\t\n'
)
DISTURBED = "tests.cluster.rewards:disturbed"


@pytest.fixture(scope="module")
def place(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs of a tiny pipeline, and what suites and rewards are made of. Ray is started once for all tests here."""
    root = tmp_path_factory.mktemp("suites")
    for seed, name in enumerate(("one", "two")):
        evaluation = {"prompts": 1, "final_samples": 1, "kl": False}
        learn = {"learning_rate": 0.01}
        train_alone(run_config("epsilon-lora-1", seed=seed, evaluation=evaluation, learn=learn), root / name)
    (root / "evaluation_metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "PartiPrompts.tsv").write_text(PARTI)
    save_detector(root / "detector", "boxes")
    networks.save_clip(root / "clip")
    yield root
    ray.shutdown()


def geneval(place: Path, out: Path, *more: str) -> list[str]:
    """The command; whose second reward does what the test asks for."""
    reward = f"{{name: geneval, model: {place / 'detector'}, options: {{clip: {place / 'clip'}, threshold: 0.2, graded: true}}}}"
    return [
        "evaluate", str(place / "one"), str(place / "two"), "--suite", "geneval", "--out", str(out),
        "--prompts", str(place / "evaluation_metadata.jsonl"), "--samples", "2", "--batch", "2",
        "--reward", reward, "--reward", DISTURBED,
        "--set", "sampler.steps=2", "--set", "cluster.threads=1", "--set", "cluster.actors=2", *more,
    ]  # fmt: skip


def command(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0


@pytest.mark.slow
def test_geneval_killed_and_resumed_is_as_if_nothing_had_happened(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it matter whether prompts are encoded beforehand."""
    beforehand = ("--set", "cluster.encode_once=true")
    whole, killed, chaos = (place / name for name in ("whole", "killed", "chaos"))
    chaos.mkdir()
    (chaos / "8-wait").touch()  # the base has six blocks: this is in the first run's
    words = [sys.executable, "-m", "raysuite.cli", *geneval(place, killed, *beforehand)]
    with subprocess.Popen(
        words, env={**os.environ, "CHAOS": str(chaos)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until((chaos / "done-8-wait").exists, "the eighth call of the reward")
        until(lambda: len(list(killed.glob("members/base-epsilon/scores/*.parquet"))) == 6, "the base")
        until(lambda: len(list(killed.glob("members/*/scores/*.parquet"))) > 6, "a block of the first run")
        end([*below(process), psutil.Process(process.pid)])
    left = len(list(killed.glob("members/*/scores/*.parquet")))
    assert 6 < left < 18

    assert list(killed.glob("members/*/texts/complete.json"))
    command(geneval(place, killed, *beforehand))
    assert not list(killed.glob("members/*/texts"))
    command(geneval(place, whole))
    said = capsys.readouterr().out
    assert f"{left - 6} of 6 blocks were there" in said
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file())
    assert len([file for file in files if file.suffix == ".parquet"]) == 3 * 6 + 1
    for file in files:
        if file.name != "provenance.json" and file.suffix != ".html":
            assert (whole / file).read_bytes() == (killed / file).read_bytes(), file

    found = read_suite(whole)
    assert found.members == ("base-epsilon", "one@1", "two@1") and not found.unfinished
    assert found.categories == ("single_object", "counting", "position", "color_attr")
    assert found.scores["one@1"]["geneval"].shape == (5, 2)
    assert len({found.scores[member][DISTURBED].tobytes() for member in found.members}) == 3
    assert "geneval by category" in said and "color_attr" in said
    summary = {
        (r["member"], r["reward"], r["category"]): r for r in pq.read_table(whole / "report.parquet").to_pylist()
    }
    tasks = [summary["one@1", "geneval", category]["mean"] for category in found.categories]
    assert summary["one@1", "geneval", ""]["mean"] == pytest.approx(sum(tasks) / 4)


def test_partiprompts_against_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The suite's own rewards, with models that the command names."""
    rewards = [f"{{name: {name}, model: {place / 'clip'}}}" for name in ("pickscore", "clip_score")]
    words = [
        "evaluate", str(place / "one"), str(place / "two"), "--suite", "partiprompts", "--out", str(place / "parti"),
        "--prompts", str(place / "PartiPrompts.tsv"), "--reward", rewards[0], "--reward", rewards[1], "--keep-images",
        "--against", "two", "--set", "sampler.noise.level=0", "--set", "cluster.threads=1",
    ]  # fmt: skip
    command(words)
    said = capsys.readouterr().out
    found = read_suite(place / "parti")
    assert found.rewards == ("pickscore", "clip_score") and found.protocol["sampler"]["noise"]["level"] == 0
    assert [(text, str(category)) for text, category in zip(found.prompts_P, found.categories_P, strict=True)] == [
        ("life", "Abstract"),
        ('"GO" on a sign', "Arts"),
        ("life", "Arts"),
    ]
    assert len(list((place / "parti").glob("members/*/images/*.png"))) == 9
    assert "On partiprompts one@1" in said and "two@1 by pickscore" in said
