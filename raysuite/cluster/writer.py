"""Writers on Ray: pictures of rewrites by rollout actors, training in Ray Train."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig as TrainRunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raysuite.cluster import session
from raysuite.cluster.fitting import fit
from raysuite.cluster.interrupt import Interruption
from raysuite.cluster.placement import Piece, check_room
from raysuite.config import RunConfig
from raysuite.progress import Counting, Counts
from raysuite.stages.files import RunDirectory, claim, write_json
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import Prompt, load_prompts
from raysuite.stages.rollout import refuse_scale
from raysuite.writer import draw, evaluation, grpo, pairs, rewriting
from raysuite.writer.candidates import Candidate
from raysuite.writer.losses import PairLoss, warnings
from raysuite.writer.model import Writer, open_writer
from raysuite.writer.train import Lesson, Pair, is_finished, train

BEGUN = ("*.jsonl", "scores/*", "checkpoints/*")
"""Files of which one is there as soon as there is something to lose."""
LOSSES = 2
"""Times that a writer's training may be lost and go on from its last epoch."""


def make_pairs(
    model: FoundModel, writer: str, plan: pairs.Plan, directory: Path, command: Sequence[str], counting: Counting
) -> dict[str, Any]:
    """Make a set of preferences between rewrites, or go on with one, and return its summary.

    Raises:
        UserError: the writer is not there, the directory holds something else, there is no preference, or rewards have a scale.
    """
    refuse_scale(model.config, "a set of preferences")
    config = draw.with_noise_of(model.config, plan.seed)
    wanted = pairs.identity(config, asdict(plan), writer, model.settings())
    claim(directory, "pairs.json", wanted, "set of rewrites", command, begun=BEGUN)
    opened = open_writer(writer)
    prompts = pairs.chosen_prompts(load_prompts(config.prompts).training, plan)
    kept, without = pairs.drawn_candidates(directory, opened, config, prompts, plan)
    _draw(
        replace(model, config=config),
        {prompt.number: prompt for prompt in prompts},
        kept,
        plan.pictures,
        directory,
        counting,
    )
    told = {**without, **draw.costs(config, len(kept) * plan.pictures)}
    return pairs.write(directory, opened, prompts, kept, draw.read(directory / "scores"), plan, told)


def evaluate(
    model: FoundModel, plan: evaluation.Plan, directory: Path, command: Sequence[str], counting: Counting
) -> None:
    """Compare writers before one image model, or go on.

    Raises:
        UserError: something is not there, or the directory holds something else.
    """
    wanted = evaluation.identity(model.config, plan, model.settings())
    claim(directory, "evaluation.json", wanted, "evaluation of writers", command, begun=BEGUN)
    cells = evaluation.chosen_prompts(load_prompts(model.config.prompts), plan)
    texts = evaluation.rewritten(directory, cells, plan.who, model.config.model)
    prompts = {prompt.number: prompt for of in cells.values() for prompt in of}
    _draw(model, prompts, texts, plan.pictures, directory, counting)
    write_json(directory / "summary.json", draw.costs(model.config, len(texts) * plan.pictures))


def train_writer(
    writer: str, rows: Sequence[Pair], lesson: Lesson, directory: Path, tell: Callable[[str], object]
) -> None:
    """Train a writer in this process; where RAY_ADDRESS names a cluster in one of Ray Train there, which goes on from its last epoch
    where it dies.

    Args:
        writer: its name.
        rows: what it is taught by.
        lesson: how.
        directory: of the training.
        tell: is told what can be known of the loss beforehand.

    Raises:
        Stopped: a signal came while the process in the cluster was at work.
        UserError: the writer is not there, or the process in the cluster was lost too often.
    """
    opened = open_writer(writer)
    if lesson.loss.kind == "cal_dpo":  # the others have no targets
        for told in warnings(lesson.loss, opened.log_densities([r.prompt for r in rows], [r.chosen for r in rows])):
            tell(told)
    if not os.environ.get("RAY_ADDRESS"):
        _train(opened, rows, lesson, directory)
        return
    del opened  # a worker opens its own
    options = {"writer": writer, "rows": list(rows), "lesson": asdict(lesson), "directory": str(directory)}
    session.connect()
    # the cluster's GPUs, which the machine of this process may have none of
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    check_room([Piece("a learner", 1, int(use_gpu))], remedy="train without RAY_ADDRESS, in this process")
    trainer = TorchTrainer(
        _learner,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=1, use_gpu=use_gpu),
        run_config=TrainRunConfig(
            name="ray", storage_path=str(directory), failure_config=FailureConfig(max_failures=LOSSES)
        ),
    )
    with Interruption() as interruption:  # what was learned since the last epoch's end is lost
        interruption.wait_for(lambda: fit(trainer, directory / "ray", limit=f"than {LOSSES} times"))
    shutil.rmtree(directory / "ray", ignore_errors=True)  # Ray Train's own notes


