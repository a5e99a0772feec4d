"""Prompts: from a world or a file to the blocks of an update or an evaluation."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from raysuite import rewritten
from raysuite.config import SPLITS, Prompts, RunConfig
from raysuite.errors import UserError
from raysuite.rng import Stage, numpy_generator
from raysuite.stages import prompt_files
from raysuite.types import TYPED, Block

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A sentence, its number (a coordinate of its noise), and what else is known of it."""

    text: str
    number: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = ""
    """Prompts are drawn alike from every stratum, whatever its size."""
    rewrite: str | None = None
    """What a writer made of the text; the model is given it in place of the text."""

    @property
    def given(self) -> str:
        """What the model is given."""
        return self.text if self.rewrite is None else self.rewrite

    @property
    def known(self) -> Mapping[str, Any]:
        """What rewards are told besides: the metadata, with what the user typed where the model is given something else."""
        return self.metadata if self.rewrite is None else {**self.metadata, TYPED: self.text}


@dataclass(frozen=True)
class PromptSet:
    """Prompts to learn from, to choose by, and to report. Numbers are unique over all."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    test: tuple[Prompt, ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)
    """Rows that came before in their source, where there are any, by split."""

    @property
    def splits(self) -> dict[str, tuple[Prompt, ...]]:
        """The splits that have prompts, by name."""
        return {name: getattr(self, name) for name in SPLITS if getattr(self, name)}

    @property
    def all(self) -> tuple[Prompt, ...]:
        """The prompts of all splits."""
        return tuple(prompt for split in self.splits.values() for prompt in split)

    @cached_property
    def names(self) -> dict[int, str]:
        """What rewards are compared and remembered under, by prompt number: the text, with a count where prompts of the same text,
        and other metadata, came before.
        """
        names: dict[int, str] = {}
        seen = Counter[str]()
        for prompt in self.all:
            seen[prompt.text] += 1
            names[prompt.number] = f"{prompt.text} (no. {seen[prompt.text]})" if seen[prompt.text] > 1 else prompt.text
        return names


def load_prompts(spec: Prompts) -> PromptSet:
    """The prompts that a run names. A row that is there twice, metadata and all, is one prompt.

    Raises:
        UserError: a file is missing, cannot be decoded, or holds no prompt or a column that has a meaning here; or a prompt is in
            two splits.
    """
    repeated: dict[str, int] = {}
    splits: dict[str, tuple[Prompt, ...]] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        source = getattr(spec, split)
        splits[split] = _read(source, split, repeated) if source else ()
        if any(TYPED in prompt.metadata for prompt in splits[split]):
            raise UserError(
                f"expected no column {TYPED} in prompts.{split}={source}, where it is what a user typed before a writer's rewrite, by "
                "which rewards judge: rename that column"
            )
        both = {prompt.text for prompt in splits[split]} & split_of.keys()
        if both:
            other = split_of[min(both)]
            raise UserError(
                f"expected other prompts in prompts.{split} than in prompts.{other}, {len(both)} are in both, for example "
                f"{min(both)!r}: take them out of one (training prompts are evaluated in any case)"
            )
        split_of |= {prompt.text: split for prompt in splits[split]}
    return PromptSet(**splits, repeated=repeated)


def run_prompts(config: RunConfig, directory: Path) -> PromptSet:
    """The prompts of a run, those that it draws with what its writer made of them before it began.

    Raises:
        UserError: as `load_prompts`, or what was made of them is not in the run's directory.
    """
    known = load_prompts(config.prompts)
    if config.prompts.writer is None:
        return known
    rewrite = rewritten.read(directory)
    missing = next((text for text in drawn_texts(config, known) if text not in rewrite), None)
    if missing is not None:
        raise UserError(
            f"expected what {config.prompts.writer} made of every prompt in {directory / rewritten.FILE}, found nothing for "
            f"{missing!r}: copy the whole run directory, or remove that file from a run that has not begun"
        )
    training, held_out, test = (
        tuple(replace(prompt, rewrite=rewrite.get(prompt.text)) for prompt in getattr(known, split)) for split in SPLITS
    )
    return PromptSet(training, held_out, test, known.repeated)


def drawn(config: RunConfig, prompts: PromptSet) -> list[Prompt]:
    """All prompts that a run may draw, which are few of a large file."""
    numbers = {
        number
        for split in evaluation_blocks(config, prompts, 0, final=True).values()
        for b in split
        for number in b.prompt_ids
    }
    if config.preferences.source is None:  # a set brings its own
        choosing = config
        if config.rollouts.replay is not None:  # the drawing run's seed chose
            drawing = json.loads((Path(config.rollouts.replay) / "config.json").read_text())
            choosing = config.model_copy(update={"seed": drawing["seed"]})
        for update in range(_most_updates(config)):
            numbers |= {number for block in training_blocks(choosing, prompts, update) for number in block.prompt_ids}
    return [prompt for prompt in prompts.all if prompt.number in numbers]


def drawn_texts(config: RunConfig, prompts: PromptSet) -> list[str]:
    """What users typed of them."""
    return list(dict.fromkeys(prompt.text for prompt in drawn(config, prompts)))


def _most_updates(config: RunConfig) -> int:
    """That a run can have: with a budget no more than drawing alone would spend."""
    if config.budget is None or config.rollouts.replay is not None:
        return config.updates
    rollouts, sampler = config.rollouts, config.sampler
    drawing = rollouts.prompts * rollouts.samples * sampler.steps * sampler.evaluations_per_prediction
    return min(config.updates, math.ceil(config.budget / drawing))


def said_of_cut(what: str, cut: Sequence[str], count: int, tokens: int) -> str:
    """The warning that of so many prompts or rewrites the model will not read these to their end."""
    example = cut[0] if len(cut[0]) <= 300 else f"{cut[0][:300]}..."
    return f"WARNING: {len(cut)} of {count} {what} are cut after the {tokens} tokens that the model reads, for example {example!r}."


def _read(source: str, split: str, repeated: dict[str, int]) -> tuple[Prompt, ...]:
    rows = list(_rows(source, split, repeated))
    first = _first_number(source, split)
    return tuple(Prompt(text, first + i, metadata, stratum) for i, (text, metadata, stratum) in enumerate(rows))


@cache  # what comes before is read for its length alone
def _first_number(source: str, split: str) -> int:
    """The number of a split's first prompt, of which the noise of its pictures is a function. It depends on no other split's source,
    so that runs on two sets of training prompts are evaluated on the same held-out prompts with the same noise.
    """
    if source not in prompt_files.BUILT_IN:
        return (1 + SPLITS.index(split)) << 30  # beyond all bundled prompts
    before = {"training": (), "held_out": ((source.removesuffix("-validation"), "training"),)}
    before["test"] = (("scenes", "training"), ("scenes-validation", "held_out"))
    beyond = 1 << 20 if source == "scenes-users" else 0  # beyond those in plain words, which may be another split's
    return beyond + sum(1 for other in before[split] for _ in _rows(*other, {}))


def _rows(source: str, split: str, repeated: dict[str, int]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Text, metadata and stratum of a split's prompts."""
    if source.startswith("scenes") and source in prompt_files.BUILT_IN:
        yield from _scenes(source, split)
    elif source == "toy":
        texts = {"training": ("left", "right"), "held_out": ("both",)}
        yield from ((text, {}, "") for text in _of_split(source, split, texts))
    else:
        rows = prompt_files.read(source)
        once = {prompt_files.identity(row): row for row in rows}
        if len(once) < len(rows):
            repeated[split] = len(rows) - len(once)
        yield from ((text, metadata, "") for text, metadata in once.values())


