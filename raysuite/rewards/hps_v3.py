"""Human Preference Score, version 3: what people preferred on HPDv3, as Qwen2-VL judges a picture for its prompt."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLForConditionalGeneration

from raysuite import places
from raysuite.errors import UserError
from raysuite.rewards.network import check_converted, check_network, load, network_of, processor_of, tokenizer_of
from raysuite.rewards.qwen import Reader

MODEL, HEAD, TEMPLATE = "model.safetensors", "head.safetensors", "template.txt"
NEEDS = ("config.json", MODEL, HEAD, TEMPLATE, "preprocessor_config.json", "tokenizer_config.json")
BASE = "Qwen/Qwen2-VL-7B-Instruct"
"""Whose configuration, tokenizer and image processor the published weights go with."""
REWARD = "<|Reward|>"
"""The token at which the head reads."""
PROMPT = "{text_prompt}"
PIXELS = 256 * 28 * 28
"""Of every picture, whatever its size: 448 x 448 for a square one."""
DIGEST = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
"""SHA-256 of the instruction with which version 1.0.0 of the package asks."""
CONSTANTS = ("INSTRUCTION", "prompt_with_special_token")
"""Which it is made of, in the package's hpsv3/dataset/data_collator_qwen.py."""
LAYERS = (0, 3, 5)
"""Of the head, as the published file counts them, with its dropouts and rectifiers."""


