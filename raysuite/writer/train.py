"""A writer trained on preferences by TRL's `DPOTrainer`.

What of TRL this stands on: `DPOConfig` (`loss_type`, `loss_weights`, `beta`) and `DPOTrainer`, of which `compute_loss` is overridden
for `cal_dpo` and `sft`, as its documentation has it; `fused_lm_head=True`, with which the model answers log-densities of labels; and
the two halves of a batch, preferred completions first. constraints.txt has the version that this was tested with.

A directory of a training:

    training.json     what decides all of it
    provenance.json   as of a run
    checkpoints/      TRL's own, the last epoch's alone, from which the same command goes on. Its optimiser and random state are files
                      of torch, which are read for their tensors alone
    metrics.jsonl     a line for each epoch, the first before the training: `losses.summary` over all pairs, and the mean loss
    writer/           the trained writer, a directory of transformers; written last
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from raysuite.errors import UserError, in_words
from raysuite.places import replacing
from raysuite.stages import files
from raysuite.stages.files import digest, write_json
from raysuite.stages.rewrites import digest_of
from raysuite.writer import losses
from raysuite.writer.losses import PairLoss
from raysuite.writer.model import Writer

MEASURED = ("h_preferred", "h_rejected", "preferred_above_0", "accuracy", "logp_preferred")
STATE = "trainer_state.json"
"""Of a checkpoint: how transformers calls what the trainer knows."""
EXTRA = "pip install 'raysuite[writer]'"


@dataclass(frozen=True)
class Lesson:
    """How a writer is trained.

    Raises:
        UserError: a number is out of its range.
    """

    loss: PairLoss
    learning_rate: float = 5e-4
    epochs: int = 4
    batch: int = 32
    """Pairs."""
    seed: int = 0
    """Of the order of the pairs."""

    def __post_init__(self) -> None:
        for name, value in (("learning-rate", self.learning_rate), ("epochs", self.epochs), ("batch", self.batch)):
            if not value > 0:
                raise UserError(f"expected --{name} above 0, got {value:g}: correct it")


@dataclass(frozen=True)
class Pair:
    """A row of a set of preferences, as TRL's columns have it."""

    prompt: str
    """What the writer goes on from."""
    chosen: str
    rejected: str


def read_pairs(file: Path) -> list[Pair]:
    """Rows of a `.jsonl` with TRL's columns `prompt`, `chosen` and `rejected`; others are left alone.

    Raises:
        UserError: it is not there, or a row is none of these.
    """
    found = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # a text may hold what else ends a line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"expected a set of preferences (the --out of raysuite writer pairs, or a .jsonl), could not read {file}: {error}"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            columns = [row[field.name] for field in fields(Pair)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"expected prompt, chosen and rejected in line {number} of {file}, got {line[:80]!r}: correct it"
            ) from error
        if not all(isinstance(text, str) for text in columns):
            raise UserError(
                f"expected texts in line {number} of {file}, got {line[:80]!r}: put conversations through the writer's chat "
                "template first"
            )
        found.append(Pair(*columns))
    if not found:
        raise UserError(
            f"expected pairs in {file}, found none: draw more prompts or pictures, or ask for a lower margin"
        )
    return found


def check_trl() -> None:
    """Find out before anything slow begins.

    Raises:
        UserError: TRL is not installed.
    """
    from importlib.util import find_spec

    if find_spec("trl") is None:
        raise UserError(f"expected TRL, which trains writers, it is not installed: {EXTRA}")


def file_of(pairs: Path) -> Path:
    """The file with the pairs of a set, or the file itself."""
    return pairs / "pairs.jsonl" if pairs.is_dir() else pairs


def claim(directory: Path, writer: str, pairs: Path, lesson: Lesson, command: Sequence[str]) -> bool:
    """Make the directory this training's; whether there is something left to do.

    Raises:
        UserError: it holds something else.
    """
    weights = digest_of(writer)
    wanted = {
        "writer": writer,
        "weights": weights,
        "pairs": str(pairs),
        "read": digest(pairs),
        **asdict(lesson),
    }

    def settled(found: dict[str, Any]) -> dict[str, Any]:
        return found if weights else {**found, "weights": None}  # a writer that is gone is not another

    begun = ("checkpoints/*", "writer/*")
    files.claim(directory, "training.json", wanted, "training of a writer", command, settled, begun=begun)
    return not is_finished(directory)


def is_finished(directory: Path) -> bool:
    """Whether a training has left its writer. Its checkpoints go then, if a command was killed before it removed them."""
    finished = (directory / "writer").is_dir()
    if finished:
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return finished


