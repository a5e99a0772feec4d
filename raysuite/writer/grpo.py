"""A writer trained on-line by TRL's `GRPOTrainer`: it writes, the image model draws, and rewards say what that was worth.

What of TRL this stands on: `GRPOConfig` with `loss_type="grpo"`, `GRPOTrainer` with completions by transformers' `generate`, and
reward functions that are given the columns of the data and `trainer_state`. constraints.txt has the version that this was tested with.

A directory of a training:

    grpo.json                 what decides all of it
    provenance.json           as of a run
    scores/<step>/<n>.parquet of the pictures that a step had drawn; a rewrite of a prompt is drawn once, and remembered
    checkpoints/              TRL's own, the last one alone, from which the same command goes on
    metrics.jsonl             a line for each step; `unfinished` is the share of its rewrites that did not end within their tokens
    writer/                   the trained writer, a directory of transformers; written last
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.rng import Stage, numpy_generator
from raysuite.stages.collect import Collector
from raysuite.stages.prompts import Prompt, dealt
from raysuite.writer import draw
from raysuite.writer.candidates import Candidate
from raysuite.writer.draw import Key, Scores, costs
from raysuite.writer.model import TOKENS, Writer
from raysuite.writer.pairs import check_enough
from raysuite.writer.train import STATE, finish, go_on, last_checkpoint, on_one_device, steps_of

MEASURED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "network_evaluations": "network_evaluations",
    "unfinished": "completions/clipped_ratio",
}
"""What is kept of a step, and how TRL calls it."""


@dataclass(frozen=True)
class Plan:
    """How a writer is trained on-line.

    Raises:
        UserError: a number is out of its range.
    """

    prompts: int = 8
    """Of a step."""
    draws: int = 8
    """Rewrites of each prompt: a group."""
    pictures: int = 2
    """Of each rewrite."""
    steps: int = 100
    """After which it ends, if the budget does not end it before."""
    budget: int | None = None
    """Network evaluations of the pictures: it ends before a step that might exceed it."""
    learning_rate: float = 5e-4
    beta: float = 0.0
    """Weight of the KL from the writer as it came, as TRL has it."""
    seed: int = 0
    """Of prompts, rewrites and noise."""

    def __post_init__(self) -> None:
        for name in ("prompts", "pictures", "steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"expected --{name.replace('_', '-')} above 0, got {getattr(self, name):g}: correct it")
        if self.draws < 2:
            raise UserError(
                f"expected --draws of at least 2, which are compared with each other, got {self.draws}: raise it"
            )
        if self.beta < 0:
            raise UserError(f"expected --beta of at least 0, got {self.beta:g}: correct it")

    def of_a_step(self, config: RunConfig) -> int:
        """Network evaluations that a step takes at most."""
        return costs(config, self.prompts * self.draws * self.pictures)["network_evaluations"]


def chosen_prompts(config: RunConfig, known: Sequence[Prompt], plan: Plan) -> list[Prompt]:
    """Training prompts for all steps, alike from every stratum; all where there are fewer.

    Raises:
        UserError: there are too few for a step, or the budget is.
    """
    check_enough(known, plan.prompts)
    if plan.budget is not None and plan.budget < plan.of_a_step(config):
        raise UserError(
            f"expected --budget of at least {plan.of_a_step(config)}, which a step may take, got {plan.budget}: raise it, or lower "
            "--prompts, --draws or --pictures"
        )
    number = min(len(known), plan.prompts * plan.steps)
    return dealt(tuple(known), number, numpy_generator(seed=plan.seed, stage=Stage.WRITER, update=3))


def done(directory: Path) -> int:
    """Steps of a training that it goes on from."""
    last = last_checkpoint(directory / "checkpoints")
    return steps_of(last) if last else 0


def _steps(plan: Plan, step_costs: int, directory: Path) -> int:
    """That a training has: those that it goes on from, where no other fits into the budget. Of having been told to stop, the
    trainer remembers nothing when it goes on.
    """
    last = last_checkpoint(directory / "checkpoints")
    if last is None or plan.budget is None:
        return plan.steps
    spent = json.loads((Path(last) / STATE).read_text())["log_history"][-1]["network_evaluations"]
    return steps_of(last) if spent + step_costs > plan.budget else plan.steps


class Judge(Protocol):
    """Who says what rewrites are worth."""

    @property
    def spent(self) -> int:
        """Network evaluations so far."""

    def rewards(self, step: int, numbers: Sequence[int], texts: Sequence[str]) -> list[float]:
        """Of the rewrites of one step, by the numbers of the users' prompts."""


