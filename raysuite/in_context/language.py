"""A small language model that reads episodes of the bundled world with captions in place of pictures, and writes the next caption.

    red : three red circles ; blue : three blue circles ; black : three black circles
    red : three red circles ; blue : three blue circles ; black : same : three circles ; next : three black circles

The second is the form with a chain of thought: what all have in common is written before the answer. Words are tokens. It is trained
on episodes of training combinations alone, as many as are wanted: what it is asked for later never occurred in them, neither as a
demonstration nor as an answer. Both forms are trained on as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from raysuite.in_context.policies import Captioner, Generator, Row, erring, given_captions
from raysuite.in_context.scenes import VALUES, ScenesWorld
from raysuite.in_context.tasks import Answer, Episode, Task, World
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.worlds.scenes import grammar

PAD, END, BREAK = "<pad>", "<end>", ";"
SIGNS = (PAD, END, BREAK, ":", "same", "next", "and", "?")
LONGEST = 256
"""Tokens: more than an episode of eight shots with its answer has."""
ANSWER_TOKENS = 24
TOKENS = 1_500_000
"""That are trained on, of texts and answers: some 500 steps."""
BATCH, LEARNING_RATE = 64, 3e-3


def vocabulary() -> dict[str, int]:
    """Every word of the world and every sign, by its number."""
    sentences = (*grammar.training_prompts(), *(value for values in VALUES.values() for value in values))
    words = {word for sentence in sentences for word in sentence.split()}
    return {word: number for number, word in enumerate((*SIGNS, *sorted(words)))}


WORDS = vocabulary()
NAMES = tuple(WORDS)


def question(texts: Sequence[str], captions: Sequence[str]) -> str:
    """An episode with captions in place of pictures, up to what is asked for; texts are one more than captions."""
    shown = [f"{text} : {caption or '?'} {BREAK}" for text, caption in zip(texts, captions, strict=False)]
    return " ".join([*shown, f"{texts[-1]} :"])


def reply(caption: str, latent: str, *, thought: bool) -> str:
    """What comes next, in one of the two forms."""
    return f"same : {latent} {BREAK} next : {caption}" if thought else caption


@dataclass(frozen=True)
class Lesson:
    """What a model is trained on."""

    world: ScenesWorld
    thought: bool
    without: str | None
    """A theme that is left out."""
    seed: int
    tokens: int = TOKENS

    @property
    def tasks(self) -> list[Task]:
        """All but those of the theme that is left out."""
        return [task for task in self.world.tasks if task.theme.name != self.without]

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question and its answer, of training combinations alone."""
        while True:
            task = self.tasks[rng.integers(len(self.tasks))]
            latent = str(rng.choice(task.latents))
            known = self.world.lessons[task.theme.name]
            requests = [request for request in task.requests if task.cell(request, latent) in known]
            if len(requests) > 2:
                break
        shots = int(rng.choice([shots for shots in task.shots if shots < len(requests)] or [2]))
        asked = [str(request) for request in rng.permutation(requests)[: shots + 1]]
        prompts = [known[task.cell(request, latent)] for request in asked]
        captions = [of[rng.integers(len(of))] for of in prompts]
        return question(asked, captions[:-1]), reply(captions[-1], latent, thought=self.thought)