def train_online(
    model: FoundModel, writer: str, plan: grpo.Plan, directory: Path, command: Sequence[str], counting: Counting
) -> list[dict[str, Any]]:
    """Train a writer on-line in this process, or go on, and return the numbers of its steps. Pictures are drawn as `drawing` has it.

    Raises:
        UserError: the writer is not there, the directory holds something else, a number does not go with the others, or rewards have
            a scale.
    """
    refuse_scale(model.config, "a writer's training")
    once = model.config.cluster.model_copy(update={"encode_once": False})  # nobody knows what will be written
    config = draw.with_noise_of(model.config.model_copy(update={"cluster": once}), plan.seed)
    prompts = grpo.chosen_prompts(config, load_prompts(config.prompts).training, plan)
    opened = open_writer(writer)
    wanted = pairs.identity(config, asdict(plan), writer, model.settings())
    claim(directory, "grpo.json", wanted, "on-line training", command, begun=BEGUN)
    if not is_finished(directory):
        counting.begin(plan.steps, done=grpo.done(directory))
        by_number = {prompt.number: prompt for prompt in prompts}
        with session.drawing(replace(model, config=config), directory, []) as (policy, collector):
            judge = grpo.Pictures(directory, config, by_number, plan, collector, policy.weights())
            grpo.train(opened, prompts, plan, judge, plan.of_a_step(config), directory, counting.advance)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def rewrite_prompts(config: RunConfig, directory: Path, *, placed: bool = False) -> None:
    """Put the prompts of a run into its writer's words before it begins, and leave them in its directory; what was drawn to choose
    between both goes when that is done.

    Args:
        config: of the run.
        directory: of the run.
        placed: whether a process that does everything is meant to draw, too, in a cluster that was joined.

    Raises:
        UserError: the writer is not there, or what it writes cannot be drawn.
    """
    choosing = directory / "choosing"

    def scored(prompts: Mapping[int, Prompt], texts: Sequence[Candidate]) -> Mapping[draw.Key, draw.Scores]:
        model = FoundModel(directory.name, draw.with_noise_of(config, config.seed, update=draw.CHOSEN), None)
        asked = repr([config.identity(), *texts])  # a run that goes on may ask for others
        place = choosing / hashlib.sha256(asked.encode()).hexdigest()[:16]
        _draw(model, prompts, texts, config.prompts.best_of, place, _Told(config, directory), placed=placed)
        return draw.read(place / "scores")

    rewriting.rewrite_once(config, directory, scored)
    shutil.rmtree(choosing, ignore_errors=True)


class _Told:
    """Counts blocks where those who wait for a run look."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self._run, self._updates = RunDirectory(directory), None if config.budget else config.updates
        self._done = self._total = 0

    def begin(self, total: int, *, done: int) -> None:
        self._done, self._total = done, total
        self._tell()

    def advance(self) -> None:
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        self._run.progress(phase="choose", update=0, updates=self._updates, blocks=self._done, blocks_total=self._total)


def _learner(options: dict[str, Any]) -> None:
    lesson = options["lesson"]
    lesson = Lesson(**{**lesson, "loss": PairLoss(**lesson["loss"])})
    _train(open_writer(options["writer"]), options["rows"], lesson, Path(options["directory"]))


def _train(writer: Writer, rows: Sequence[Pair], lesson: Lesson, directory: Path) -> None:
    torch.set_num_threads(1)  # sums depend on their number: a training is the same on every machine
    train(writer, rows, lesson, directory)


def _draw(
    model: FoundModel,
    prompts: Mapping[int, Prompt],
    texts: Sequence[Candidate],
    pictures: int,
    directory: Path,
    counting: Counts,
    *,
    placed: bool = False,
) -> None:
    planned = draw.blocks(model.config, prompts, texts, pictures)
    left = draw.missing(directory / "scores", planned)
    counting.begin(len(planned), done=len(planned) - len(left))
    if not left:
        return
    with session.drawing(model, directory, [text.text for text in texts], placed=placed) as (policy, collector):
        for _ in draw.draw(directory / "scores", left, collector, policy.weights()):
            counting.advance()
