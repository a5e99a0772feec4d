"""Questions to vision-language models: tiny random ones of three kinds, with pictures, texts and places computed anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards.qwen import QwenVL
from raysuite.rewards.vqa import SoftTifa, VqaScore
from tests.rewards import networks
from tests.rewards.test_networks import PROMPTS, pictures

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ROW = {
    "vqa_list": [
        ["How many cats are in the image?", "two"],
        ["Are the cats red?", "Yes"],
        ["Are there any cats?", "Yes"],
    ]
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen")
    for kind in KINDS:
        networks.save_qwen(directory / kind, kind)
    return directory


@pytest.fixture(scope="module")
def models(root: Path) -> Mapping[str, QwenVL]:
    return {kind: QwenVL(str(root / kind), precision="float32") for kind in KINDS}


@torch.no_grad()
def expected(model: QwenVL, kind: str, image: np.ndarray, question: str) -> np.ndarray:
    """Probabilities of the next token. Transformers does the layers; what goes into them is made here, places included."""
    patch, middle, spread = 14, networks.MEAN, networks.STD
    if kind == "qwen3_vl":
        patch, middle, spread = 16, (0.5,) * 3, (0.5,) * 3
    pixels, rows, columns = networks.qwen_pixels(image, patch, (2 * patch) ** 2, (4 * patch) ** 2, middle, spread)
    before = "" if kind == "qwen3_vl" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    before += "<|im_start|>user\n<|vision_start|>"
    after = f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    places = rows * columns // 4
    tokens = networks.qwen_tokens(before, after, places)
    first = tokens.index(networks.qwen_tokens("", "", 1)[0])
    at = [(i, i, i) for i in range(first)]
    at += [(first, first + row, first + column) for row in range(rows // 2) for column in range(columns // 2)]
    at += [(max(at[-1]) + 1 + i,) * 3 for i in range(len(tokens) - len(at))]
    answer = model.network(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        position_ids=torch.tensor(at).T[:, None],
        pixel_values=pixels,
        image_grid_thw=torch.tensor([[1, rows, columns]]),
    )
    return answer.logits[0, -1].double().softmax(-1).numpy()


@pytest.mark.parametrize("size", [(56, 56), (40, 90), (20, 20)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_comes_next_is_what_is_computed_anew(
    kind: str, size: tuple[int, int], models: Mapping[str, QwenVL]
) -> None:
    """Questions of different length in a batch, and a batch that is smaller than what is asked."""
    model, images = models[kind], pictures(*size)
    questions = ("Is it?", "Is there a red circle left of it, or not?", "é")
    model.batch = 2
    found = model.next_words(images, questions).numpy()
    for image, question, words in zip(images, questions, found, strict=True):
        assert words == pytest.approx(expected(model, kind, image, question), abs=1e-5)
    assert found.max() > 2 / found.shape[1]  # it says something


def test_yes_is_summed_over_its_spellings(root: Path, models: Mapping[str, QwenVL]) -> None:
    """Their first tokens are the bytes Y, y and the space."""
    images = pictures(56, 56)
    scores = rewards.score(
        "vqa", images, PROMPTS, [{}] * 3, model=str(root / "qwen2_vl"), options={"precision": "float32"}
    )
    begin = [networks.qwen_tokens(letter, "", 0)[0] for letter in "Yy "]
    for image, prompt, score in zip(images, PROMPTS, scores, strict=True):
        question = f'Does this image show "{prompt}"? Answer the question with Yes or No.'
        words = expected(models["qwen2_vl"], "qwen2_vl", image, question)
        assert score == pytest.approx(words[begin].sum(), abs=1e-5)
    other = VqaScore(
        str(root / "qwen2_vl"), question="{prompt}? yes or no: {prompt}", answer="no", batch=1, precision="float32"
    )
    words = expected(models["qwen2_vl"], "qwen2_vl", images[0], "a? yes or no: a")
    begin = [networks.qwen_tokens(letter, "", 0)[0] for letter in "Nn "]
    assert other(images[:1], ["a"], [{}])[0] == pytest.approx(words[begin].sum(), abs=1e-5)


def test_soft_tifa_is_a_mean_over_the_questions_of_a_row(root: Path, models: Mapping[str, QwenVL]) -> None:
    images = pictures(56, 56, 2)
    rows = [ROW, {"vqa_list": ROW["vqa_list"][:1]}]
    expected_N = []
    for image, row in zip(images, rows, strict=True):
        shares = []
        for question, answer in row["vqa_list"]:
            words = expected(models["qwen3_vl"], "qwen3_vl", image, f"{question} Answer in one word.")
            begin = "tT2 " if answer == "two" else "yY "
            shares.append(sum(words[networks.qwen_tokens(letter, "", 0)[0]] for letter in begin))
        expected_N.append(shares)
    model, exact = str(root / "qwen3_vl"), {"precision": "float32"}
    together = rewards.score("soft_tifa", images, ["a", "b"], rows, model=model, options=exact)
    assert together == pytest.approx([math.prod(s) ** (1 / len(s)) for s in expected_N], abs=1e-5)
    average = rewards.score("soft_tifa", images, ["a", "b"], rows, model=model, options={**exact, "mean": "arithmetic"})
    assert average == pytest.approx([sum(s) / len(s) for s in expected_N], abs=1e-5)


def test_means_by_hand() -> None:
    geometric, arithmetic = SoftTifa.__new__(SoftTifa), SoftTifa.__new__(SoftTifa)
    geometric._geometric, arithmetic._geometric = True, False
    assert geometric.score([0.9, 0.1, 0.3]) == pytest.approx(0.3)  # the cube root of 0.027
    assert arithmetic.score([0.9, 0.1, 0.2]) == pytest.approx(0.4)
    assert geometric.score([0.9, 0.0]) == 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_answer_is_what_is_most_probable_word_by_word(kind: str, models: Mapping[str, QwenVL]) -> None:
    model, image = models[kind], pictures(56, 56, 1)
    word = int(expected(model, kind, image[0], "Which?").argmax())
    assert model.answers(image, ["Which?"], 1) == [model.read.tokenizer.decode([word], skip_special_tokens=True)]
    longer = model.answers(np.concatenate([image, image]), ["Which of the two?", "Which?"], 3)
    assert longer[1] == model.answers(image, ["Which?"], 3)[0]  # whatever stands beside it


@pytest.mark.parametrize(
    ("name", "model", "options", "row", "mentions"),
    [
        ("vqa", "/nowhere", {}, {}, "expected a directory at /nowhere"),
        ("vqa", "qwen2_vl", {"question": "Is it good?"}, {}, r"expected a question with \{prompt\}"),
        ("vqa", "qwen2_vl", {"answer": " "}, {}, "expected an answer"),
        ("vqa", "qwen2_vl", {"precision": "int8"}, {}, "expected precision of float32"),
        ("vqa", "qwen2_vl", {"batch": 0}, {}, "expected batch of at least 1"),
        ("vqa", "qwen2_vl", {"mean": "geometric"}, {}, "expected options that the reward vqa takes .*, got mean"),
        ("soft_tifa", "qwen2_vl", {"mean": "harmonic"}, ROW, "expected mean of geometric or arithmetic"),
        ("soft_tifa", "qwen2_vl", {}, {}, "expected vqa_list, pairs of question and answer"),
        ("soft_tifa", "qwen2_vl", {}, {"vqa_list": []}, "expected vqa_list"),
        ("soft_tifa", "qwen2_vl", {}, {"vqa_list": [["Is it?"]]}, "expected vqa_list"),
        ("soft_tifa", "qwen2_vl", {}, {"vqa_list": ["no"]}, "expected vqa_list"),
    ],
)
def test_what_does_not_fit_is_a_sentence_before_a_run(
    name: str, model: str, options: dict[str, Any], row: dict[str, Any], mentions: str, root: Path
) -> None:
    with pytest.raises(UserError, match=mentions):
        rewards.check(name, model=str(root / model), options=options, prompts=["a"], metadata=[row])


def test_another_model_is_told(tmp_path: Path) -> None:
    networks.save_clip(tmp_path)
    with pytest.raises(UserError, match=r"expected a model of qwen2_vl, qwen2_5_vl, qwen3_vl at .*, got clip"):
        VqaScore(str(tmp_path))
