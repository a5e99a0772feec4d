"""The command line's bad inputs: one sentence, exit status 2, and nothing written."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from raysuite.cli import main
from raysuite.progress import watch_sweep
from raysuite.rewards import REWARDS
from raysuite.sweeps.declared import load as load_sweep
from raysuite.sweeps.trials import Book
from tests.processes import until


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leave:
        main(words)
    assert leave.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["scene-ddpo"], "did you mean scenes-ddpo?"),
        (["toy-ddpo", "--set", "learn.rate=1"], "learn.rate"),
        (["toy-ddpo", "--set", "updates"], "expected --set path=value"),
        (["toy-ddpo", "--set", "updates=none"], "expected updates to be a valid integer"),
        (["toy-ddpo", "--set", "sampler.eta=0"], "expected sampler.noise.level above 0"),
        (
            ["toy-ddpo", "--set", "sampler.noise.kind=flow_sde"],
            "expected noise of ddim or cps with this model, got flow_sde",
        ),
        (
            ["toy-ddpo", "--set", "model.path=toy-flow", "--set", "sampler.noise.floor=0.99"],
            "expected noise in some step",
        ),
        (["toy-ddpo", "--set", "model.path=/nowhere"], "there is no such directory"),
        (["toy-ddpo", "--set", "prompts.training=/nowhere.txt"], "/nowhere.txt"),
        (["toy-ddpo", "--set", "rewards=[{name: beauty}]"], "expected a reward"),
        (["toy-ddpo", "--set", "rewards=[{name: ocr}]"], "in double quotes or as 'target' in its metadata"),
        (["toy-ddpo", "--set", "evaluation.rewards=[ocr]"], "in double quotes or as 'target' in its metadata"),
        (
            ["toy-ddpo", "--set", "rewards=[{name: http, options: {url: 'http://127.0.0.1:1'}}]"],
            "expected a server at http://127.0.0.1:1, could not connect",
        ),
        (["toy-ddpo", "--set", "rollouts.prompts=16"], "at most the 2 training prompts"),
        (["toy-ddpo", "--set", "rollouts.replay=/nowhere"], "make one with --keep-rollouts"),
        (["toy-ddpo", "--keep-rollouts", "--set", "rollouts.replay=/nowhere"], "a run that draws none"),
        (["scenes-dspo", "--set", "preferences.source=/nowhere"], "expected a preference set at /nowhere, found none"),
        (["scenes-dspo", "--set", "credit.discount=0.9"], "expected no credit settings with dspo"),
        (["scenes-dspo", "--set", "objective.bta=1"], "did you mean objective.beta?"),
        (["scenes-dspo", "--set", "objective={name: dpo}"], "did you mean"),
    ],
)
def test_nothing_is_written_by_a_run_that_cannot_start(
    words: list[str], mentions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    message = fails(["train", *words, "--out", str(out)], capsys)
    assert message.startswith("raysuite: ")
    assert mentions in message
    assert message.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["pairs", "toy-ddp"], "did you mean toy-ddpo?"),
        (
            ["writer", "pairs", "--set", "prompts={writer: scenes-writer}"],
            "expected no prompts.writer with a writer's command, which names whose words are drawn",
        ),
        (["pairs", "--prompts", "20"], "expected --prompts as a multiple of rollouts.prompts=16, got 20"),
        (["pairs", "scenes-dspo-offline"], "expected a preference set at"),
        (
            ["pairs", "toy-ddpo", "--prompts", "2", "--trajectories", "--set", "sampler.window.size=2"],
            "expected no sampler.window with --trajectories",
        ),
        (["encode", "/nowhere.jsonl"], "there is nothing: check the path"),
        (["encode", "someone/pickapic"], "could not find them"),
        (["encode", "/nowhere.jsonl", "--set", "sampler.steps=3"], "expected settings of the model alone"),
        (
            ["encode", "/nowhere.jsonl", "--set", "model.precision=half"],
            "expected model.precision of float32 or bfloat16",
        ),
        (
            ["encode", "someone/pickapic", "--layout", "webdataset"],
            "expected a layout of folders, pictures, jsonl, imagereward, hpdv2",
        ),
    ],
)
def test_nothing_is_written_of_a_set_that_cannot_be_made(
    words: list[str], mentions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    message = fails([*words, "--out", str(out)], capsys)
    assert mentions in message and message.count("\n") == 1
    assert not out.exists()


ALONG = ["--along", "sampler.eta=[0.5, 1]", "--along", "sampler.eta=[0.2, 1]"]


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (
            ["directions", "toy-ddpo", "--objectives", "ddpo", *ALONG, "--out", "x"],
            "every path of --along once, got sampler.eta",
        ),
        (
            ["prompts", "measure", "x", "--prompt", "a cat", "--samples", "8"],
            "expected --references with --features, --samples",
        ),
        (
            ["rewards", "convert", "aesthetic", "x.pth", "--tokenizer", "y", "--out", "z"],
            "no --tokenizer for aesthetic",
        ),
        (
            ["writer", "train", "x", "--targets", "normalised", "--out", "y"],
            "--targets and --weight with --loss cal_dpo alone",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: list[str], mentions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mentions in fails(words, capsys)
    assert not list(tmp_path.iterdir())


def pickled(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")


def shortened(model: Path) -> None:
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_weights(model: Path) -> None:
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "settings"),
    [
        (pickled, []),
        (shortened, []),
        (without_weights, []),
        (None, ["sampler.steps=5000"]),
        (None, ["parameters.kind=lora", "parameters.targets=[nothing]"]),
    ],
    ids=["pickled", "shortened", "without weights", "more steps than timesteps", "targets that are not there"],
)
def test_what_is_wrong_with_a_model_is_found_before_anything_is_claimed(
    spoil: Callable[[Path], None] | None,
    settings: list[str],
    pipelines: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(pipelines["epsilon"], model)
    if spoil:
        spoil(model)
    words = [word for setting in [f"model.path={model}", *settings] for word in ("--set", setting)]
    message = fails(["train", "scenes-ddpo", *words, "--out", str(out)], capsys)
    assert message.splitlines()[-1].startswith(
        "raysuite: expected"
    )  # diffusers, imported here before, may log before it
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "toy-ddpo", "--out", "runs/x"],
        ["train", "toy-ddpo"],
        ["sweep", "scenes-race", "--out", "x"],
        ["pairs", "--out", "x"],
        ["evaluate", "runs/x"],
        ["directions", "toy-ddpo", "--objectives", "ddpo,sft", "--out", "x"],
    ],
)
def test_a_relative_place_in_a_submitted_job_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    code.mkdir(parents=True)
    monkeypatch.chdir(code)
    assert "expected an absolute path in a submitted job, got" in fails(words, capsys)
    assert not any(code.iterdir())


def test_a_pipeline_that_no_family_handles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    message = fails(["train", "toy-ddpo", "--set", f"model.path={model}", "--out", str(out)], capsys)
    assert "got FluxPipeline: it has no unet or transformer" in message
    assert not out.exists()


def test_a_lora_that_is_not_there_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--set", "parameters.kind=lora", "--set", f"parameters.start={tmp_path}/theirs.safetensors"]
    message = fails(["train", "scenes-ddpo", *start, "--out", str(tmp_path / "run")], capsys)
    assert "theirs.safetensors, there is nothing: name its file, or a hub's owner/name" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(args: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/blocks")

    monkeypatch.setattr("raysuite.cli.app", write)
    assert f"{os.strerror(number)}: '/somewhere/blocks'): make room there" in fails(["pairs"], capsys)


@pytest.mark.parametrize("words", [["train"], ["trian"], ["train", "toy-ddpo", "--fast"], ["report"]])
def test_wrong_usage_is_explained_without_a_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(words, capsys)
    assert "Usage" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_directory_without_a_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found no config.json" in fails([command, str(tmp_path)], capsys)
    assert not any(tmp_path.iterdir())


SUITE = ["evaluate", "{0}", "--suite"]


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["evaluate", "{0}", "{0}"], "expected one RUN"),
        (["evaluate"], "expected one RUN"),
        (["evaluate", "--suite", "geneval"], "expected a RUN or a --model, got neither"),
        (["evaluate", "{0}", "--prompts", "p.tsv"], "name one with --suite"),
        (["evaluate", "{0}", "--set", "sampler.steps=3"], "name one with --suite"),
        (["evaluate", "{0}", "--seed", "0"], "name one with --suite"),
        (["evaluate", "{0}", "--batch", "64"], "name one with --suite"),
        ([*SUITE, "geneva", "--prompts", "p.jsonl"], "expected a suite (did you mean geneval?)"),
        ([*SUITE, "geneval"], "name evaluation_metadata.jsonl"),
        ([*SUITE, "geneval", "--prompts", "nowhere.jsonl"], "expected a prompt file at nowhere.jsonl"),
        ([*SUITE, "hpdv2", "--prompts", "{0}"], "expected files such as anime.json in"),
        ([*SUITE, "pickapic", "--prompts", "{0}/p.csv"], "found no config.json"),
        ([*SUITE, "pickapic", "--prompts", "{0}/p.csv", "--out", "{0}/p.csv"], "expected a directory to work in"),
        (
            ["evaluate", "{0}", "{0}", "--suite", "pickapic", "--prompts", "{0}/p.csv"],
            "expected --out with several runs",
        ),
    ],
)
def test_wrong_uses_of_suites(
    words: list[str], mentions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("caption\na cat\n")
    message = fails([word.format(tmp_path) for word in words], capsys)
    assert mentions in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["suites"])
    assert leave.value.code == 0
    assert "evaluation_metadata.jsonl" in capsys.readouterr().out


def test_a_plan_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "scenes-ddpo", "--gpu", "H100 80GB", "--set", "cluster.worker_gpus=1"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "1 learner" in out and "moments" in out and out.splitlines()[-1].startswith("it fits: on the fullest GPU")
    assert "both" in fails(["plan", "scenes-ddpo", "--gpu", "H100", "--memory", "80"], capsys)


def test_a_plan_that_does_not_fit_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysuite.stages.plan.GB", 1)
    with pytest.raises(SystemExit) as left:
        main(["plan", "scenes-ddpo", "--memory", "1", "--set", "cluster.worker_gpus=1"])
    assert left.value.code == 1
    assert "it does not fit" in capsys.readouterr().out


def test_settings_are_listed_by_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for word in (None, "Guidance", "learn.learning_rate", "objective.clip"):
        with pytest.raises(SystemExit, match="0"):
            main(["settings", *([word] if word else [])])
        shown[word] = capsys.readouterr().out
    assert {"sampler.guidance", "objective.clip", "cluster.workers"} <= set(shown[None].split())
    assert "sampler.guidance  number, at least 1, 1.0 by default\n    Classifier-free guidance" in shown["Guidance"]
    assert "learn." not in shown["Guidance"] and shown["learn.learning_rate"].count("\n") == 2
    assert "objective.clip  number or null (of ddpo)" in shown["objective.clip"]
    assert "expected a word that a setting's path or meaning has in it, got 'nowhere'" in fails(
        ["settings", "nowhere"], capsys
    )


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["recipes"])
    assert leave.value.code == 0
    assert "scenes-ddpo" in capsys.readouterr().out


def declare_sweep(directory: Path, **fields: object) -> Path:
    file = directory / "sweep.yaml"
    space = {"learn.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    declared = {"recipe": "toy-ddpo", "objectives": ["toy-ddpo"], "budget": 1500, "space": space, "trials": 2}
    file.write_text(yaml.safe_dump(declared | fields))
    return file


@pytest.mark.parametrize(
    ("fields", "statuses", "status", "out", "err"),
    [
        ({"confirm": {"seeds": [9]}}, ("done",) * 3, 0, "the settings of trial 00 were chosen at 0.5", ""),
        (
            {"objectives": ["toy-ddpo", {"name": "sft", "draws": 2}]},
            ("done", "failed", "done", "failed"),
            2,
            "Note: 2 of 4 runs of out failed",
            "2 of 4 runs failed (sft-00-seed0: out of paint)",
        ),
        ({}, ("failed", "failed"), 2, "", "2 of 2 runs failed (toy-ddpo-00-seed0: out of paint)"),
    ],
    ids=["confirmed alone", "one objective left", "nothing left"],
)
def test_a_sweep_with_nothing_to_compare_ends_well_and_tells_what_failed(
    fields: dict[str, object],
    statuses: tuple[str, ...],
    status: int,
    out: str,
    err: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ran(book: Book, command: object) -> None:
        for run, ended in zip(book.sweep.runs, statuses, strict=True):
            won = 0 if run.trial is None else None
            told = {"held_out": 0.5} if ended == "done" else {"message": "out of paint"}
            book.note(run, status=ended, confirms=won, **told)

    monkeypatch.setattr("raysuite.cluster.sweep.sweep", ran)
    with pytest.raises(SystemExit) as leave:
        main(["sweep", str(declare_sweep(tmp_path, **fields)), "--out", str(tmp_path / "out")])
    assert (leave.value.code or 0) == status
    said = capsys.readouterr()
    assert out in said.out and err in said.err and "at least 2 runs" not in said.err


def test_a_sweep_that_goes_on_tells_of_this_part_alone(tmp_path: Path) -> None:
    sweep = load_sweep(str(declare_sweep(tmp_path)))
    first, second = sweep.runs
    book = Book.open(sweep, tmp_path / "out", ["test"])
    book.note(first, status="done", held_out=0.5)
    book.note(second, status="failed", message="out of paint")
    book = Book.open(sweep, tmp_path / "out", ["test"])
    shown = StringIO()
    with watch_sweep(tmp_path / "out", Console(file=shown, force_terminal=False)):
        book.note(second, status="running")
        until(lambda: "began" in shown.getvalue(), "the beginning to be told")
        book.note(second, status="waiting")  # a stop was asked for
    assert shown.getvalue().splitlines() == [
        "toy-ddpo-01-seed0: began (1 of 2 ended, 1 running)",
        "toy-ddpo-01-seed0: stopped, goes on with the sweep (1 of 2 ended, 0 running)",
    ]


LOADS = ("torch", "ray", "transformers", "diffusers")


@pytest.mark.parametrize("place", ["file/below", "dangling", "/dev/null", "/proc/run"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "toy-ddpo"],
        ["sweep", "toy"],
        ["pairs"],
        ["encode", "/nowhere.jsonl"],
        ["directions", "toy-ddpo", "--objectives", "ddpo"],
        ["report", "{run}"],
        ["compare", "{run}", "{run}"],
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_is_told_at_once(
    words: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    command = [word.format(run=tmp_path / "run") for word in words]
    message = fails([*command, "--out", str(tmp_path / place)], capsys)
    assert message.startswith("raysuite: expected a ") and message.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "nowhere").exists() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("words", [["compare", "{0}", "{0}"], ["report", "{0}"], ["evaluate", "{0}"], ["track", "{0}"]])
def test_a_directory_that_is_not_there(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails([word.format(tmp_path / "nowhere") for word in words], capsys)
    assert f"got {tmp_path / 'nowhere'}, where there is nothing: check the path" in message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--version"], 0), (["--help"], 0), (["train", "--fast"], 2), (["train", "toy-ddpo", "--out", "/dev/null"], 2)],
)
def test_what_needs_no_library_loads_none(words: list[str], status: int) -> None:
    look = (
        "import sys\nfrom raysuite.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        f"finally:\n    assert not set({LOADS}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", look, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    if words == ["--version"]:
        assert done.stdout == f"raysuite {importlib.metadata.version('raysuite')}\n"


def test_a_command_says_what_it_works_on_before_it_loads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "scene-ddpo", "--out", str(tmp_path / "run")])
    assert capsys.readouterr().out == f"train: {tmp_path / 'run'}\n"


def test_rewards_are_listed_as_they_were_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["rewards"])
    assert not leave.value.code
    said = capsys.readouterr().out
    for name, known in REWARDS.items():
        assert f"{name:22} {known.measures}; {known.range}\n" in said
        assert known.needs == "nothing" or f" needs {known.needs}; licence: {known.licence}\n" in said


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (["beauty"], "expected a reward"),
        (["redness", "--option", "a"], "expected --option path=value, got 'a'"),
        (["redness", "--option", "a=1"], "expected no model and no options for the reward redness"),
        (["pickscore", "--model", "/nowhere"], "expected a directory at /nowhere"),
        (["redness", "--port", "0", "--host", "192.0.2.1"], "expected to listen at 192.0.2.1:0, could not"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(
    words: list[str], mentions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mentions in fails(["rewards", "serve", *words], capsys)


def test_a_gpu_without_room_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What torch raises there is none of the errors that a run knows: it was a traceback, and left nothing in the directory."""
    import torch

    from raysuite.families.toy import ToyPolicy

    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(ToyPolicy, "predict", full)
    run = tmp_path / "run"
    said = fails(["train", "toy-ddpo", "--set", "cluster.actors=0", "--out", str(run)], capsys)
    assert "found none (CUDA out of memory. Tried to allocate 2.00 GiB. See the documentation): raysuite plan" in said
    assert "expected room on a GPU" in json.loads((run / "failure.json").read_text())["message"]
