"""Writers on Ray: pictures of rewrites by rollout actors, training in Ray Train."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig as TrainRunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raysuite.cluster import launch
from raysuite.cluster.actors import RayCollector
from raysuite.cluster.texts import encode_once
from raysuite.families import Policy, open_policy
from raysuite.in_context.draw import Named
from raysuite.progress import Counting
from raysuite.stages import checkpoint
from raysuite.stages.collect import Collector, LocalCollector
from raysuite.stages.files import is_held, provenance, write_json
from raysuite.stages.prompts import Prompt, load_prompts
from raysuite.writer import draw, evaluation, grpo, pairs
from raysuite.writer.candidates import Candidate
from raysuite.writer.losses import PairLoss
from raysuite.writer.model import open_writer
from raysuite.writer.train import Lesson, Pair, train


def make_pairs(
    model: Named, writer: str, plan: pairs.Plan, directory: Path, command: Sequence[str], counting: Counting
) -> dict[str, Any]:
    """Make a set of preferences between rewrites, or go on with one, and return its summary.

    Raises:
        UserError: the writer is not there, the directory holds something else, or there is no preference.
    """
    config = draw.with_noise_of(model.config, plan.seed)
    wanted = pairs.identity(config, asdict(plan), writer, model.settings())
    _claim(directory, "pairs.json", wanted, "set of rewrites", command)
    opened = open_writer(writer)
    prompts = pairs.chosen_prompts(load_prompts(config.prompts).training, plan)
    kept, cut = pairs.drawn_candidates(directory, opened, config, prompts, plan)
    _draw(
        replace(model, config=config),
        {prompt.number: prompt for prompt in prompts},
        kept,
        plan.pictures,
        directory,
        counting,
    )
    told = {"cut": cut, **pairs.costs(config, len(kept) * plan.pictures)}
    return pairs.write(directory, opened, prompts, kept, draw.read(directory / "scores"), plan, told)


def evaluate(model: Named, plan: evaluation.Plan, directory: Path, command: Sequence[str], counting: Counting) -> None:
    """Compare writers before one image model, or go on.

    Raises:
        UserError: something is not there, or the directory holds something else.
    """
    wanted = evaluation.identity(model.config, plan, model.settings())
    _claim(directory, "evaluation.json", wanted, "evaluation of writers", command)
    cells = evaluation.chosen_prompts(load_prompts(model.config.prompts), plan)
    texts = evaluation.rewritten(directory, cells, plan.who)
    prompts = {prompt.number: prompt for of in cells.values() for prompt in of}
    _draw(model, prompts, texts, plan.pictures, directory, counting)
    write_json(directory / "summary.json", pairs.costs(model.config, len(texts) * plan.pictures))


def train_writer(writer: str, rows: Sequence[Pair], lesson: Lesson, directory: Path, *, threads: int = 1) -> None:
    """Train a writer in this process; where RAY_ADDRESS names a cluster in one of Ray Train there, which goes on from its last epoch
    where it dies.
    """
    options = {
        "writer": writer,
        "rows": list(rows),
        "lesson": asdict(lesson),
        "directory": str(directory),
        "threads": threads,
    }
    if not os.environ.get("RAY_ADDRESS"):
        _learner(options)
        return
    launch.connect()
    TorchTrainer(
        _learner,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=1, use_gpu=torch.cuda.is_available()),
        run_config=TrainRunConfig(
            name="ray", storage_path=str(directory), failure_config=FailureConfig(max_failures=2)
        ),
    ).fit()
    shutil.rmtree(directory / "ray", ignore_errors=True)  # Ray Train's own notes


def train_online(
    model: Named, writer: str, plan: grpo.Plan, directory: Path, command: Sequence[str], counting: Counting
) -> list[dict[str, Any]]:
    """Train a writer on-line in this process, or go on, and return the numbers of its steps. Pictures are drawn as `drawing` has it.

    Raises:
        UserError: the writer is not there, the directory holds something else, or a number does not go with the others.
    """
    once = model.config.cluster.model_copy(update={"encode_once": False})  # nobody knows what will be written
    config = draw.with_noise_of(model.config.model_copy(update={"cluster": once}), plan.seed)
    prompts = grpo.chosen_prompts(config, load_prompts(config.prompts).training, plan)
    opened = open_writer(writer)
    wanted = pairs.identity(config, asdict(plan), writer, model.settings())
    _claim(directory, "grpo.json", wanted, "on-line training", command)
    if not (directory / "writer").is_dir():
        counting.begin(plan.steps, done=grpo.done(directory))
        by_number = {prompt.number: prompt for prompt in prompts}
        with drawing(replace(model, config=config), directory, []) as (policy, collector):
            judge = grpo.Pictures(directory, config, by_number, plan, collector, policy.weights())
            grpo.train(opened, prompts, plan, judge, plan.of_a_step(config), directory, counting.advance)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _learner(options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    lesson = options["lesson"]
    lesson = Lesson(**{**lesson, "loss": PairLoss(**lesson["loss"])})
    train(open_writer(options["writer"]), options["rows"], lesson, Path(options["directory"]))


def _claim(directory: Path, name: str, wanted: dict[str, Any], what: str, command: Sequence[str]) -> None:
    if not is_held(directory, name, wanted, what, begun=("*.jsonl", "scores/*", "checkpoints/*")):
        write_json(directory / name, wanted)
        write_json(directory / "provenance.json", provenance(command))


def _draw(
    model: Named,
    prompts: dict[int, Prompt],
    texts: Sequence[Candidate],
    pictures: int,
    directory: Path,
    counting: Counting,
) -> None:
    planned = draw.blocks(model.config, prompts, texts, pictures)
    left = draw.missing(directory / "scores", planned)
    counting.begin(len(planned), done=len(planned) - len(left))
    if not left:
        return
    with drawing(model, directory, [text.text for text in texts]) as (policy, collector):
        for _ in draw.draw(directory / "scores", left, collector, policy.weights()):
            counting.advance()


@contextmanager
def drawing(model: Named, directory: Path, texts: Sequence[str]) -> Iterator[tuple[Policy, Collector]]:
    """A model, and who draws these texts with its weights, for the length of a `with`: rollout actors, or this process where its run
    has none and no cluster is to be joined.

    Raises:
        UserError: the cluster is too small, or there is no GPU.
    """
    config, device = model.config, torch.device("cpu")
    with ExitStack() as stack:
        actors: list[Any] = []
        if config.cluster.alone and not os.environ.get("RAY_ADDRESS"):
            device = launch.device_here(config.cluster)
            threads = launch.threads_of(config, 1, config.cluster.worker_cpus)
            torch.set_num_threads(threads)
            encoded = encode_once(config, directory, threads=threads, prompts=texts, here=True)
        else:
            config = config.with_actors()
            actors, encoded = stack.enter_context(launch.drawing_actors(config, directory, prompts=texts))
        policy = open_policy(config, device, texts=encoded, encoders=encoded is None)
        if model.model is not None:
            checkpoint.load(model.model, policy)
        yield policy, RayCollector.of(config, actors) if actors else LocalCollector(policy, config)
    shutil.rmtree(directory / "texts", ignore_errors=True)
