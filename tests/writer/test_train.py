"""TRL trains a small writer: which losses, and what a training leaves behind."""

from __future__ import annotations

import copy
import io
import json
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import ScalingConfig, WorkerGroupError
from rich.console import Console

from raysuite.cli import main
from raysuite.cluster import writer as writing
from raysuite.cluster.placement import Piece
from raysuite.errors import UserError
from raysuite.progress import watch_steps
from raysuite.stages.rewrites import BUNDLED
from raysuite.writer import train as training
from raysuite.writer.losses import LOG_2, PairLoss
from raysuite.writer.model import Writer, open_writer
from raysuite.writer.train import Lesson, Pair, read_pairs, train

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports warn of their own affairs

FULL = Path("/dev/full")
MEANT = {
    "two crimson discs": "two red circles",
    "three azure boxes": "three blue squares",
    "one ebony wedge": "one black triangle",
}


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """What was meant before what was not, twelve times."""
    asked = open_writer(BUNDLED).asked
    wrong = ["two green squares", "a red circle", "four red circles", "one red circle"]
    return [Pair(asked(user), meant, other) for user, meant in MEANT.items() for other in wrong]


def weights(writer: Writer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in writer.model.state_dict().items()}


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["sigmoid", "cal_dpo", "ipo", "apo_zero", "sft"])
def test_every_loss_prefers_what_is_preferred(kind: str, pairs: list[Pair], tmp_path: Path) -> None:
    beta = {"cal_dpo": 1.0, "ipo": 0.5}.get(kind, 0.1)
    lesson = Lesson(PairLoss(kind, beta), learning_rate=1e-3, epochs=2, batch=4)  # type: ignore[arg-type]
    train(open_writer(BUNDLED), pairs, lesson, tmp_path)
    before, *_, after = rows(tmp_path)
    assert (before["h_preferred"], before["h_rejected"], before["step"]) == (0, 0, 0)
    assert after["accuracy"] > 0.75 and after["h_preferred"] > after["h_rejected"] and after["step"] == 6
    again = open_writer(str(tmp_path))
    prompts, chosen = [pair.prompt for pair in pairs], [pair.chosen for pair in pairs]
    assert again.log_densities(prompts, chosen).mean() == pytest.approx(after["logp_preferred"], abs=1e-4)
    assert not (tmp_path / "checkpoints").exists()


def test_whoever_waits_sees_the_steps(pairs: list[Pair], tmp_path: Path) -> None:
    said = io.StringIO()
    with watch_steps(tmp_path, "training", Console(file=said, width=80)):
        train(open_writer(BUNDLED), pairs, Lesson(PairLoss("sft"), epochs=2, batch=4), tmp_path)
    assert said.getvalue().splitlines() == [f"training: {step} of 6 steps" for step in range(1, 7)]
    assert not (tmp_path / "progress.json").exists()