def epoch_lines(directory: Path) -> list[str]:
    """The numbers of a training, a line an epoch."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return ["epoch  " + "  ".join(MEASURED)] + [
        f"{row['epoch']:5g}  " + "  ".join(f"{row[name]:{len(name)}.3f}" for name in MEASURED) for row in rows
    ]


def train(writer: Writer, pairs: Sequence[Pair], lesson: Lesson, directory: Path) -> None:
    """Train to the end, or go on from the last epoch that was finished."""
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)  # between TRL and transformers

    class CalDPOTrainer(DPOTrainer):
        """TRL's trainer with the calibrated loss, which it does not have."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            given = _given(inputs)
            outputs = model(**given)
            with torch.no_grad():
                reference = self.ref_model(**given).log_probs.sum(1)
            h_w, h_l = (outputs.log_probs.sum(1) - reference).chunk(2)
            loss = losses.cal_dpo(lesson.loss, h_w, h_l)
            return (loss, outputs) if return_outputs else loss

    class SFTTrainer(DPOTrainer):
        """TRL's loss of preferred rewrites, without running the rejected ones and the reference, which it does not depend on."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            preferred = {name: inputs[name].chunk(2)[0] for name in ("input_ids", "attention_mask", "completion_mask")}
            outputs = model(**_given(preferred))
            loss = -outputs.log_probs[preferred["completion_mask"][:, 1:].bool()].mean()
            return (loss, outputs) if return_outputs else loss

    class Watch(TrainerCallback):
        """Measures all pairs before the training and after each epoch, the same for every loss; tells of each step."""

        def __init__(self) -> None:
            self.reference = _densities(writer, pairs)

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.began = state.global_step
            self._tell(state)
            if not state.global_step:
                self._note(state, *self.reference)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self._tell(state)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            training = writer.model.training
            writer.model.eval()
            now = _densities(writer, pairs)
            writer.model.train(training)
            self._note(state, *now)

        def _tell(self, state: Any) -> None:
            told = {"began": self.began, "done": state.global_step, "steps": state.max_steps}
            write_json(directory / "progress.json", told)

        def _note(self, state: Any, now_w: torch.Tensor, now_l: torch.Tensor) -> None:
            found = losses.summary(now_w - self.reference[0], now_l - self.reference[1], now_w)
            state.log_history.append({"step": state.global_step, "epoch": float(state.epoch or 0), **found})

    kind = lesson.loss.kind
    trainer = {"cal_dpo": CalDPOTrainer, "sft": SFTTrainer}.get(kind, DPOTrainer)(
        model=writer.model,
        ref_model=copy.deepcopy(writer.model),  # without one TRL would read the model's files again
        processing_class=writer.tokenizer,
        train_dataset=datasets.Dataset.from_list([asdict(pair) for pair in pairs]),
        callbacks=[Watch()],
        args=on_one_device(
            DPOConfig(
                output_dir=str(directory / "checkpoints"),
                loss_type=["sigmoid" if kind == "cal_dpo" else kind],
                beta=lesson.loss.beta,
                learning_rate=lesson.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=0.1,
                num_train_epochs=lesson.epochs,
                per_device_train_batch_size=lesson.batch,
                max_length=None,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                save_strategy="epoch",
                save_total_limit=1,
                logging_strategy="epoch",
                report_to="none",
                disable_tqdm=True,
                seed=lesson.seed,
            )
        ),
    )
    trainer.remove_callback(PrinterCallback)
    go_on(trainer, directory / "checkpoints")
    finish(writer, _by_epoch(trainer.state.log_history), directory)


def on_one_device(args: Any) -> Any:
    """A trainer's arguments for the first GPU alone: TRL refuses to share a model between all that it sees. (Not run on several.)"""
    args._n_gpu = min(1, args.n_gpu)
    return args


def _given(inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a model is called with, to answer log-densities of completions."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return {**given, "labels": labels, "fused_lm_head": True, "use_cache": False}


def _densities(writer: Writer, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = [pair.prompt for pair in pairs]
    return (
        writer.log_densities(prompts, [pair.chosen for pair in pairs]),
        writer.log_densities(prompts, [pair.rejected for pair in pairs]),
    )


def go_on(trainer: Any, checkpoints: Path) -> None:
    """Let a trainer train to its end, from the last checkpoint if there is one.

    Raises:
        UserError: a checkpoint could not be written, of which nothing is left.
    """
    last = last_checkpoint(checkpoints)
    try:
        trainer.train(resume_from_checkpoint=last)
    except Exception as error:  # of a full disk torch, safetensors and tokenizers each have an error of their own
        if not _drop_unfinished(checkpoints):
            raise
        raise UserError(
            f"expected to write a checkpoint into {checkpoints}, could not ({' '.join(in_words(error).split())}): what was saved "
            "before stands; make room there, and give the same command again"
        ) from error


def last_checkpoint(checkpoints: Path) -> str | None:
    """The last checkpoint. Those that are not whole are removed."""
    _drop_unfinished(checkpoints)
    return max(map(str, checkpoints.glob("checkpoint-*")), key=steps_of, default=None)


def steps_of(checkpoint: str) -> int:
    """After how many steps it was written."""
    return int(checkpoint.rpartition("-")[2])


def _drop_unfinished(checkpoints: Path) -> bool:
    """Remove checkpoints that were being written when a command ended; whether there were any."""
    unfinished = [path for path in checkpoints.glob("checkpoint-*") if not _is_whole(path)]
    for path in unfinished:
        shutil.rmtree(path)
    return bool(unfinished)


def _is_whole(checkpoint: Path) -> bool:
    """Whether the state of the trainer is: it is written last, and in place."""
    try:
        json.loads((checkpoint / STATE).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return True


def _by_epoch(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        row = rows.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
        row |= {name: entry[name] for name in MEASURED if name in entry}
        row |= {"loss": entry["loss"]} if "loss" in entry else {}
    return [row for _, row in sorted(rows.items())]


def finish(writer: Writer, rows: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Leave the numbers of a training, and at last the writer."""
    with replacing(directory / "metrics.jsonl") as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with replacing(directory / "writer") as made:
        writer.save(made)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