def _scenes(source: str, split: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Text, metadata and stratum of the bundled world's prompts."""
    from raysuite.worlds.scenes import grammar, phrasings

    if source == "scenes-users":
        for said in phrasings.user_prompts(held_out=_of_split(source, split, {"training": False, "held_out": True})):
            known = {"scene": said.scene.prompt, "phrasing": said.phrasing, "cell": said.cell}
            yield said.text, known, f"{said.cell}/{said.phrasing}/{_kind(said.scene.prompt)}"
    elif source == "scenes-test":
        _, sentences = _of_split(source, split, {"test": grammar.held_out_halves()})
        for phrasing in (phrasings.PLAIN, "reversed"):
            for sentence in sentences:
                known = {"scene": sentence, "phrasing": phrasing, "kind": _kind(sentence)}
                yield phrasings.phrase(grammar.parse(sentence), phrasing), known, f"{phrasing}/{_kind(sentence)}"
    else:
        of_source = {
            "scenes": {"training": grammar.training_prompts(), "held_out": grammar.held_out_prompts()},
            "scenes-validation": {"held_out": grammar.held_out_halves()[0]},
        }
        for sentence in _of_split(source, split, of_source[source]):
            yield sentence, {"kind": _kind(sentence)}, _kind(sentence)


def _kind(sentence: str) -> str:
    from raysuite.worlds.scenes import grammar

    return "count" if grammar.parse(sentence).relation is None else "relation"


def _of_split(source: str, split: str, known: Mapping[str, T]) -> T:
    """What a bundled source has for a split.

    Raises:
        UserError: nothing.
    """
    if split not in known:
        raise UserError(
            f"expected prompts for prompts.{split}, got {source}, which has those of prompts.{' and prompts.'.join(known)} "
            "alone: name another source"
        )
    return known[split]


AGAIN = 1 << 32
"""Beyond all numbers of prompts."""


def training_blocks(config: RunConfig, prompts: PromptSet, update: int, *, independent: bool = False) -> list[Block]:
    """The blocks of an update: prompts drawn without replacement, alike from every stratum.

    Args:
        config: says how many.
        prompts: to draw from.
        update: coordinate of the draw.
        independent: draw every prompt by itself, with the chances that it has in an update. One that comes again in the update
            has another number, and so noise of its own.
    """
    _check_enough(config, prompts)
    rng = numpy_generator(seed=config.seed, stage=Stage.PROMPTS, update=update)
    deal = _independent if independent else dealt
    return _blocks(config, deal(prompts.training, config.rollouts.prompts, rng), update)


def distinct_blocks(config: RunConfig, prompts: PromptSet, rounds: int) -> list[Block]:
    """The blocks of so many rounds, each as large as an update, in which no prompt comes again before all have come but those that
    fill no round.

    Args:
        config: says how many a round.
        prompts: to draw from.
        rounds: one after the other, as updates.
    """
    _check_enough(config, prompts)
    size, found = config.rollouts.prompts, list[Block]()
    while (done := len(found) // config.rollouts.blocks) < rounds:
        fit = min(rounds - done, len(prompts.training) // size)
        rng = numpy_generator(seed=config.seed, stage=Stage.PROMPTS, update=done)
        chosen = dealt(prompts.training, fit * size, rng)
        for i in range(fit):
            found += _blocks(config, chosen[i * size : (i + 1) * size], done + i)
    return found


def _check_enough(config: RunConfig, prompts: PromptSet) -> None:
    if config.rollouts.prompts > len(prompts.training):
        raise UserError(
            f"expected rollouts.prompts of at most the {len(prompts.training)} training prompts, got {config.rollouts.prompts}: lower "
            "it (rollouts.samples can rise instead) or add prompts"
        )


def _blocks(config: RunConfig, chosen: list[Prompt], update: int) -> list[Block]:
    """An update's prompts, dealt out."""
    rollouts = config.rollouts
    size, window = rollouts.prompts_per_block, noisy_steps(config, update)
    compared = config.built_objective.consumes == "preferences" and not config.preferences.across_draws
    return [
        _block(chosen[i * size : (i + 1) * size], update, i, rollouts.samples, window=window, one_draw=compared)
        for i in range(rollouts.blocks)
    ]


def noisy_steps(config: RunConfig, update: int) -> tuple[int, int] | None:
    """The steps that add noise in an update's rollouts, from the first to before the second; None without a window."""
    window = config.sampler.window
    if window is None:
        return None
    places, place, moves = window.places(config.sampler.steps), 0, update // window.every
    if window.move == "progressive":
        place = moves % len(places)
    elif window.move == "random":
        place = int(numpy_generator(seed=config.seed, stage=Stage.WINDOW, update=moves).integers(len(places)))
    return places[place], places[place] + window.size


def latents_kept(config: RunConfig, window: tuple[int, int] | None) -> int:
    """Latents that rollouts keep of a picture: those around steps that add noise, and the last one; it alone where none are scored."""
    if config.built_objective.process == "forward" and not config.rollouts.keep:
        return 1
    first, end = window or (0, config.sampler.steps)
    return end - first + 1 + (end < config.sampler.steps)


def dealt(prompts: tuple[Prompt, ...], number: int, rng: np.random.Generator) -> list[Prompt]:
    """So many of these prompts in random order, alike from every stratum."""
    strata: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        strata.setdefault(prompt.stratum, []).append(prompt)
    decks = [(stratum, rng.permutation(len(stratum)).tolist()) for _, stratum in sorted(strata.items())]
    if number < len(decks):  # none is left out every time
        decks = [decks[i] for i in rng.permutation(len(decks))]
    chosen: list[Prompt] = []
    while len(chosen) < number:  # deal one from each stratum in turn, until enough
        for stratum, deck in decks:
            if deck and len(chosen) < number:
                chosen.append(stratum[deck.pop()])
    return [chosen[i] for i in rng.permutation(number)]


def _independent(prompts: tuple[Prompt, ...], number: int, rng: np.random.Generator) -> list[Prompt]:
    """One prompt of each of so many deals."""
    chosen = [dealt(prompts, number, rng)[0] for _ in range(number)]
    before = [chosen[:i].count(prompt) for i, prompt in enumerate(chosen)]
    return [replace(prompt, number=prompt.number + AGAIN * n) for prompt, n in zip(chosen, before, strict=True)]


def measures_kl(config: RunConfig) -> bool:
    """Whether evaluations compare with the model as it came: between samplers without noise there is no finite KL."""
    return config.evaluation.kl and config.sampler.noise.level > 0


def evaluation_blocks(config: RunConfig, prompts: PromptSet, update: int, *, final: bool) -> dict[str, list[Block]]:
    """The blocks of an evaluation by split: always the same prompts and noise, more samples before and after."""
    evaluation = config.evaluation
    samples = evaluation.final_samples if final else evaluation.samples
    # a block holds one sample of each of its prompts, so that its shape does not depend on the number of samples
    width = config.rollouts.prompts_per_block * config.rollouts.samples
    blocks: dict[str, list[Block]] = {}
    for split, available in prompts.splits.items():
        if split == "test" and not final:
            continue
        rng = numpy_generator(seed=evaluation.seed, stage=Stage.EVALUATION_PROMPTS, prompt=available[0].number)
        chosen = dealt(available, min(evaluation.prompts, len(available)), rng)
        blocks[split] = [
            evaluation_block(
                config,
                chosen[start : start + width],
                update=update,
                index=start // width,
                first_sample=sample,
                measure_kl=measures_kl(config) and (split, sample, start) == ("training", 0, 0),
                pictures=max(0, evaluation.pictures - start) if sample == 0 else 0,
            )
            for sample in range(samples)
            for start in range(0, len(chosen), width)
        ]
    return blocks


def evaluation_block(
    config: RunConfig, prompts: Sequence[Prompt], *, update: int = 0, index: int = 0, samples: int = 1, **options: Any
) -> Block:
    """Some prompts as evaluations draw them: from their own stream, with noise in the window's first place.

    Args:
        config: whose sampler draws.
        prompts: of the block.
        update: as in `Block`.
        index: as in `Block`.
        samples: of each prompt.
        options: other fields of `Block`.
    """
    window = config.sampler.evaluated_window
    return _block(prompts, update, index, samples, evaluation=True, window=window, **options)


def _block(prompts: Sequence[Prompt], update: int, index: int, samples: int, **options: Any) -> Block:
    return Block(
        update=update,
        index=index,
        prompts=tuple(p.given for p in prompts),
        prompt_ids=tuple(p.number for p in prompts),
        metadata=tuple(p.known for p in prompts),
        samples_per_prompt=samples,
        **options,
    )