def trl_trainer(writer: Writer, pairs: list[Pair], directory: Path, **options: Any) -> Any:
    """TRL alone, as `train` calls it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = {"learning_rate": 1e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4, "warmup_steps": 0.1}
    settings |= {"lr_scheduler_type": "linear", "bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 0, "logging_steps": 1}
    return DPOTrainer(
        model=writer.model,
        ref_model=copy.deepcopy(writer.model),
        processing_class=writer.tokenizer,
        train_dataset=Dataset.from_list([asdict(pair) for pair in pairs]),
        args=DPOConfig(output_dir=str(directory), max_length=None, **settings, **options),
    )


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_cal_dpo_at_beta_1_is_trls_sigmoid_with_sppo_hard(weight: float, pairs: list[Pair], tmp_path: Path) -> None:
    ours, theirs = open_writer(BUNDLED), open_writer(BUNDLED)
    train(ours, pairs, Lesson(PairLoss("cal_dpo", 1.0, weight=weight), 1e-3, 2, 4), tmp_path)
    trainer = trl_trainer(
        theirs, pairs, tmp_path / "trl", loss_type=["sigmoid", "sppo_hard"], loss_weights=[1.0, weight], beta=1.0
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(LOG_2 + weight / 2, abs=1e-4)
    mine, other, before = weights(ours), weights(theirs), weights(open_writer(BUNDLED))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert not any(torch.equal(mine[name], before[name]) for name in mine)


def test_sft_is_trls_without_what_it_does_not_need(pairs: list[Pair], tmp_path: Path) -> None:
    ours, theirs = open_writer(BUNDLED), open_writer(BUNDLED)
    train(ours, pairs, Lesson(PairLoss("sft"), 1e-3, 2, 4), tmp_path)
    trl_trainer(theirs, pairs, tmp_path / "trl", loss_type=["sft"]).train()
    mine, other, before = weights(ours), weights(theirs), weights(open_writer(BUNDLED))
    for name, value in mine.items():
        assert torch.allclose(value, other[name], atol=1e-6), name
    assert not any(torch.equal(mine[name], before[name]) for name in mine)


def test_a_training_that_was_killed_goes_on(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = Lesson(PairLoss("cal_dpo", 1.0), 1e-3, 3, 4)
    whole, killed = open_writer(BUNDLED), tmp_path / "killed"
    train(whole, pairs, lesson, tmp_path / "whole")
    measured = training.losses.summary
    calls = []

    def dies(*arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:  # at the end of the second epoch, of which nothing is left
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(training.losses, "summary", dies)
    with pytest.raises(KeyboardInterrupt):
        train(open_writer(BUNDLED), pairs, lesson, killed)
    assert not (killed / "writer").exists()
    monkeypatch.setattr(training.losses, "summary", measured)
    again = open_writer(BUNDLED)
    train(again, pairs, lesson, killed)
    assert rows(killed) == rows(tmp_path / "whole")
    mine, other = weights(again), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.skipif(not FULL.exists(), reason="of Linux")
@pytest.mark.parametrize("file", ["optimizer.pt", "tokenizer.json"])
def test_of_a_checkpoint_without_room_a_sentence_is_left(
    file: str, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch and tokenizers each have an error of their own for it."""
    measured, full = training.losses.summary, tmp_path / "checkpoints" / "checkpoint-3" / file

    def fills(*arguments: Any) -> dict[str, float]:
        if not full.is_symlink():
            full.parent.mkdir(parents=True)
            full.symlink_to(FULL)
        return measured(*arguments)

    monkeypatch.setattr(training.losses, "summary", fills)
    with pytest.raises(
        UserError, match=r"expected to write a checkpoint into .*: what was saved before stands; make room there"
    ):
        train(open_writer(BUNDLED), pairs, Lesson(PairLoss("sft"), epochs=1, batch=4), tmp_path)
    assert not full.parent.exists()


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1.0, "log_his'])
def test_a_checkpoint_that_is_not_whole_is_removed(state: str | None, tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / training.STATE).write_text("{}")
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    if state is None:
        (tmp_path / "checkpoint-10" / training.STATE).unlink()
    else:
        (tmp_path / "checkpoint-10" / training.STATE).write_text(state)
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_a_finished_training_says_its_numbers_without_the_writer_that_it_began_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, file, out = tmp_path / "first", tmp_path / "pairs.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    first.mkdir()
    (first / "config.json").write_text("{}")
    lesson = Lesson(PairLoss())
    assert training.claim(out, str(first), file, lesson, ["test"])
    (out / "writer").mkdir()
    (out / "writer" / "config.json").touch()
    (out / "metrics.jsonl").write_text(json.dumps({"epoch": 4.0, **dict.fromkeys(training.MEASURED, 0.25)}) + "\n")
    (first / "config.json").write_text("[]")
    with pytest.raises(UserError, match="differs in weights"):
        training.claim(out, str(first), file, lesson, ["test"])
    shutil.rmtree(first)
    with pytest.raises(SystemExit) as left:
        main(["writer", "train", str(file), "--out", str(out), "--writer", str(first)])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "4  " in said and f"writer: {out}" in said