class HpsV3:
    """The mean of the score that the network predicts: means of models on its benchmark are -0.2 to 10.6.

    After picture, instruction and prompt it reads one token, and predicts mean and standard deviation. The published network was
    trained with places that count tokens one by one, those of pictures too, where Qwen2-VL counts rows and columns; so it is run here.

    Source: Ma et al., "HPSv3", 2025, and the package hpsv3, whose instruction, picture size, places and head these are. Checked on a
    tiny random Qwen2-VL against a computation that reads pictures and texts anew; not run on the published weights, nor beside the
    package, which demands an older transformers.

    Args:
        model: directory made by `raysuite rewards convert hps_v3`.
        device: where the network is.
        precision: what it runs in; the head is float32 in any case.
        batch: pictures that go through it at once.
    """

    OTHERWISE = (
        "download HPSv3.safetensors of MizzenAI/HPSv3, and name the directory that `raysuite rewards convert hps_v3 FILE --template "
        "data_collator_qwen.py --out DIR` makes of it"
    )

    def __init__(
        self, model: str | None = None, *, device: str = "cpu", precision: str = "bfloat16", batch: int = 8
    ) -> None:
        self.check(model, precision=precision, batch=batch)
        self.model, self.device, self.batch = str(model), torch.device(device), batch
        directory = places.whole(self.model)
        self._read = Reader(str(directory), "qwen2_vl", side="right", otherwise=self.OTHERWISE)
        self._marker = self._read.tokenizer.convert_tokens_to_ids(REWARD)
        self._template = (directory / TEMPLATE).read_bytes().decode("utf-8")  # ends of lines as they are
        whole = network_of(
            Qwen2VLForConditionalGeneration,
            str(directory),
            "a Qwen2-VL",
            self.OTHERWISE,
            needless=("lm_head.weight",),  # no words are asked for
            dtype=getattr(torch, precision),
        )
        self._network = whole.model.to(self.device).requires_grad_(False).eval()
        head = load(lambda: load_file(directory / HEAD), "weights of the head", self.model, self.OTHERWISE)
        self._head = head_like(head)
        self._head.load_state_dict(head)
        self._head = self._head.to(self.device).requires_grad_(False).eval()

    @classmethod
    def check(cls, model: str | None, *, precision: str = "bfloat16", batch: int = 8, **options: Any) -> None:
        """Refuse a directory that lacks something, and options that make no sense."""
        check_converted("hps_v3", model, NEEDS, cls.OTHERWISE)
        check_network(str(model), precision, batch)

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Means (N,) of pictures, uint8 (N, H, W, 3), for their prompts."""
        return self.distributions(images, prompts)[:, 0].double().numpy()

    @torch.no_grad()
    def distributions(self, images: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """Mean and standard deviation of each picture's score, (N, 2), float32, on the processor."""
        found = []
        for first in range(0, len(images), self.batch):
            part = slice(first, first + self.batch)
            texts = [self._template.replace(PROMPT, prompt) for prompt in prompts[part]]
            inputs = self._read(images[part], texts, size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
            tokens = inputs["input_ids"]
            marked = tokens == self._marker
            if (marked.sum(1) != 1).any():
                raise UserError(
                    f"expected prompts without {REWARD} for the reward hps_v3, where the network reads, got one"
                )
            places = torch.arange(tokens.shape[1]).expand(3, *tokens.shape)
            inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
            inputs = {name: value.to(self.device) for name, value in {**inputs, "position_ids": places}.items()}
            hidden = self._network(**inputs).last_hidden_state
            mean, log_deviation = self._head(hidden[marked.to(self.device)].float()).unbind(-1)
            found.append(torch.stack([mean, log_deviation.exp()], dim=-1).cpu())
        return torch.cat(found)


def head_like(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """A head with the layers that these weights are of."""
    layers: list[nn.Module] = []
    for index in range(LAYERS[-1] + 1):
        if index in LAYERS:
            out, into = weights[f"{index}.weight"].shape
            layers.append(nn.Linear(into, out))
        else:
            layers.append(nn.ReLU() if index - 1 in LAYERS else nn.Identity())
    return nn.Sequential(*layers)


def convert(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the published file: those of a Qwen2-VL, under its own names, and those of the head in float32.

    Raises:
        UserError: it is another file.
    """
    source = state.get("model", state)
    if "rm_head.0.weight" not in source or "model.embed_tokens.weight" not in source:
        raise UserError(
            f"expected the weights of HPSv3 (rm_head.0.weight and so on), got {', '.join(list(source)[:3])}, ...: name "
            "HPSv3.safetensors"
        )
    head = {
        f"{index}.{part}": source[f"rm_head.{index}.{part}"].to(torch.float32).contiguous()
        for index in LAYERS
        for part in ("weight", "bias")
    }
    return {name: w.contiguous() for name, w in source.items() if not name.startswith("rm_head.")}, head


def write(state: Mapping[str, Any], text: str, directory: Path, base: str) -> None:
    """What the reward reads, into an empty directory.

    Args:
        state: of the published file.
        text: of `template`.
        directory: there.
        base: hub id or directory of the Qwen2-VL whose configuration, tokenizer and image processor it has.
    """
    weights, head = convert(state)
    otherwise = "name the hub id or directory of Qwen2-VL-7B-Instruct with --tokenizer"
    tokenizer = tokenizer_of(base, otherwise)
    tokenizer.add_tokens([REWARD], special_tokens=True)
    config = load(lambda: AutoConfig.from_pretrained(base), "a configuration", base, otherwise)
    rows = len(weights["model.embed_tokens.weight"])
    if config.model_type != "qwen2_vl" or tokenizer.convert_tokens_to_ids(REWARD) >= rows:
        raise UserError(f"expected a Qwen2-VL of {rows - 1} tokens at {base}, got another model: {otherwise}")
    config.text_config.vocab_size = rows
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor_of(base, otherwise).save_pretrained(directory)
    (directory / TEMPLATE).write_bytes(text.encode())
    save_file(head, directory / HEAD)
    save_file(weights, directory / MODEL, metadata={"format": "pt"})


def template(file: Path) -> str:
    """The instruction with which the published network is asked, out of the package's data_collator_qwen.py, which is not run.

    Raises:
        UserError: it is another file, or another version's.
    """
    try:
        lines = ast.parse(file.read_text(encoding="utf-8")).body
    except OSError as error:
        raise UserError(f"expected a file at {file}, could not read it ({error.strerror}): check the path") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"expected the package's data_collator_qwen.py at {file}, got something else") from error
    said = {
        line.targets[0].id: line.value.value
        for line in lines
        if isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and isinstance(line.value, ast.Constant)
    }
    text = "".join(str(said.get(name, "")) for name in CONSTANTS)
    if hashlib.sha256(text.encode()).hexdigest() != DIGEST:
        raise UserError(
            f"expected {' and '.join(CONSTANTS)} of hpsv3 1.0.0 in {file}, got another text: take "
            "hpsv3/dataset/data_collator_qwen.py from its wheel (pip download hpsv3==1.0.0 --no-deps)"
        )
    return text