class Pictures:
    """The mean trained reward of pictures of each rewrite, judged by what the user meant, with the same noise for all of a prompt.

    Args:
        directory: of the training.
        config: of the image model, with the noise of this training.
        prompts: by number.
        plan: of the training.
        collector: draws.
        weights: with which it does.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        prompts: Mapping[int, Prompt],
        plan: Plan,
        collector: Collector,
        weights: np.ndarray,
    ) -> None:
        self._scores, self._config, self._prompts, self._plan = directory / "scores", config, prompts, plan
        self._collector, self._weights = collector, weights
        self._known: dict[Key, Scores] | None = None

    @property
    def spent(self) -> int:
        """Network evaluations of all pictures so far."""
        images = sum(len(scores.total) for scores in (self._known or {}).values())
        return costs(self._config, images)["network_evaluations"]

    def rewards(self, step: int, numbers: Sequence[int], texts: Sequence[str]) -> list[float]:
        """Rewards of rewrites; an empty one is the user's own text. What an earlier step had drawn is not drawn again."""
        if self._known is None:  # a training that goes on knows what its steps so far had drawn, and no more
            before = (place for place in sorted(self._scores.glob("[0-9]*")) if int(place.name) < step)
            self._known = {key: scores for place in before for key, scores in draw.read(place).items()}
        keys = [(number, text or self._prompts[number].text) for number, text in zip(numbers, texts, strict=True)]
        wanted = [
            Candidate(number, text, own=text == self._prompts[number].text)
            for number, text in dict.fromkeys(keys)
            if (number, text) not in self._known
        ]
        place = self._scores / f"{step:06d}"
        drawn = draw.read(place).keys()
        if drawn - {(one.prompt, one.text) for one in wanted}:  # of a step that was lost and is another now
            shutil.rmtree(place)
        planned = draw.blocks(self._config, self._prompts, wanted, self._plan.pictures)
        for _ in draw.draw(place, draw.missing(place, planned), self._collector, self._weights):
            pass
        self._known |= draw.read(place)
        return [float(self._known[key].total.mean()) for key in keys]


def train(
    writer: Writer,
    prompts: Sequence[Prompt],
    plan: Plan,
    judge: Judge,
    step_costs: int,
    directory: Path,
    advanced: Callable[[], object] = lambda: None,
) -> None:
    """Train to the end, or go on from the last checkpoint.

    Args:
        writer: as it came.
        prompts: what it is asked to rewrite, in this order, over again where they are fewer than the steps take.
        plan: of the training.
        judge: of what it writes.
        step_costs: network evaluations that a step takes at most.
        directory: of the training.
        advanced: is called after every step.
    """
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    datasets.disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)  # between TRL and transformers

    def reward(completions: Sequence[str], number: Sequence[int], trainer_state: Any, **rest: Any) -> list[float]:
        writer.check_thoughts(completions)
        return judge.rewards(trainer_state.global_step, number, [" ".join(text.split()) for text in completions])

    class Watch(TrainerCallback):
        """Keeps what was spent, and ends a training whose next step might cost more than is left."""

        def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            state.log_history[-1]["network_evaluations"] = judge.spent

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            advanced()
            if plan.budget is not None and judge.spent + step_costs > plan.budget:
                control.should_training_stop = True

    steps = _steps(plan, step_costs, directory)
    # one epoch: a sampler that begins a second one does not go on alike
    asked = [prompts[place % len(prompts)] for place in range(plan.prompts * steps)]
    rows = [{"prompt": writer.asked(prompt.text), "number": prompt.number} for prompt in asked]
    trainer = GRPOTrainer(
        model=writer.model,
        processing_class=writer.tokenizer,
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[Watch()],
        args=on_one_device(
            GRPOConfig(
                output_dir=str(directory / "checkpoints"),
                loss_type="grpo",
                shuffle_dataset=False,
                num_generations=plan.draws,
                per_device_train_batch_size=plan.prompts * plan.draws,
                max_completion_length=TOKENS,
                temperature=1.0,
                beta=plan.beta,
                learning_rate=plan.learning_rate,
                lr_scheduler_type="constant",
                max_steps=steps,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                save_strategy="steps",
                save_steps=5,
                save_total_limit=1,
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                seed=plan.seed,
            )
        ),
    )
    trainer.remove_callback(PrinterCallback)
    go_on(trainer, directory / "checkpoints")
    told = [entry for entry in trainer.state.log_history if "reward" in entry]
    measured = [{"step": entry["step"], **{name: entry[of] for name, of in MEASURED.items()}} for entry in told]
    finish(writer, measured, directory)
