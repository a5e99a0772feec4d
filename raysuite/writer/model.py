"""A writer: any causal language model of transformers with its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from raysuite.errors import UserError, in_a_line
from raysuite.rng import Stage, torch_generator
from raysuite.stages.rewrites import BUNDLED, place_of

INSTRUCTION = (
    "Rewrite the request as a prompt for a text-to-image model. Keep its meaning. Answer with the prompt alone."
)
"""What writers with a chat template are told; those without one are trained to know."""
PLAIN_END = "\nRephrase:"
"""What ends the user's text for a writer without a chat template."""
TOKENS = 32
"""That a rewrite has at most; one that has not ended by then is unfinished."""
THOUGHT, THOUGHT_OVER = "<think>", "</think>"
"""Between which writers think aloud, which is no prompt."""
BATCH = 64


@dataclass(frozen=True)
class Rewrite:
    """What a writer made of a prompt."""

    text: str
    logp: float
    """Log-density under the writer that drew it, at temperature 1 and with the end of the text, nats."""
    ended: bool = True
    """Whether the writer ended it, rather than the number of tokens that a rewrite may have."""


class Writer:
    """A language model that rewrites prompts.

    Args:
        model: a causal language model.
        tokenizer: its own, with a token that ends a text.
        name: for the record.

    Raises:
        UserError: no token ends its texts, or its chat template takes no user's turn or begins a thought.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        if tokenizer.eos_token is None:
            raise UserError(f"expected a writer whose tokenizer has an end-of-text token, got {name}: name another")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"  # what is written goes on where the prompt ends
        self._told_apart = True  # what writers are told has a turn of its own
        if tokenizer.chat_template is not None:
            self._try_template()

    def save(self, directory: Path, *, half: bool = False) -> None:
        """As transformers loads it; in half precision if need be."""
        model = copy.deepcopy(self.model).half() if half else self.model
        transformers_logging.disable_progress_bar()
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def asked(self, text: str) -> str:
        """The text that the model goes on from: the user's in the model's chat template, or with `Rephrase:` after it."""
        if self.tokenizer.chat_template is None:
            return text + PLAIN_END
        said = [{"role": "user", "content": text if self._told_apart else f"{INSTRUCTION}\n\n{text}"}]
        if self._told_apart:
            said = [{"role": "system", "content": INSTRUCTION}, *said]
        asked = cast(
            str,
            # a template that knows no thoughts ignores what it is told of them
            self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False, enable_thinking=False),
        )
        put_by_tokenizer = self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return asked.removeprefix(self.tokenizer.bos_token) if put_by_tokenizer else asked

    def _try_template(self) -> None:
        """Find out whether the chat template knows a system's turn, which some refuse, and whether it lets a writer answer at once.

        Raises:
            UserError: it takes no user's turn either, or begins a thought.
        """
        try:
            asked = self.asked("a cat")
        except TemplateError:
            self._told_apart = False
            try:
                asked = self.asked("a cat")
            except TemplateError as error:
                raise UserError(
                    f"expected a writer whose chat template takes a user's turn, got {self.name}: {error}; mend the template, or name "
                    "another"
                ) from error
        if asked.rfind(THOUGHT) > asked.rfind(THOUGHT_OVER):
            raise UserError(
                f"expected a writer that answers without thinking aloud, got {self.name}, whose chat template begins a thought "
                f"({THOUGHT}) with enable_thinking=False, too: name another"
            )

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text: the tokenizer's, and all that the model declares, such as the end of a turn. TRL takes the same."""
        declared = self.model.generation_config.eos_token_id
        several = declared if isinstance(declared, list) else [] if declared is None else [declared]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *several]))

    def completion(self, rewrite: str) -> str:
        """A rewrite as it follows what the model was asked."""
        return rewrite if self.tokenizer.chat_template is not None else f" {rewrite}"

    @torch.no_grad()
    def rewrites(
        self,
        texts: Sequence[str],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        draw: int = 0,
        tokens: int = TOKENS,
    ) -> list[Rewrite]:
        """One rewrite of each text.

        Args:
            texts: what users typed.
            temperature: of the draws; 0 takes the most probable token each time.
            seed: of the draws.
            numbers: of the prompts, coordinates of the draws; their places by default.
            draw: number of the draw.
            tokens: that a rewrite has at most.

        Raises:
            UserError: the writer thinks aloud.
        """
        found: list[Rewrite] = []
        for first in range(0, len(texts), BATCH):
            part = texts[first : first + BATCH]
            own = range(first, first + len(part)) if numbers is None else numbers[first : first + BATCH]
            uniform = [
                torch.rand(tokens, generator=torch_generator(seed=seed, stage=Stage.WRITER, prompt=number, sample=draw))
                for number in own
            ]
            found += self._written([self.asked(text) for text in part], torch.stack(uniform), temperature)
        return found

    def _written(self, asked: Sequence[str], uniform_NT: Tensor, temperature: float) -> list[Rewrite]:
        """Continuations by the inverse of the distribution function: a token takes one uniform number of its row."""
        batch = self.tokenizer(list(asked), return_tensors="pt", padding=True)
        device, known = self.model.device, None
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
        ends = torch.tensor(self.ends, device=device)
        logps, written = torch.zeros(len(ids), device=device), []
        for uniform_N in uniform_NT.to(device).unbind(1):
            output = self.model(
                input_ids=ids if known is None else ids[:, -1:],
                attention_mask=mask,
                position_ids=_positions(mask) if known is None else _positions(mask)[:, -1:],
                past_key_values=known,
                use_cache=True,
                logits_to_keep=1,
            )
            if not hasattr(output, "past_key_values"):
                raise UserError(
                    f"expected a writer that keeps the keys and values of attention, got {self.name}, a {type(self.model).__name__}: "
                    "name another"
                )
            known, logits = output.past_key_values, output.logits[:, -1].float()
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                steps = (logits / temperature).softmax(-1).cumsum(-1)
                below = uniform_N[:, None] * steps[:, -1:]  # the last step is 1 but for rounding
                token = torch.searchsorted(steps, below, right=True)[:, 0].clamp_max(logits.shape[1] - 1)
            logps += torch.where(ended, 0.0, logits.log_softmax(-1).gather(1, token[:, None])[:, 0])
            token = torch.where(ended, self.tokenizer.pad_token_id, token)
            ended = ended | torch.isin(token, ends)
            written.append(torch.where(ended, self.tokenizer.eos_token_id, token))
            if ended.all():
                break
            ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        texts = self.tokenizer.batch_decode(torch.stack(written, 1), skip_special_tokens=True)
        self.check_thoughts(texts)
        return [
            Rewrite(" ".join(text.split()), float(logp), bool(over))
            for text, logp, over in zip(texts, logps, ended, strict=True)
        ]

    def check_thoughts(self, texts: Sequence[str]) -> None:
        """Refuse what thinks aloud.

        Raises:
            UserError: a text of these does.
        """
        if (thought := next((text for text in texts if THOUGHT in text), None)) is not None:
            raise UserError(
                f"expected prompts from the writer {self.name}, got a thought, {thought[:100]!r}: name one that answers without "
                "thinking aloud"
            )

    @torch.no_grad()
    def log_densities(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Log-density (N,) of completions after prompts, as a set of preferences has them, with the end of the text, nats.

        A prompt and its completion are one text for the tokenizer; what differs from the prompt alone is the completion.
        """
        found = []
        for first in range(0, len(prompts), BATCH):
            rows, starts = [], []
            for prompt, completion in zip(
                prompts[first : first + BATCH], completions[first : first + BATCH], strict=True
            ):
                alone = self.tokenizer(prompt)["input_ids"]
                whole = self.tokenizer(prompt + completion + self.tokenizer.eos_token)["input_ids"]
                same = (one == other for one, other in zip(alone, whole, strict=False))
                starts.append(next((place for place, equal in enumerate(same) if not equal), len(alone)))
                rows.append(whole)
            longest = max(map(len, rows))
            pad = self.tokenizer.pad_token_id
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            wanted = torch.tensor(
                [
                    [0] * (longest - len(row) + start) + [1] * (len(row) - start)
                    for row, start in zip(rows, starts, strict=True)
                ]
            )
            ids, mask, wanted = (tensor.to(self.model.device) for tensor in (ids, mask, wanted))
            # a vocabulary of logits for every token would be most of the memory: those before what was said are not asked for
            said = min(int(wanted.sum(1).max()), longest - 1)
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=said + 1
            ).logits[:, -(said + 1) : -1]
            each = torch.zeros(wanted[:, 1:].shape, device=wanted.device)
            each[:, -said:] = logits.float().log_softmax(-1).gather(2, ids[:, -said:, None])[..., 0]
            found.append((each * wanted[:, 1:]).sum(1).cpu())
        return torch.cat(found)


def _positions(mask: Tensor) -> Tensor:
    """Of every token, whatever pads its row."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def open_writer(name: str) -> Writer:
    """The writer of a name: the bundled one, the `--out` of a training, a directory, or a hub id.

    Raises:
        UserError: there is none, or it is no causal language model with a tokenizer.
    """
    place = place_of(name)
    transformers_logging.disable_progress_bar()  # of files that are read in a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError) as error:
        gone = Path(name).is_absolute() and not Path(name).exists()  # what a hub says of it would mislead
        reason = "there is nothing at this path" if gone else in_a_line(error, 200)
        raise UserError(
            f"expected a writer ({BUNDLED}, the --out of raysuite writer train, a causal language model's directory or hub id), "
            f"got {name}: {reason}; name another"
        ) from error
    return Writer(model, tokenizer, name)
