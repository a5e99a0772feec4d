"""What text encoders made of prompts: kept on the CPU within a budget of bytes, written to files, read from them.

An encoder's answer is a tensor, None, or a list or tuple of answers, whatever the pipeline's `encode_prompt` gives. It is
kept under the question it answers: a prompt with all arguments that may change the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from raysuite.devices import sent
from raysuite.errors import UserError
from raysuite.places import replacing

Answer = Any
"""A tensor, None, or a list or tuple of answers."""
TextStates = Mapping[str, Answer]
"""Answers by question."""

REMEMBERED_BYTES = 2**32
"""Of answers kept by a process: 4 GiB, which is 14,000 prompts of SDXL, 1,000 of FLUX.1, 270 of FLUX.2-dev."""


def tensors_of(answer: Answer) -> Iterator[Tensor]:
    """All tensors of an answer, in order."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, list | tuple):
        for part in answer:
            yield from tensors_of(part)


class TextMemory:
    """Answers by question. The longest unused go when there are more bytes than the budget.

    Tensors that are equal are there once: a negative prompt's in the answers to all guided questions, a prompt's in those with
    guidance and without.
    """

    def __init__(self, budget: int = REMEMBERED_BYTES, directory: Path | None = None) -> None:
        """An empty memory.

        Args:
            budget: bytes.
            directory: where all answers are written, and read again as they are asked for, by whatever process.
        """
        self.budget, self.directory = budget, directory
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._tensors: dict[str, Tensor] = {}
        self._uses: Counter[str] = Counter()
        self._digests: dict[int, str] = {}
        """Of the tensors that are kept, by their identity."""
        self.bytes = 0

    def get(self, question: str) -> Answer:
        """The answer, from memory or from the directory.

        Raises:
            KeyError: it is in neither.
        """
        if question not in self._answers:
            path = None if self.directory is None else _answer_file(self.directory, question)
            if path is None or not path.is_file():
                raise KeyError(question)
            self.keep(question, unpack(json.loads(path.read_text()), self._tensor)[question])
        self._answers.move_to_end(question)
        return self._answers[question]

    def put(self, question: str, answer: Answer) -> None:
        """Keep an answer on the CPU, and write it down where there is a directory."""
        self.keep(question, answer)
        if self.directory is not None:
            self._write(self.directory, question)

    def keep(self, question: str, answer: Answer) -> None:
        """Keep an answer on the CPU."""
        kept = self._kept(answer)
        self._forget(question)
        self._answers[question] = kept
        while self.bytes > self.budget and len(self._answers) > 1:
            self._forget(next(iter(self._answers)))

    def keep_together(self, answers: TextStates) -> None:
        """Keep answers that are needed at once, whatever the budget was: it grows to what they take."""
        found = {id(tensor): tensor.nbytes for answer in answers.values() for tensor in tensors_of(answer)}
        self.budget = max(self.budget, sum(found.values()))
        for question, answer in answers.items():
            self.keep(question, answer)

    def _kept(self, answer: Answer) -> Answer:
        if isinstance(answer, list | tuple):
            return type(answer)(self._kept(part) for part in answer)
        if not isinstance(answer, Tensor):
            if answer is not None:
                raise UserError(
                    f"expected tensors from the pipeline's encode_prompt, got {type(answer).__name__}: this pipeline class is not "
                    "supported"
                )
            return None
        tensor = answer.detach().cpu().contiguous()
        content = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
        digest = f"{tensor.dtype} {tuple(tensor.shape)} {content}"
        if digest not in self._tensors:
            self._tensors[digest], self._digests[id(tensor)] = tensor, digest
            self.bytes += tensor.nbytes
        self._uses[digest] += 1
        return self._tensors[digest]

    def _write(self, directory: Path, question: str) -> None:
        """An index for the answer, and a file for each of its tensors that has none: several answers may have it."""
        kept = self._answers[question]
        for tensor in tensors_of(kept):
            file = _tensor_file(directory, self._digests[id(tensor)])
            if not file.exists():
                with replacing(file) as temporary:
                    safetensors.torch.save_file({"tensor": tensor}, temporary)
        with replacing(_answer_file(directory, question)) as temporary:  # last: whoever finds it finds its tensors
            temporary.write_text(json.dumps({question: _plain(kept, lambda tensor: self._digests[id(tensor)])}))

    def _tensor(self, digest: str) -> Tensor:
        if digest in self._tensors:
            return self._tensors[digest]
        assert self.directory is not None
        return safetensors.torch.load_file(_tensor_file(self.directory, digest))["tensor"]

    def _forget(self, question: str) -> None:
        for tensor in tensors_of(self._answers.pop(question, None)):
            digest = self._digests[id(tensor)]
            self._uses[digest] -= 1
            if not self._uses[digest]:
                self.bytes -= tensor.nbytes
                del self._tensors[digest], self._uses[digest], self._digests[id(tensor)]


# as one batch


def form(answer: Answer) -> Any:
    """What answers must have in common to be joined: shapes, but for those in lists, of which each prompt has its own."""
    if isinstance(answer, Tensor):
        return tuple(answer.shape)
    return tuple(map(form, answer)) if isinstance(answer, tuple) else type(answer).__name__


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers of one form as the encoder would have given them for a batch.

    The batch is the first axis of length 1 of the first two; a tensor that has none (ids of tokens) is common to all prompts.
    """
    first = answers[0]
    if len(answers) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        axis = next((axis for axis in (0, 1) if first.shape[axis : axis + 1] == (1,)), None)
        return first if axis is None else torch.cat(list(answers), dim=axis)
    if isinstance(first, list):
        return [part for answer in answers for part in answer]
    return tuple(joined(parts) for parts in zip(*answers, strict=True))


def moved(answer: Answer, device: torch.device) -> Answer:
    """An answer on another device."""
    if isinstance(answer, Tensor):
        return sent(answer, device)
    return type(answer)(moved(part, device) for part in answer) if isinstance(answer, list | tuple) else answer


# in files


def pack(states: TextStates) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Answers as named tensors and plain values, for a file. A tensor that several answers share is there once."""
    tensors: dict[str, Tensor] = {}
    known: dict[int, str] = {}

    def named(tensor: Tensor) -> str:
        name = known.setdefault(id(tensor), f"text/{len(known)}")
        tensors[name] = tensor.contiguous()
        return name

    return tensors, {question: _plain(answer, named) for question, answer in states.items()}


def _plain(answer: Answer, named: Callable[[Tensor], str]) -> Any:
    """An answer with names in place of its tensors."""
    if isinstance(answer, Tensor):
        return named(answer)
    if isinstance(answer, list | tuple):
        return {type(answer).__name__: [_plain(part, named) for part in answer]}
    return None


def unpack(index: Mapping[str, Any], tensor: Any) -> dict[str, Answer]:
    """The inverse of `pack`; `tensor` gives a tensor by its name."""

    def answer(plain: Any) -> Answer:
        if isinstance(plain, dict):
            ((kind, parts),) = plain.items()
            return {"list": list, "tuple": tuple}[kind](answer(part) for part in parts)
        return None if plain is None else tensor(plain)

    return {question: answer(plain) for question, plain in index.items()}


def _answer_file(directory: Path, question: str) -> Path:
    """Where the answer to a question is written: named by a digest, since prompts are no file names."""
    return directory / f"{_hashed(question)}.json"


def _tensor_file(directory: Path, digest: str) -> Path:
    return directory / f"{_hashed(digest)}.safetensors"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
