"""HPSv3 on a tiny random Qwen2-VL: conversion, and scores with pictures, texts, places and head computed anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards import hps_v3
from raysuite.rewards.convert import convert
from raysuite.rewards.hps_v3 import HpsV3
from tests.rewards import networks
from tests.rewards.test_networks import PROMPTS, pictures

ASKED, MARK = "\nRate {text_prompt}\n", "\nHere: <|Reward|>\nEND\n"
COLLATOR = f'import torch  # not run\nraise SystemExit\nINSTRUCTION = """{ASKED}"""\nprompt_with_special_token = """{MARK}"""\n'
WIDTH = 32


def published(root: Path) -> dict[str, Tensor]:
    """A checkpoint in the form of HPSv3.safetensors, tiny: Qwen2-VL under its old names with one more token, and a head."""
    state = load_file(networks.save_qwen(root / "base") / "model.safetensors")
    assert "model.embed_tokens.weight" in state and any(name.startswith("visual.") for name in state)
    words = state["model.embed_tokens.weight"]
    generator = torch.Generator().manual_seed(1)
    state["model.embed_tokens.weight"] = torch.cat([words, torch.randn(1, WIDTH, generator=generator)])
    state["lm_head.weight"] = torch.cat([state["lm_head.weight"], torch.zeros(1, WIDTH)])
    shapes = {}
    for index, (out, into) in {0: (24, WIDTH), 3: (16, 24), 5: (2, 16)}.items():
        shapes |= {f"rm_head.{index}.weight": (out, into), f"rm_head.{index}.bias": (out,)}
    return state | networks.random_state(shapes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hps_v3")
    save_file(published(directory), directory / "HPSv3.safetensors")
    (directory / "data_collator_qwen.py").write_text(COLLATOR)
    return directory


@pytest.fixture(autouse=True)
def _digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hps_v3, "DIGEST", hashlib.sha256((ASKED + MARK).encode()).hexdigest())


@pytest.fixture(scope="module")
def made(root: Path) -> HpsV3:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hps_v3, "DIGEST", hashlib.sha256((ASKED + MARK).encode()).hexdigest())
        made = convert(
            "hps_v3",
            root / "HPSv3.safetensors",
            root / "made",
            tokenizer=str(root / "base"),
            template=root / "data_collator_qwen.py",
        )
    return HpsV3(str(made), precision="float32", batch=2)


@torch.no_grad()
def expected(made: HpsV3, state: dict[str, Tensor], image: np.ndarray, prompt: str) -> tuple[float, float]:
    """Transformers does the layers of the network; what goes into them, and the head, is made here."""
    size = 256 * 28 * 28
    pixels, rows, columns = networks.qwen_pixels(image, 14, size, size, networks.MEAN, networks.STD)
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    after = f"<|vision_end|>\nRate {prompt}\n\nHere: "
    mark = 263  # after the bytes, the special tokens, and that of films
    end = networks.qwen_tokens("\nEND\n<|im_end|>\n<|im_start|>assistant\n", "", 0)
    tokens = [*networks.qwen_tokens(before, after, rows * columns // 4), mark, *end]
    hidden = made._network(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        position_ids=torch.tensor([[list(range(len(tokens)))]] * 3),
        pixel_values=pixels,
        image_grid_thw=torch.tensor([[1, rows, columns]]),
    ).last_hidden_state[0, tokens.index(mark)]
    for index in (0, 3):
        hidden = networks.linear(state, f"rm_head.{index}", hidden).clamp(min=0)
    mean, log_deviation = networks.linear(state, "rm_head.5", hidden).tolist()
    return mean, float(np.exp(log_deviation))


@pytest.mark.parametrize("size", [(64, 64), (30, 70)])
def test_scores_are_what_is_computed_anew(size: tuple[int, int], made: HpsV3, root: Path) -> None:
    images, state = pictures(*size), load_file(root / "HPSv3.safetensors")
    both = [expected(made, state, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert made.distributions(images, PROMPTS).numpy() == pytest.approx(np.array(both), abs=1e-5)
    scores = made(images, PROMPTS, [{}] * 3)
    assert scores == pytest.approx([mean for mean, _ in both], abs=1e-5)
    assert np.ptp(scores) > 1e-3  # they say something


def test_a_square_picture_has_256_places(made: HpsV3) -> None:
    read = made._read(pictures(64, 64, 1), ["a"], size={"shortest_edge": hps_v3.PIXELS, "longest_edge": hps_v3.PIXELS})
    assert read["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert int((read["input_ids"] == made._read.place).sum()) == 256


def test_the_registry_makes_it_in_bfloat16(made: HpsV3) -> None:
    images = pictures(64, 64)
    scores = rewards.score("hps_v3", images, PROMPTS, [{}] * 3, model=made.model)
    assert scores == pytest.approx(made(images, PROMPTS, [{}] * 3), abs=0.2)


def test_a_prompt_with_the_mark_is_refused(made: HpsV3) -> None:
    with pytest.raises(UserError, match=r"expected prompts without <\|Reward\|>"):
        made(pictures(64, 64, 1), ["a <|Reward|>"], [{}])


def test_the_tokens_are_those_of_the_published_network(made: HpsV3) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    assert tokenizer.convert_tokens_to_ids("<|Reward|>") == 263 == len(tokenizer) - 1


def test_what_cannot_be_converted_is_told_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, template, base = root / "HPSv3.safetensors", root / "data_collator_qwen.py", str(root / "base")
    with pytest.raises(UserError, match="expected --template for hps_v3"):
        convert("hps_v3", file, tmp_path / "out", tokenizer=base)
    with pytest.raises(UserError, match="expected --template for hps_v3, and for no other reward"):
        convert("aesthetic", file, tmp_path / "out", template=template)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="expected the weights of HPSv3"):
        convert("hps_v3", tmp_path / "other.safetensors", tmp_path / "out", tokenizer=base, template=template)
    (tmp_path / "no.safetensors").write_bytes(b"not that")
    with pytest.raises(UserError, match="expected weights that torch saved"):
        convert("hps_v3", tmp_path / "no.safetensors", tmp_path / "out", tokenizer=base, template=template)
    state = load_file(file)
    save_file({n: w for n, w in state.items() if n != "rm_head.3.bias"}, tmp_path / "lacks.safetensors")
    with pytest.raises(UserError, match=r"expected the weights 'rm_head\.3\.bias'"):
        convert("hps_v3", tmp_path / "lacks.safetensors", tmp_path / "out", tokenizer=base, template=template)
    networks.save_clip(tmp_path / "clip")
    with pytest.raises(UserError, match="expected a Qwen2-VL of 263 tokens"):
        convert("hps_v3", file, tmp_path / "out", tokenizer=str(tmp_path / "clip"), template=template)
    (tmp_path / "t.py").write_text(COLLATOR.replace("Rate", "Judge"))
    with pytest.raises(UserError, match=r"of hpsv3 1\.0\.0 in .*got another text"):
        convert("hps_v3", file, tmp_path / "out", tokenizer=base, template=tmp_path / "t.py")
    (tmp_path / "t.py").write_text("no python (")
    with pytest.raises(UserError, match="got something else"):
        convert("hps_v3", file, tmp_path / "out", tokenizer=base, template=tmp_path / "t.py")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="raysuite rewards convert hps_v3"):
        rewards.check("hps_v3", model=str(tmp_path))
