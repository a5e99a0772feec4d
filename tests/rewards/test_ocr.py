"""Text in pictures: real words, drawn and read, and what is wanted of which prompt."""

from __future__ import annotations

import importlib.util
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards import score
from raysuite.rewards.ocr import Ocr, closeness, wanted

FONTS = ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf")
INKS = (((20, 30, 60), (235, 230, 210)), ((250, 240, 90), (90, 20, 40)))
"""Colours of letters and of what they stand on."""
WORDS = ("OPEN", "Bakery", "diffusion", "HOTEL 42", "Good Morning", "library")


def sign(text: str, font: str = FONTS[0], ink: Any = INKS[0], side: int = 256, size: int = 30) -> np.ndarray:
    """A picture, uint8 (side, side, 3), with a text in its middle."""
    image = Image.new("RGB", (side, side), ink[1])
    letters = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{font}", size)
    ImageDraw.Draw(image).text((side / 2, side / 2), text, font=letters, fill=ink[0], anchor="mm")
    return np.asarray(image)


@pytest.fixture(scope="module")
def reader() -> Ocr:
    return Ocr()


def scored(images: list[np.ndarray], prompts: list[str], metadata: list[dict[str, Any]] | None = None) -> list[float]:
    return score("ocr", np.stack(images), prompts, metadata or [{}] * len(images)).tolist()


@pytest.mark.parametrize(("font", "ink"), [(FONTS[0], INKS[0]), (FONTS[1], INKS[1]), (FONTS[2], INKS[0])])
def test_the_right_word_is_above_every_wrong_word(font: str, ink: Any, reader: Ocr) -> None:
    read = {word: reader.read(sign(word, font, ink)) for word in WORDS}
    for word in WORDS:
        scores = {drawn: closeness(text, word) for drawn, text in read.items()}
        assert scores.pop(word) == 1.0
        assert max(scores.values()) < 0.6


def test_scores_are_graded_by_hand() -> None:
    """Drawn: BAKERY. Wanted: itself; with one letter more; with two others of six; something else; and of an empty picture."""
    drawn = sign("BAKERY")
    prompts = [f'"{text}" over a door' for text in ("bakery", "bakery2", "bazary", "OUI", "bakery")]
    scores = scored([drawn] * 4 + [sign("")], prompts)
    assert scores == pytest.approx([1.0, 6 / 7, 4 / 6, 0.0, 0.0])


def test_lines_are_read_from_the_top_and_more_text_than_wanted_costs() -> None:
    scores = scored([sign("FRESH\nBREAD")] * 3, ['"Fresh bread"', '"bread fresh"', '"fresh"'])
    assert scores == pytest.approx([1.0, 1 - 6 / 10, 0.0])  # letter by letter, r and e of both words stay


def test_pictures_do_not_see_each_other_and_are_left_alone(reader: Ocr) -> None:
    images, prompts = np.stack([sign("OPEN"), sign("SHUT")]), ['"open"', '"open"']
    before = images.copy()
    assert reader(images, prompts, [{}] * 2).tolist() == [scored([image], ['"open"'])[0] for image in images]
    assert (images == before).all()


@pytest.mark.parametrize("side", [32, 512])
def test_pictures_may_have_any_size(side: int) -> None:
    assert scored([sign("Hi", side=side, size=side // 2)], ['"hi"']) == [1.0]


# what is wanted


@pytest.mark.parametrize(
    ("prompt", "metadata", "text"),
    [
        ('a sign that says "Open late"', {}, "Open late"),
        ("a sign that says “Open”", {}, "Open"),
        ('"one" above "two" and “three”', {}, "one two three"),
        ('a "sign"', {"target": "Open"}, "Open"),
        ("a sign", {"text": "Open"}, "Open"),
        ("a sign", {"text": "no", "target": "Open"}, "Open"),
        ('"Open"', {"target": None}, "Open"),
        ("the dog's bowl says \"it's mine\"", {}, "it's mine"),
    ],
)
def test_what_is_to_be_written(prompt: str, metadata: dict[str, Any], text: str) -> None:
    assert wanted(prompt, metadata) == text


@pytest.mark.parametrize(
    ("prompt", "metadata"),
    [
        ("a dog's sign", {}),
        ('a "  " sign', {}),
        ('an open " sign', {}),
        ('"a"', {"target": ""}),
        ('"a"', {"text": 5}),
    ],
)
def test_a_prompt_that_wants_nothing_written_is_a_sentence_before_a_run(prompt: str, metadata: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected every prompt to say what the reward ocr shall read") as raised:
        rewards.check("ocr", prompts=['"good"', prompt], metadata=[{}, metadata])
    assert repr(prompt) in str(raised.value)


@pytest.mark.parametrize(
    ("read", "target", "expected"),
    [
        ("", "abc", 0.0),
        ("abc", "abc", 1.0),
        ("A b\nC", "abc", 1.0),
        ("\uff21bc", "abc", 1.0),  # a wide A
        ("abd", "abc", 2 / 3),
        ("ab", "abc", 2 / 3),
        ("abcabc", "abc", 0.0),
        ("abcd", "abc", 2 / 3),
        ("bca", "abc", 1 / 3),
    ],
)
def test_closeness_by_hand(read: str, target: str, expected: float) -> None:
    assert closeness(read, target) == pytest.approx(expected)


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime"])
def test_a_missing_extra_is_a_sentence_before_a_run(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(UserError, match=rf"package {missing} .*pip install 'raysuite\[ocr\]'"):
        rewards.check("ocr")


@pytest.mark.parametrize("threads", [0, True, "2"])
def test_threads_are_a_number(threads: Any) -> None:
    with pytest.raises(UserError, match="expected threads of at least 1"):
        Ocr(threads=threads)