def untrained(seed: int) -> LlamaForCausalLM:
    """Two layers of width 64: about 140,000 parameters."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        pad_token_id=WORDS[PAD],
        bos_token_id=None,
        eos_token_id=WORDS[END],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed=seed, stage=Stage.IN_CONTEXT_LANGUAGE).initial_seed())
        return LlamaForCausalLM(config)


def trained(lesson: Lesson) -> LlamaForCausalLM:
    """A model that has had its lesson: the loss is on answers alone, the learning rate falls to 0 with the tokens that are left."""
    model = untrained(lesson.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    spent, step = 0, 0
    while spent < lesson.tokens:
        rng = numpy_generator(seed=lesson.seed, stage=Stage.IN_CONTEXT_LANGUAGE, update=1 + step)
        pairs = [lesson.draw(rng) for _ in range(BATCH)]
        rows = [(tokens(asked), [*tokens(answer), WORDS[END]]) for asked, answer in pairs]
        longest = max(len(asked) + len(answer) for asked, answer in rows)
        ids = torch.full((BATCH, longest), WORDS[PAD])
        wanted = torch.full((BATCH, longest), -100)
        for row, (asked, answer) in enumerate(rows):
            ids[row, : len(asked) + len(answer)] = torch.tensor(asked + answer)
            wanted[row, len(asked) : len(asked) + len(answer)] = torch.tensor(answer)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (1 + step) / 20) * (1 - spent / lesson.tokens)
        logits = model(input_ids=ids, attention_mask=(ids != WORDS[PAD]).long()).logits
        optimizer.zero_grad()
        cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent, step = spent + sum(len(asked) + len(answer) for asked, answer in rows), step + 1
    return model.eval()


def learned(lesson: Lesson, file: Path) -> LlamaForCausalLM:
    """The same, read from a file where it was trained before."""
    if file.exists():
        model = untrained(lesson.seed)
        model.load_state_dict(safetensors.torch.load_file(file))
        return model.eval()
    model = trained(lesson)
    with replacing(file) as temporary:
        safetensors.torch.save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    return model


def tokens(text: str) -> list[int]:
    """Numbers of words."""
    return [WORDS[word] for word in text.split()]


@torch.no_grad()
def written(model: LlamaForCausalLM, questions: Sequence[str]) -> list[str]:
    """What a model writes after each of some questions, the likeliest word each time. They are one batch."""
    rows = [tokens(asked) for asked in questions]
    longest = max(map(len, rows))
    ids = torch.tensor([[WORDS[PAD]] * (longest - len(row)) + row for row in rows])
    said = cast(Any, model).generate(
        input_ids=ids,
        attention_mask=(ids != WORDS[PAD]).long(),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        pad_token_id=WORDS[PAD],
        eos_token_id=WORDS[END],
    )[:, longest:]
    return [" ".join(NAMES[n] for n in row if NAMES[n] not in (PAD, END)) for row in said.tolist()]


class LanguageModel(Generator):
    """Reads an episode's texts and captions, and writes the next caption.

    Args:
        model_for: the model that answers a task: one for all, or one that has not seen the task's theme.
        captioner: what it reads in place of pictures.
        about: what it was trained on, for the record.
    """

    kept = True

    def __init__(
        self, model_for: Callable[[Task], LlamaForCausalLM], captioner: Captioner, about: dict[str, Any]
    ) -> None:
        self._model_for, self._captioner, self._about = model_for, captioner, about

    def settings(self) -> dict[str, Any]:
        """What it was trained on."""
        return self._about

    def answer(self, world: World, episode: Episode) -> Answer:
        """The next caption."""
        return self.answers(world, [episode])[0]

    def answers(self, world: World, episodes: Sequence[Episode]) -> list[Answer]:
        """The same for several, in batches of one task."""
        found: dict[int, Answer] = {}
        for task in {episode.task.number: episode.task for episode in episodes}.values():
            mine = [place for place, episode in enumerate(episodes) if episode.task.number == task.number]
            asked = [self._question(episodes[place]) for place in mine]
            for place, text, said in zip(mine, asked, written(self._model_for(task), asked), strict=True):
                length = len(text.split()) + len(said.split())
                found[place] = Answer(said.rpartition("next : ")[2], transcript=said, tokens=length)
        return [found[place] for place in range(len(episodes))]

    def _question(self, episode: Episode) -> str:
        captions = [self._captioner(episode, place, demo) for place, demo in enumerate(episode.demos)]
        return question([*(demo.text for demo in episode.demos), episode.query], captions)


def model_per_task(
    world: ScenesWorld, folder: Path, *, thought: bool, left_out: bool, seed: int, budget: int
) -> Callable[[Task], LlamaForCausalLM]:
    """Models by task, each trained or read when first asked for.

    Args:
        world: whose episodes.
        folder: where they are kept.
        thought: whether they write what is common before the answer.
        left_out: whether the task's own theme was left out of the training.
        seed: of the training.
        budget: tokens that are trained on.
    """
    opened: dict[str | None, LlamaForCausalLM] = {}

    def model_for(task: Task) -> LlamaForCausalLM:
        without = task.theme.name if left_out else None
        if without not in opened:
            name = f"{'cot' if thought else 'plain'}-{f'without-{without}' if without else 'all'}.safetensors"
            opened[without] = learned(Lesson(world, thought, without, seed, budget), folder / name)
        return opened[without]

    return model_for


def language_rows(world: ScenesWorld, folder: Path, *, errors: float, left_out: bool, seed: int) -> tuple[Row, ...]:
    """The language model with and without a chain of thought, from clean captions and from a captioner that errs.

    Args:
        world: whose episodes.
        folder: where models are kept.
        errors: share of attributes that the captioner misreads, where captions are not given.
        left_out: whether to train on the other four themes besides, for each theme.
        seed: of the training, and of the captioner.
    """
    captioner = erring(seed, world.caption, errors)
    rows = []
    for without in (False, True) if left_out else (False,):
        for thought in (False, True):
            model_for = model_per_task(world, folder, thought=thought, left_out=without, seed=seed, budget=TOKENS)
            about = {"tokens": TOKENS, "thought": thought, "theme_left_out": without, "seed": seed}
            name = f"language model{', with thought' if thought else ''}{', theme left out' if without else ''}"
            erred = LanguageModel(model_for, captioner, {**about, "errors": errors})
            rows.append(Row(name, "caption", LanguageModel(model_for, given_captions, about)))
            rows.append(Row(name, "cot" if thought else "default", erred))
            if not (thought or without):
                rows.append(Row(name, "misleading", erred))
    return tuple(rows)
