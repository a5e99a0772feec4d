"""GenEval: its rules by hand, and what tiny random detectors and a tiny CLIP see, computed anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer

from raysuite import rewards
from raysuite.errors import UserError
from raysuite.rewards import geneval
from raysuite.rewards.geneval import COLOURS, GenEval, Thing, check_row, crop, graded, kept, relations, shared, strict
from tests.rewards import networks
from tests.rewards.test_networks import pictures

CLASSES = ("mouse", "cat", "tvmonitor")
"""As a detector calls them; GenEval calls two of them otherwise."""


def save_detector(directory: Path, kind: str) -> Path:
    """A tiny random detector with its image processor, as on a hub."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
        YolosConfig,
        YolosForObjectDetection,
        YolosImageProcessorPil,
    )

    labels = dict(enumerate(CLASSES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "masks":
            eyes = SwinConfig(
                image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )  # fmt: skip
            config = Mask2FormerConfig(
                backbone_config=eyes, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
                decoder_layers=2, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16, num_queries=6,
            )  # fmt: skip
            config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
            network: Any = Mask2FormerForUniversalSegmentation(config)
            with torch.no_grad():  # so that queries differ, and see something
                network.class_predictor.weight.mul_(20)
                network.model.transformer_module.queries_features.weight.mul_(3)
            Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(directory)
        else:
            network = YolosForObjectDetection(
                YolosConfig(
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                    image_size=[64, 64],
                    patch_size=16,
                    num_detection_tokens=8,
                    id2label=labels,
                    initializer_range=0.5,
                )
            )
            YolosImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(directory)
        network.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("geneval")
    networks.save_clip(directory / "clip")
    for kind in ("masks", "boxes"):
        save_detector(directory / kind, kind)
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks for small pictures see small ones: shortest side 48, longest 80, both to the next 32."""
    monkeypatch.setattr(geneval, "SIZE", {"shortest_edge": 48, "longest_edge": 80})


def seen(image: np.ndarray, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """A picture as a detector takes it: bilinear; normalised as ImageNet. (1, 3, *size)."""
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    x = np.asarray(resized, dtype=np.float32) / 255
    x = (x - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    return torch.from_numpy(x).permute(2, 0, 1)[None]


@torch.no_grad()
def expected_masks(reward: GenEval, image: np.ndarray, threshold: float) -> list[tuple[int, float, list[float]]]:
    """All pairs of query and class, the 6 most probable ones, a pixel at a time."""
    side = {(64, 64): (64, 64), (40, 56): (64, 96)}[image.shape[:2]]  # 48 x 48, and 48 x 67, in steps of 32
    outputs = reward._network(pixel_values=seen(image, side))
    classes, masks = outputs.class_queries_logits[0], outputs.masks_queries_logits[:, :]
    masks = F.interpolate(masks, side, mode="bilinear")
    masks = F.interpolate(masks, image.shape[:2], mode="bilinear")[0].double().numpy()
    pairs = []
    for query, logits in enumerate(classes.double()):
        shares = [math.exp(float(x)) for x in logits]
        pairs += [(share / sum(shares), query, label) for label, share in enumerate(shares[:-1])]
    found = []
    for share, query, label in sorted(pairs, reverse=True)[:6]:
        inside = [(y, x) for y, x in np.ndindex(*image.shape[:2]) if masks[query, y, x] > 0]
        if not inside:
            continue
        mean = sum(1 / (1 + math.exp(-float(masks[query, y, x]))) for y, x in inside) / len(inside)
        rows, columns = [y for y, _ in inside], [x for _, x in inside]
        if share * mean > threshold:
            found.append((label, share * mean, [min(columns), min(rows), max(columns) + 1, max(rows) + 1]))
    return found


@torch.no_grad()
def expected_boxes(reward: GenEval, image: np.ndarray, threshold: float) -> list[tuple[int, float, list[float]]]:
    """The most probable class of every query, and its box as centre and size, in shares of the picture."""
    outputs = reward._network(pixel_values=seen(image))
    height, width = image.shape[:2]
    found = []
    for logits, (x, y, w, h) in zip(outputs.logits[0].tolist(), outputs.pred_boxes[0].tolist(), strict=True):
        shares = [math.exp(value) for value in logits]
        label = int(np.argmax(shares[:-1]))
        confidence = shares[label] / sum(shares)
        if confidence > threshold:
            edges = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            found.append((label, confidence, edges))
    return found


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_detectors_see_what_is_computed_anew(kind: str, size: tuple[int, int], root: Path) -> None:
    reward = GenEval(str(root / kind), clip=str(root / "clip"))
    images = pictures(*size)
    expected = {"masks": expected_masks, "boxes": expected_boxes}[kind]
    names = ("computer mouse", "cat", "tv")
    seen_any = 0
    for threshold in (0.05, 0.3):
        for image, things in zip(images, reward.detect(images, [threshold] * len(images)), strict=True):
            by_class: dict[str, list[tuple[float, list[float]]]] = {}
            for label, confidence, box in expected(reward, image, threshold):
                by_class.setdefault(names[label], []).append((confidence, box))
            assert set(things) == set(by_class)
            for name, found in things.items():
                ordered = sorted(by_class[name], key=lambda pair: -pair[0])
                assert [t.confidence for t in found] == pytest.approx([c for c, _ in ordered], abs=1e-5)
                for thing, (_, box) in zip(found, ordered, strict=True):
                    assert thing.box == pytest.approx(box, abs=1e-3)
                    seen_any += 1
    assert seen_any > 3  # it says something


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_colours_are_what_clip_says_of_crops_that_pil_made(masked: bool, root: Path) -> None:
    reward = GenEval(str(root / "boxes"), clip=str(root / "clip"))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image[:, :30, 1:], image[:, 30:, :2] = 0, 0
    mask = np.zeros((48, 64), bool)
    mask[5:30, 8:40] = True
    boxes = [(8.0, 5.0, 40.0, 30.0), (10.4, 2.6, 30.5, 47.5), (0.0, 0.0, 64.0, 48.0), (40.0, 2.0, 60.0, 20.0)]
    boxes += [(4.0, 10.0, 44.0, 10.0 + height) for height in (1, 3, 4)]  # as few pixels as there could be channels
    things = [Thing(box, 0.9, mask if masked else None) for box in boxes]
    tokenizer = AutoTokenizer.from_pretrained(networks.TOKENIZER)
    clip = reward._clip.clip
    rows = []
    for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"):
        phrases = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat", f"a photo of a {colour} object"]
        vectors = []
        for phrase in phrases:
            tokens = tokenizer(phrase, truncation=True, max_length=16, return_tensors="pt")
            vector = clip.get_text_features(**tokens).pooler_output[0]
            vectors.append(vector / vector.norm())
        mean = sum(vectors) / 3
        rows.append(mean / mean.norm())
    expected = []
    for left, top, right, bottom in boxes:
        picture = Image.fromarray(image)
        if masked:
            picture = Image.composite(picture, Image.new("RGB", (64, 48), "#999"), Image.fromarray(mask))
        cut = np.asarray(picture.crop((left, top, right, bottom)))
        vector = clip.get_image_features(networks.framed(cut, 32)[None]).pooler_output[0]
        vector = vector / vector.norm()
        expected.append([float(vector @ row) for row in rows])
    assert np.ptp(expected, axis=0).max() > 0.01  # crops differ
    found = reward.likeness(image, "cat", things)
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert reward.colours(image, "cat", things) == [COLOURS[int(np.argmax(row))] for row in expected]
    assert reward.colours(image, "cat", []) == []


def test_a_crop_has_a_pixel_at_least() -> None:
    image = pictures(8, 8, 1)[0]
    assert crop(image, Thing((3.1, 3.1, 3.2, 3.2), 1.0)).shape == (1, 1, 3)


# rules


def at(x: float, y: float, side: float = 10, confidence: float = 0.9) -> Thing:
    return Thing((x - side / 2, y - side / 2, x + side / 2, y + side / 2), confidence)


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        (at(20, 50), {"left of"}),
        (at(80, 50), {"right of"}),
        (at(50, 20), {"above"}),
        (at(50, 80), {"below"}),
        (at(20, 20), {"left of", "above"}),
        (at(50, 50), set()),
        (at(48, 50), set()),  # 2 apart, and both sizes together allow 0.1 * 20
        (at(46, 50), set()),  # 4 - 2 = 2, which is exactly half of the distance
        (at(45, 50), {"left of"}),  # 5 - 2 = 3 of 5
    ],
)
def test_relations_by_hand(a: Thing, expected: set[str]) -> None:
    assert relations(a, at(50, 50), 0.1) == expected


ROWS: dict[str, dict[str, Any]] = {
    "one": {"tag": "single_object", "include": [{"class": "cat", "count": 1}]},
    "two": {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "tv", "count": 1}]},
    "three cats": {
        "tag": "counting",
        "include": [{"class": "cat", "count": 3}],
        "exclude": [{"class": "cat", "count": 4}],
    },
    "red cat": {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]},
    "tv left of cat": {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "tv", "count": 1, "position": ["left of", 0]}],
    },
    "red cat, blue tv": {
        "tag": "color_attr",
        "include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "tv", "count": 1, "color": "blue"}],
    },
}
CAT, TV = at(80, 50), at(20, 50)


@pytest.mark.parametrize(
    ("row", "things", "colours", "by_the_rules", "with_credit"),
    [
        ("one", {}, {}, 0, 0),
        ("one", {"cat": [CAT]}, {}, 1, 1),
        ("one", {"cat": [CAT] * 3}, {}, 1, -1),  # 1 - |3 - 1| / 1
        ("two", {"cat": [CAT]}, {}, 0, 1 / 2),
        ("two", {"cat": [CAT], "tv": [TV]}, {}, 1, 1),
        ("three cats", {"cat": [CAT] * 2}, {}, 0, 2 / 3),
        ("three cats", {"cat": [CAT] * 3}, {}, 1, 1),
        ("three cats", {"cat": [CAT] * 4}, {}, 0, 2 / 3),
        ("red cat", {"cat": [CAT]}, {"cat": ["red"]}, 1, 1),
        ("red cat", {"cat": [CAT]}, {"cat": ["blue"]}, 0, 1 / 2),
        ("red cat", {}, {"cat": []}, 0, 0),
        ("red cat", {"cat": [CAT] * 2}, {"cat": ["red", "blue"]}, 1, 0),  # the most confident one counts
        ("red cat", {"cat": [CAT] * 2}, {"cat": ["blue", "red"]}, 0, 0),
        ("tv left of cat", {"cat": [CAT], "tv": [TV]}, {}, 1, 1),
        ("tv left of cat", {"cat": [TV], "tv": [CAT]}, {}, 0, 2 / 3),
        ("tv left of cat", {"tv": [TV]}, {}, 0, 1 / 3),  # 0 for the cat, 1 for the tv, 0 for its place
        ("tv left of cat", {"cat": [CAT]}, {}, 0, 1 / 3),
        ("red cat, blue tv", {"cat": [CAT], "tv": [TV]}, {"cat": ["red"], "tv": ["red"]}, 0, 3 / 4),
        ("red cat, blue tv", {"cat": [CAT], "tv": [TV]}, {"cat": ["red"], "tv": ["blue"]}, 1, 1),
    ],
)
def test_rules_by_hand(
    row: str, things: dict[str, list[Thing]], colours: dict[str, list[str]], by_the_rules: float, with_credit: float
) -> None:
    assert strict(ROWS[row], things, colours, 0.1) == by_the_rules
    assert graded(ROWS[row], things, colours, 0.1) == pytest.approx(with_credit)


def test_the_most_confident_are_kept() -> None:
    things = [at(10, 10, confidence=0.4), at(50, 50, confidence=0.9), at(52, 50, confidence=0.6)]
    assert [t.confidence for t in kept(things, 16, 1.0)] == [0.9, 0.6, 0.4]
    assert [t.confidence for t in kept(things, 2, 1.0)] == [0.9, 0.6]
    assert shared(things[1], things[2]) == pytest.approx(9 * 11 / (2 * 121 - 9 * 11))
    assert [t.confidence for t in kept(things, 16, 0.5)] == [0.9, 0.4]


@pytest.mark.parametrize(("apart", "score"), [(0.1, 1.0), (0.3, 0.0)])
def test_how_far_apart_things_must_be_is_an_option(
    apart: float, score: float, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are ten pixels wide, and their centres twelve apart: 12 - 0.1 x 20 is more than half of 12, 12 - 0.3 x 20 is not."""
    reward = GenEval(str(root / "boxes"), clip=str(root / "clip"), position_threshold=apart)
    seen = {"cat": [at(62, 50)], "tv": [at(50, 50)]}
    monkeypatch.setattr(reward, "detect", lambda images, thresholds: [seen] * len(images))
    assert reward(pictures(40, 56)[:1], ["x"], [ROWS["tv left of cat"]]).tolist() == [score]


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_a_score_joins_detector_colours_and_rules(kind: str, root: Path) -> None:
    """Through the registry; pictures do not see each other, and counting has its own threshold."""
    images = pictures(40, 56)
    options = {"clip": str(root / "clip"), "threshold": 0.2, "counting_threshold": 0.99}
    reward = rewards.made("geneval", model=str(root / kind), options=options)
    assert isinstance(reward, GenEval)
    things = reward.detect(images, [0.2] * 3)
    name, found = next(iter(things[0].items()))
    colour = reward.colours(images[0], name, found)[0]
    rows: list[dict[str, Any]] = [
        {"tag": "colors", "include": [{"class": name, "count": 1, "color": c}]}
        for c in (colour, COLOURS[0], COLOURS[1])
    ]
    same = np.stack([images[0]] * 3)
    expected = [float(c == colour) for c in (colour, COLOURS[0], COLOURS[1])]
    assert rewards.score("geneval", same, ["a"] * 3, rows, model=str(root / kind), options=options).tolist() == expected
    apart = [reward(images[i : i + 1], ["a"], rows[i : i + 1])[0] for i in range(3)]
    assert reward(images, ["a"] * 3, rows).tolist() == pytest.approx(apart)
    counting = [{"tag": "counting", "include": [{"class": name, "count": 1}]}]
    assert reward(images[:1], ["a"], [{**counting[0], "tag": "single_object"}])[0] == 1
    assert reward(images[:1], ["a"], counting)[0] == 0
    partly = GenEval(str(root / kind), clip=str(root / "clip"), graded=True, threshold=0.2)
    assert partly(images[:1], ["a"], [{"tag": "x", "include": [{"class": name, "count": 1}]}])[0] == 2 - len(found)


@pytest.mark.parametrize(
    ("row", "mentions"),
    [
        ({}, "a list include"),
        ({"include": "cat"}, "a list include"),
        ({"include": [{"count": 1}]}, "a class of everything"),
        ({"include": [{"class": "cat"}]}, "a count of at least 1"),
        ({"include": [{"class": "cat", "count": 0}]}, "a count of at least 1"),
        ({"include": [{"class": "cat", "count": 1}], "exclude": [{"class": "cat"}]}, "a count of at least 1"),
        ({"include": [{"class": "cat", "count": 1, "color": "gold"}]}, "a color of red"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "of an earlier clause"),
        ({"include": [{"class": "cat", "count": 1, "position": ["on", 0]}]}, "of an earlier clause"),
    ],
)
def test_a_row_of_another_form_is_a_sentence_before_a_run(row: dict[str, Any], mentions: str, root: Path) -> None:
    with pytest.raises(UserError, match=mentions):
        rewards.check("geneval", model=str(root / "boxes"), prompts=["a cat"], metadata=[row])
    for good in ROWS.values():
        check_row("a cat", good)


def test_what_does_not_fit_is_told(root: Path) -> None:
    images = pictures(40, 56, 1)
    reward = GenEval(str(root / "boxes"), clip=str(root / "clip"))
    with pytest.raises(UserError, match=r"expected a class that .* detects .* got 'zebra'"):
        reward(images, ["a"], [{"include": [{"class": "zebra", "count": 1}]}])
    (root / "boxes2").mkdir()
    for name in ("config.json", "model.safetensors"):
        (root / "boxes2" / name).write_bytes((root / "boxes" / name).read_bytes())
    with pytest.raises(UserError, match="found no preprocessor_config"):
        rewards.check("geneval", model=str(root / "boxes2"))
    with pytest.raises(UserError, match="expected batch of at least 1"):
        rewards.check("geneval", model=str(root / "boxes"), options={"batch": 0})


def test_only_as_many_as_are_wanted_need_their_place() -> None:
    """A second, less confident tv right of the cat changes nothing by the rules; where two are wanted, both must be left of both."""
    row, far = ROWS["tv left of cat"], at(90, 50)
    assert (
        strict(row, {"cat": [CAT], "tv": [TV, far]}, {}, 0.1)
        == strict(row, {"cat": [CAT, at(5, 50)], "tv": [TV]}, {}, 0.1)
        == 1
    )
    two: dict[str, Any] = {
        "include": [{"class": "cat", "count": 2}, {"class": "tv", "count": 2, "position": ["left of", 0]}]
    }
    assert strict(two, {"cat": [CAT, at(40, 50)], "tv": [TV, at(60, 50)]}, {}, 0.1) == 0
    assert strict(two, {"cat": [at(40, 50), CAT], "tv": [TV, at(60, 50)]}, {}, 0.1) == 0
    assert strict(two, {"cat": [CAT, at(40, 50)], "tv": [at(10, 50), TV]}, {}, 0.1) == 1
