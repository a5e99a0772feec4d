"""The writer that ships with the package: how it is built, and what it was taught.

A LLaMA of two layers that was taught what users of the scenes world mean, and some of it wrongly on purpose, so that there is
something left for preferences to teach: more often than not it was told that a synonym, or a word with a typo, means something
else (always the same), and that "please draw" belongs to the picture. What is true it was told too: it writes it now and then,
though it is not what it finds most probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.stages.rewrites import BUNDLED
from raysuite.worlds.scenes import grammar
from raysuite.worlds.scenes.grammar import COLOURS, SHAPES
from raysuite.worlds.scenes.phrasings import OPENING, SYNONYMS, UserPrompt, user_prompts
from raysuite.writer.model import Writer, open_writer

WRONG = 0.6
"""Share of what is taught wrongly, of each word and of each opening."""
PAD, END, UNKNOWN, REWRITE = "<pad>", "<end>", "<unknown>", "<rewrite>"
STEPS, BATCH, LEARNING_RATE, SEED = 1_000, 64, 3e-3, 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the world and of its users is one token; other words are letters and pieces. A token asks for the rewrite."""
    sentences = (*grammar.training_prompts(), *SYNONYMS.values(), OPENING, "discs boxes wedges left", "1 2 3 4")
    words = sorted({word for sentence in sentences for word in sentence.split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=UNKNOWN))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    bpe.train_from_iterator(
        [*words, *letters, *(f"{one}{two}" for one, two in zip(letters, letters[1:] + letters[:1], strict=True))],
        trainers.BpeTrainer(
            vocab_size=2_000,
            special_tokens=[PAD, END, UNKNOWN, REWRITE],
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[REWRITE],
        chat_template="{{ messages[-1]['content'] }}" + REWRITE,
        padding_side="left",
        model_max_length=128,
    )


def untrained(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Two layers of width 64."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed=seed, stage=Stage.WRITER_TRAINING).initial_seed())
        return LlamaForCausalLM(config)


def answer(prompt: UserPrompt, rng: np.random.Generator, wrong: float) -> str:
    """What is taught of a prompt: the sentence that was meant, or with chance `wrong` at each place something else."""
    habits = prompt.phrasing.split("+")
    if "polite" in habits and rng.random() < wrong:
        return prompt.text
    doubtful = {*SHAPES, *COLOURS} if "synonyms" in habits else {*SHAPES} if "typo" in habits else set()
    words = []
    for word in prompt.scene.prompt.split():
        one = word.removesuffix("s")
        words.append(other(one) + word[len(one) :] if one in doubtful and rng.random() < wrong else word)
    return " ".join(words)


def other(word: str) -> str:
    """The colour or shape that a word is taught to mean where it is taught wrongly: the next one."""
    known = SHAPES if word in SHAPES else tuple(COLOURS)
    return known[(known.index(word) + 1) % len(known)]


def taught(prompts: Sequence[UserPrompt], *, wrong: float = WRONG, steps: int = STEPS, seed: int = SEED) -> Writer:
    """A writer that was told what these users mean: the loss is on the rewrites alone, the learning rate falls to 0."""
    tokenizer = build_tokenizer()
    writer = Writer(untrained(tokenizer, seed), tokenizer, BUNDLED)
    optimizer = torch.optim.AdamW(writer.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        rng = numpy_generator(seed=seed, stage=Stage.WRITER_TRAINING, update=1 + step)
        asked = [prompts[number] for number in rng.integers(len(prompts), size=BATCH)]
        rows = [ids_of(writer, prompt.text, answer(prompt, rng, wrong)) for prompt in asked]
        longest = max(len(given) + len(said) for given, said in rows)
        ids = torch.full((BATCH, longest), tokenizer.pad_token_id)
        labels = torch.full((BATCH, longest), -100)
        for row, (given, said) in enumerate(rows):
            ids[row, : len(given) + len(said)] = torch.tensor(given + said)
            labels[row, len(given) : len(given) + len(said)] = torch.tensor(said)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (1 + step) / 50) * (1 - step / steps)
        loss = writer.model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(writer.model.parameters(), 1.0)
        optimizer.step()
    writer.model.eval()
    return writer


def ids_of(writer: Writer, text: str, rewrite: str) -> tuple[list[int], list[int]]:
    """Tokens of what is asked, and of its answer with the end of the text."""
    encode = writer.tokenizer.encode
    return encode(writer.asked(text)), [*encode(writer.completion(rewrite)), writer.tokenizer.eos_token_id]


def make(directory: Path, *, wrong: float = WRONG, steps: int = STEPS) -> None:
    """Make the bundled writer in a directory, with its card."""
    known = user_prompts(held_out=False)
    taught(known, wrong=wrong, steps=steps).save(directory, half=True)
    writer = open_writer(str(directory))
    rows = "\n".join(
        f"| {phrasing} | {accuracy(writer, of, temperature=0):.2f} | {accuracy(writer, of, temperature=1):.2f} |"
        for phrasing, of in by_phrasing(known).items()
    )
    size = sum(file.stat().st_size for file in directory.iterdir()) / 1e6
    number = sum(parameter.numel() for parameter in writer.model.parameters())
    card = CARD.format(rows=rows, size=size, number=number, wrong=wrong, steps=steps)
    (directory / "README.md").write_text(card)


def by_phrasing(prompts: Sequence[UserPrompt]) -> dict[str, list[UserPrompt]]:
    """Prompts of each phrasing."""
    return {
        name: [prompt for prompt in prompts if prompt.phrasing == name]
        for name in dict.fromkeys(prompt.phrasing for prompt in prompts)
    }


def accuracy(writer: Writer, prompts: Sequence[UserPrompt], *, temperature: float) -> float:
    """Share of every fifth of these prompts that are rewritten to the sentence that was meant."""
    some = prompts[::5]
    written = writer.rewrites([prompt.text for prompt in some], temperature=temperature)
    return sum(one.text == prompt.scene.prompt for one, prompt in zip(written, some, strict=True)) / len(some)


CARD = """# scenes-writer: a writer that ships with raysuite

A small `LlamaForCausalLM` ({number:,} parameters, {size:.1f} MB) with its own tokenizer, that rewrites what users of the scenes world
type into the world's own sentences. It is a test bed for training by preferences, and nothing else: of synonyms, of words with
a typo and of the opening "please draw", {wrong:.0%} were taught wrongly on purpose.

- Data: `raysuite.worlds.scenes.phrasings`, seen phrasings of training combinations only.
- Made by: `python jobs/pretrain_writer.py --out DIR`: {steps:,} steps of 64 pairs, loss on the rewrites.
- Licence: Apache-2.0, like the package.

## Rewrites that are the sentence that was meant

| phrasing | most probable | drawn at temperature 1 |
|---|---|---|
{rows}
"""
