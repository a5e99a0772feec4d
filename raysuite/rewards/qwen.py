"""Qwen's vision-language models: a question about a picture, and what comes next.

Their own processors want torchvision, for films; here tokenizer and image processor do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from raysuite.errors import UserError
from raysuite.rewards.network import (
    check_directory,
    check_network,
    load,
    network_of,
    processed,
    processor_of,
    tokenizer_of,
)

NEEDS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Large weights come in several files."""
OTHERWISE = (
    "name the hub id of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL, or a directory that it was saved to with its processor"
)
PLACE = "<|image_pad|>"
"""Where a picture goes in a text: as many times as it has tokens."""
SYSTEM = {"qwen2_vl": "You are a helpful assistant.", "qwen2_5_vl": "You are a helpful assistant.", "qwen3_vl": ""}
"""What each kind is told before a question, as its chat template has it."""


def conversation(kind: str, question: str) -> str:
    """A question about one picture in the form that a kind of model was trained on."""
    system = SYSTEM[kind]
    told = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{told}<|im_start|>user\n<|vision_start|>{PLACE}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"


class Reader:
    """Conversations about pictures as a model's input: the tokenizer and image processor of a directory or hub id.

    Args:
        model: that.
        kind: `model_type` of its configuration.
        side: on which shorter texts of a batch are padded, `left` where they go on.
    """

    def __init__(self, model: str, kind: str, *, side: str = "left", otherwise: str = OTHERWISE) -> None:
        self.kind = kind
        self.tokenizer = tokenizer_of(model, otherwise)
        self.tokenizer.padding_side = side
        self.processor = processor_of(model, otherwise)
        self.place = self.tokenizer.convert_tokens_to_ids(PLACE)

    def __call__(self, images_N: np.ndarray, questions_N: Sequence[str], **size: Any) -> dict[str, Tensor]:
        """Pictures, uint8 (N, H, W, 3), and a question of each; `size` is told to the image processor."""
        seen = processed(self.processor, images_N, **size)
        counts = (seen["image_grid_thw"].prod(-1) // self.processor.merge_size**2).tolist()
        texts = [
            conversation(self.kind, question).replace(PLACE, PLACE * count, 1)
            for question, count in zip(questions_N, counts, strict=True)
        ]
        read = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        return {
            "input_ids": read["input_ids"],
            "attention_mask": read["attention_mask"],
            "mm_token_type_ids": (read["input_ids"] == self.place).long(),  # what the processor says of positions
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }


class QwenVL:
    """A model of transformers that answers questions about pictures.

    Args:
        model: hub id, or a directory with weights in safetensors, tokenizer and image processor.
        device: where it is.
        precision: what it runs in, `float32`, `bfloat16` (as published) or `float16`.
        batch: pairs of picture and question that go through it at once.
    """

    def __init__(self, model: str, *, device: str = "cpu", precision: str = "bfloat16", batch: int = 8) -> None:
        self.check(model, precision=precision, batch=batch)
        self.model, self.device, self.batch = model, torch.device(device), batch
        self.read = Reader(model, kind_of(model))
        network = network_of(
            AutoModelForImageTextToText, model, "a vision-language model", OTHERWISE, dtype=getattr(torch, precision)
        )
        self.network = network.to(self.device).requires_grad_(False).eval()

    @staticmethod
    def check(model: str, *, precision: str = "bfloat16", batch: int = 8) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        check_directory(model, NEEDS, OTHERWISE)
        check_network(model, precision, batch)

    def next_words(self, images_N: np.ndarray, questions_N: Sequence[str]) -> Tensor:
        """Probabilities (N, vocabulary), float32, of the first token of an answer."""
        found = []
        for part in self._parts(len(questions_N)):
            inputs = self._inputs(images_N[part], questions_N[part])
            found.append(self.network(**inputs, logits_to_keep=1).logits[:, -1].float().softmax(-1).cpu())
        return torch.cat(found)

    def answers(self, images_N: np.ndarray, questions_N: Sequence[str], tokens: int) -> list[str]:
        """The most probable words, one after the other, at most as many tokens."""
        found: list[str] = []
        for part in self._parts(len(questions_N)):
            inputs = self._inputs(images_N[part], questions_N[part])
            said = self.network.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
            said = said[:, inputs["input_ids"].shape[1] :]
            found += self.read.tokenizer.batch_decode(said, skip_special_tokens=True)
        return found

    def _inputs(self, images_N: np.ndarray, questions_N: Sequence[str]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in self.read(images_N, questions_N).items()}

    def _parts(self, count: int) -> list[slice]:
        return [slice(first, first + self.batch) for first in range(0, count, self.batch)]


def kind_of(model: str) -> str:
    """Which of the kinds a model is.

    Raises:
        UserError: it is another one.
    """
    kind = load(lambda: AutoConfig.from_pretrained(model), "a configuration", model, OTHERWISE).model_type
    if kind not in SYSTEM:
        raise UserError(f"expected a model of {', '.join(SYSTEM)} at {model}, got {kind}: {OTHERWISE}")
    return kind