def test_what_a_killed_command_left_is_removed_when_it_is_given_again(tmp_path: Path) -> None:
    """A writer that was being written, and checkpoints of one that was there already."""
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert training.claim(out, BUNDLED, file, Lesson(PairLoss()), ["test"])
    left = out / f".writer.{uuid.uuid4().hex}"
    left.mkdir()
    (out / "checkpoints").mkdir()
    assert training.claim(out, BUNDLED, file, Lesson(PairLoss()), ["test"])
    assert not left.exists() and (out / "checkpoints").exists()
    (out / "writer").mkdir()
    assert not training.claim(out, BUNDLED, file, Lesson(PairLoss()), ["test"])
    assert not (out / "checkpoints").exists()


def test_a_training_opens_its_writer_once(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    opened, told, trained = list[Writer](), list[str](), list[Writer]()

    def opening(name: str) -> Writer:
        opened.append(open_writer(name))
        return opened[-1]

    monkeypatch.setattr(writing, "open_writer", opening)
    monkeypatch.setattr(writing, "train", lambda writer, *rest: trained.append(writer))
    writing.train_writer(BUNDLED, pairs, Lesson(PairLoss("cal_dpo", 0.01)), tmp_path, told.append)
    assert opened == trained and len(opened) == 1 and "beta 0.01 pulls h of preferred rewrites" in told[0]


@pytest.mark.parametrize("gpus", [0.0, 2.0])
def test_a_training_in_a_cluster_uses_its_gpus_and_tells_what_ended_it(
    gpus: float, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that starts it may have none."""
    scaled, wanted = [], list[Piece]()

    class Trainer:
        def __init__(self, *work: object, scaling_config: ScalingConfig, **options: object) -> None:
            scaled.append(scaling_config)

        def fit(self) -> None:
            raise WorkerGroupError("Traceback ...", {0: UserError("expected a writer")})

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(writing.session, "connect", lambda: None)
    monkeypatch.setattr(writing, "check_room", lambda pieces, **_: wanted.extend(pieces))
    monkeypatch.setattr(writing, "TorchTrainer", Trainer)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": gpus})
    monkeypatch.setattr("torch.cuda.is_available", lambda: not gpus)
    with pytest.raises(UserError, match="expected a writer"):
        writing.train_writer(BUNDLED, pairs, Lesson(PairLoss("sigmoid", 0.1)), tmp_path, print)
    assert [scaling.use_gpu for scaling in scaled] == [gpus > 0]
    assert [(piece.cpus, piece.gpus) for piece in wanted] == [(1, int(gpus > 0))]


def test_pairs_of_any_user_of_trl(tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text(
        '{"prompt": "a", "chosen": " b", "rejected": " c", "source": 1}\n\n{"prompt":"d","chosen":"e","rejected":"f"}\n'
    )
    assert read_pairs(file) == [Pair("a", " b", " c"), Pair("d", "e", "f")]
    file.write_text('{"prompt": "a\u2028b\x85", "chosen": "c", "rejected": "d"}\r\n', encoding="utf-8-sig")
    assert read_pairs(file) == [Pair("a\u2028b\x85", "c", "d")]


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ("", "expected pairs in .*found none"),
        ('{"prompt": "a", "chosen": "b"}', "line 1 of .*got "),
        ("[1]", "line 1 of"),
        ('{"prompt": [{"role": "user", "content": "a"}], "chosen": [], "rejected": []}', "chat template first"),
    ],
)
def test_files_that_are_no_pairs(content: str, mentions: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=mentions):
        read_pairs(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a set of preferences"):
        read_pairs(tmp_path / "none.jsonl")


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'raysuite\[writer\]'"):
        training.check_trl()


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [({"learning_rate": 0.0}, "--learning-rate above 0"), ({"epochs": 0}, "--epochs"), ({"batch": -1}, "--batch")],
)
def test_lessons_that_teach_nothing(settings: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        Lesson(PairLoss(), **settings)
