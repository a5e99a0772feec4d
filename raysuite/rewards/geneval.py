"""GenEval: whether a picture shows what its prompt names, as often, in the colour and on the side that the prompt says.

A detector finds objects, CLIP names the colour of each, and rules decide. Rows of metadata are GenEval's own:

    {"tag": "position", "prompt": "a photo of a bird below a cat",
     "include": [{"class": "cat", "count": 1}, {"class": "bird", "count": 1, "position": ["below", 0]}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    Mask2FormerForUniversalSegmentation,
)

from raysuite.errors import UserError
from raysuite.rewards.clip import NEEDS as CLIP_NEEDS, ClipScore
from raysuite.rewards.network import check_directory, load, network_of, processed, processor_of

MODEL = "facebook/mask2former-swin-small-coco-instance"
NEEDS = ("config.json", "model.safetensors", "preprocessor_config.json")
OTHERWISE = "name the hub id of a Mask2Former or DETR that was trained on COCO, or a directory that it was saved to"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
WORDS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
"""What CLIP compares a crop with, for every colour."""
SIZE, DIVISOR = {"shortest_edge": 800, "longest_edge": 1333}, 32
"""Of the pictures that a Mask2Former sees, as mmdetection tests it, and what their sides are stretched to a multiple of, where
mmdetection pads them."""
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLDS = ("threshold", "counting_threshold", "position_threshold", "max_overlap")
GREY = (153, 153, 153)
"""Behind an object of which the mask is known."""
NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""COCO's names as detectors spell them, and as GenEval does."""


@dataclass(frozen=True)
class Thing:
    """An object that was found."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels."""
    confidence: float
    mask: np.ndarray | None = None
    """Which pixels it has, bool (H, W)."""


class GenEval:
    """Strict: 1 where everything is as the row says, otherwise 0; its mean is GenEval's score of a tag. Graded: partial credit.

    Source: Ghosh et al., "GenEval", 2023, and its evaluation script: its rules and thresholds. There the detector is mmdetection's
    Mask2Former (Swin-S, COCO); the default here is the same architecture as its authors trained it, on pictures of the same size, so
    that scores may differ by a little. The graded score follows Liu et al. (Flow-GRPO), 2025: the mean, over the objects that a row
    names, of 1 - |found - wanted| / wanted, and of a term for the colour or relation, 0 where the number is wrong. It falls below 0
    where more than twice as many are found as wanted. A wrong relation is 0 here; their server counts it as 0 and then as 1, too.
    Checked on tiny random detectors and a tiny CLIP; not run on published weights.

    Args:
        model: hub id or directory of a Mask2Former for instances, or of a detector of DETR's kind, without masks.
        clip: hub id or directory of the CLIP that names colours.
        graded: partial credit in place of 0 or 1.
        threshold: confidence above which an object counts.
        counting_threshold: the same for rows with the tag `counting`.
        position_threshold: share of both objects' sizes by which their centres must lie apart before a relation holds.
        max_objects: of one class that are looked at, the most confident first.
        max_overlap: intersection over union from which a less confident object of its class is dropped; 1 keeps all.
        device: where detector and CLIP are.
        batch: pictures that go through the detector at once.
    """

    def __init__(
        self,
        model: str = MODEL,
        *,
        clip: str = ClipScore.MODEL,
        graded: bool = False,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        position_threshold: float = 0.1,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        device: str = "cpu",
        batch: int = 8,
    ) -> None:
        self.check(model, clip=clip, max_objects=max_objects, batch=batch)
        self.model, self.graded, self.device, self.batch = model, graded, torch.device(device), batch
        self.threshold, self.counting_threshold, self.position_threshold = (
            threshold,
            counting_threshold,
            position_threshold,
        )
        self.max_objects, self.max_overlap = max_objects, max_overlap
        self._processor = processor_of(model, OTHERWISE)
        config = load(lambda: AutoConfig.from_pretrained(model), "a configuration", model, OTHERWISE)
        self._masks = config.model_type == "mask2former"
        kind = Mask2FormerForUniversalSegmentation if self._masks else AutoModelForObjectDetection
        network = network_of(kind, model, "a detector", OTHERWISE)
        self._network = network.to(self.device).requires_grad_(False).eval()
        # the hub's processors of Mask2Former squash pictures to 384 x 384, in which small objects are lost
        self._size = {"size": SIZE, "size_divisor": DIVISOR} if self._masks else {}
        self._names = {index: NAMES.get(name, name) for index, name in config.id2label.items()}
        self._clip = ClipScore(clip, device=device)
        self._colours: dict[str, Tensor] = {}

    @classmethod
    def check(
        cls,
        model: str | None,
        *,
        clip: str = ClipScore.MODEL,
        max_objects: int = 16,
        batch: int = 8,
        **options: Any,
    ) -> None:
        """Refuse directories that lack something, and numbers that make no sense."""
        check_directory(model or MODEL, NEEDS, OTHERWISE)
        check_directory(clip, CLIP_NEEDS, ClipScore.OTHERWISE)
        for name, value in (("max_objects", max_objects), ("batch", batch)):
            if type(value) is not int or value < 1:
                raise UserError(f"expected {name} of at least 1 for the reward geneval, got {value!r}")
        for name, value in options.items():
            if name in THRESHOLDS and (type(value) not in (int, float) or not 0 <= value <= 1):
                raise UserError(f"expected {name} of 0 to 1 for the reward geneval, got {value!r}")

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows that are not GenEval's."""
        for prompt, row in zip(prompts, metadata, strict=True):
            check_row(prompt, row)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores (N,), float64, of pictures, uint8 (N, H, W, 3), for what their rows say."""
        self.check_prompts(prompts, metadata)
        known = set(self._names.values())
        for row in metadata:
            for clause in (*row["include"], *(row.get("exclude") or ())):
                if clause["class"] not in known:
                    raise UserError(
                        f"expected a class that {self.model} detects for the reward geneval, got {clause['class']!r}: "
                        "name another detector"
                    )
        scores = []
        for first in range(0, len(images), self.batch):
            rows = metadata[first : first + self.batch]
            thresholds = [self.counting_threshold if row.get("tag") == "counting" else self.threshold for row in rows]
            found = self.detect(images[first : first + self.batch], thresholds)
            scores += [
                self._score(image, things, row)
                for image, things, row in zip(images[first : first + self.batch], found, rows, strict=True)
            ]
        return np.array(scores, dtype=np.float64)

    def _score(self, image: np.ndarray, things: Mapping[str, Sequence[Thing]], row: Mapping[str, Any]) -> float:
        colours = {
            clause["class"]: self.colours(image, clause["class"], things.get(clause["class"], ()))
            for clause in row["include"]
            if clause.get("color")
        }
        judge = graded if self.graded else strict
        return judge(row, things, colours, self.position_threshold)

    def detect(self, images: np.ndarray, thresholds: Sequence[float]) -> list[dict[str, list[Thing]]]:
        """Objects by class, the most confident first, of pictures uint8 (N, H, W, 3), each above its own threshold."""
        height, width = images.shape[1:3]
        pixels = processed(self._processor, images, **self._size).to(self.device)
        outputs = self._network(**pixels)
        if self._masks:
            side = pixels["pixel_values"].shape[2:]
            found = [
                instances(classes, masks, side, (height, width), threshold)
                for classes, masks, threshold in zip(
                    outputs.class_queries_logits, outputs.masks_queries_logits, thresholds, strict=True
                )
            ]
        else:
            answers = self._processor.post_process_object_detection(
                outputs, threshold=min(thresholds), target_sizes=[(height, width)] * len(images)
            )
            found = [
                [
                    (int(label), Thing((box[0], box[1], box[2], box[3]), float(score)))
                    for label, box, score in zip(
                        answer["labels"].tolist(), answer["boxes"].tolist(), answer["scores"].tolist(), strict=True
                    )
                    if score > threshold
                ]
                for answer, threshold in zip(answers, thresholds, strict=True)
            ]
        return [self._by_class(things) for things in found]

    def _by_class(self, found: Sequence[tuple[int, Thing]]) -> dict[str, list[Thing]]:
        groups: dict[str, list[Thing]] = {}
        for label, thing in found:
            groups.setdefault(self._names[label], []).append(thing)
        return {name: kept(things, self.max_objects, self.max_overlap) for name, things in groups.items()}

    def colours(self, image: np.ndarray, name: str, things: Sequence[Thing]) -> list[str]:
        """The colour of each object of a class, as CLIP sees its crop."""
        return [COLOURS[index] for index in self.likeness(image, name, things).argmax(-1).tolist()] if things else []

    def likeness(self, image: np.ndarray, name: str, things: Sequence[Thing]) -> Tensor:
        """Cosines (objects, colours) of the crops of objects with what CLIP is told of each colour."""
        if name not in self._colours:
            texts = [words.format(colour=colour, name=name) for colour in COLOURS for words in WORDS]
            features = self._clip.text_features(texts).view(len(COLOURS), len(WORDS), -1)
            self._colours[name] = F.normalize(features.mean(1), dim=-1)
        pixels = torch.cat([self._clip.pixels(crop(image, thing)[None]) for thing in things]).to(self.device)
        return self._clip.image_features(pixels) @ self._colours[name].T


def instances(
    classes_QC: Tensor, masks_Qhw: Tensor, side: Sequence[int], size: tuple[int, int], threshold: float
) -> list[tuple[int, Thing]]:
    """Objects that a Mask2Former sees in a picture: labels with masks, boxes and confidences.

    The confidence of a query in a class is its probability times the mean probability of the pixels in its mask; of all pairs of
    query and class, as many as there are queries are looked at.

    Args:
        classes_QC: logits of Q queries; the last class is none.
        masks_Qhw: logits of their masks.
        side: height and width of the network's input.
        size: height and width of the picture.
        threshold: of the confidence.
    """
    probabilities = classes_QC.float().softmax(-1)[:, :-1]
    most, pairs = probabilities.flatten().topk(min(len(probabilities), probabilities.numel()))
    queries, labels = pairs // probabilities.shape[1], pairs % probabilities.shape[1]
    able = most > threshold  # a confidence is at most the probability: other masks need not be enlarged
    most, queries, labels = most[able], queries[able], labels[able]
    if not len(most):
        return []
    logits = F.interpolate(masks_Qhw[queries].float()[None], tuple(side), mode="bilinear", align_corners=False)
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    means = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    found = []
    for label, confidence, mask in zip(labels.tolist(), (most * means).tolist(), inside.cpu().numpy(), strict=True):
        if confidence > threshold and mask.any():
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append((label, Thing(box, confidence, mask)))
    return found


def kept(things: Sequence[Thing], most: int, overlap: float) -> list[Thing]:
    """The most confident first, at most `most`, without those that overlap a more confident one (below 1 only)."""
    left = sorted(things, key=lambda thing: -thing.confidence)[:most]
    if overlap >= 1:
        return left
    chosen: list[Thing] = []
    for thing in left:
        if all(shared(thing, other) < overlap for other in chosen):
            chosen.append(thing)
    return chosen


def shared(a: Thing, b: Thing) -> float:
    """Intersection over union of two boxes, whose last pixels count."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(a.box[0], b.box[0]), max(a.box[1], b.box[1]), min(a.box[2], b.box[2]), min(a.box[3], b.box[3]))
    either = area(*a.box) + area(*b.box) - both
    return both / either if either else 0.0


def crop(image: np.ndarray, thing: Thing) -> np.ndarray:
    """An object cut out, its surroundings grey where its mask is known: uint8 (h, w, 3)."""
    if thing.mask is not None:
        image = np.where(thing.mask[..., None], image, np.array(GREY, np.uint8))
    left, top, right, bottom = (round(edge) for edge in thing.box)
    return np.asarray(Image.fromarray(image).crop((left, top, max(right, left + 1), max(bottom, top + 1))))


def relations(a: Thing, b: Thing, tolerance: float) -> set[str]:
    """Where `a` is, seen from `b`: none, one, or two on a diagonal.

    Centres count as apart, along each axis, by what exceeds `tolerance` times the sum of both sizes; a relation holds where that is
    more than half of the distance of the centres.

    >>> cat, dog = Thing((0, 0, 10, 10), 1.0), Thing((30, 0, 40, 10), 1.0)
    >>> relations(cat, dog, 0.1), relations(dog, cat, 0.1), relations(cat, cat, 0.1)
    ({'left of'}, {'right of'}, set())
    """
    centres = [np.array([(t.box[0] + t.box[2]) / 2, (t.box[1] + t.box[3]) / 2]) for t in (a, b)]
    sizes = [np.abs([t.box[2] - t.box[0], t.box[3] - t.box[1]]) for t in (a, b)]
    offset = centres[0] - centres[1]
    apart = np.maximum(np.abs(offset) - tolerance * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if (np.abs(apart) < 1e-3).all():
        return set()
    right, down = apart / np.linalg.norm(offset)
    holds = (right < -0.5, right > 0.5, down < -0.5, down > 0.5)
    return {relation for relation, true in zip(RELATIONS, holds, strict=True) if true}


def strict(
    row: Mapping[str, Any],
    things: Mapping[str, Sequence[Thing]],
    colours: Mapping[str, Sequence[str]],
    tolerance: float,
) -> float:
    """1 where a picture is as its row says, otherwise 0.

    Of each class that is included, as many as are wanted must be found, and the most confident ones have the colour and the place;
    of a class that is excluded, fewer.

    Args:
        row: of metadata.
        things: what was found, by class, the most confident first.
        colours: of all objects of the classes whose colour matters.
        tolerance: of relations.
    """
    matched: list[Sequence[Thing] | None] = []
    for clause in row["include"]:
        name, count = clause["class"], clause["count"]
        found = things.get(name, ())[:count]
        fits = len(found) >= count
        if fits and clause.get("color"):
            fits = colours[name][:count].count(clause["color"]) >= count
        if fits and clause.get("position"):
            fits = _placed(found, clause["position"], matched, tolerance)
        matched.append(found if fits else None)
    excluded = any(len(things.get(c["class"], ())) >= c["count"] for c in row.get("exclude") or ())
    return float(None not in matched and not excluded)


def graded(
    row: Mapping[str, Any],
    things: Mapping[str, Sequence[Thing]],
    colours: Mapping[str, Sequence[str]],
    tolerance: float,
) -> float:
    """Partial credit, at most 1; arguments as of `strict`. All that were found count, and `exclude` is not looked at."""
    terms: list[float] = []
    matched: list[Sequence[Thing] | None] = []
    for clause in row["include"]:
        name, count = clause["class"], clause["count"]
        found = things.get(name, ())
        terms.append(1 - abs(count - len(found)) / count)
        fits = len(found) == count
        if not fits and (clause.get("color") or clause.get("position")):
            terms.append(0.0)
        if fits and clause.get("color"):
            right = colours[name].count(clause["color"])
            terms.append(1 - abs(count - right) / count)
            fits = right == count
        if fits and clause.get("position"):
            fits = _placed(found, clause["position"], matched, tolerance)
            terms.append(float(fits))
        matched.append(found if fits else None)
    return sum(terms) / len(terms)


def _placed(
    found: Sequence[Thing], position: Sequence[Any], matched: Sequence[Sequence[Thing] | None], tolerance: float
) -> bool:
    """Whether each of these stands as wanted to each of those that an earlier clause matched."""
    relation, other = position[0], matched[position[1]]
    return other is not None and all(relation in relations(a, b, tolerance) for a in found for b in other)


def check_row(prompt: str, row: Mapping[str, Any]) -> None:
    """Refuse a row of metadata that is not GenEval's.

    Raises:
        UserError: it is not.
    """

    def refused(wanted: str, got: Any) -> UserError:
        given = json.dumps(got, default=str)[:200]
        return UserError(
            f"expected {wanted} in the metadata of the prompt {prompt!r} for the reward geneval, got {given}: its rows are those of "
            "GenEval's evaluation_metadata.jsonl"
        )

    include, exclude = row.get("include"), row.get("exclude") or ()
    if not isinstance(include, Sequence) or not include or isinstance(include, str):
        raise refused("a list include", include)
    if not isinstance(exclude, Sequence) or isinstance(exclude, str):
        raise refused("a list exclude", exclude)
    for clause in (*include, *exclude):
        if not isinstance(clause, Mapping) or not isinstance(clause.get("class"), str):
            raise refused("a class of everything that is included or excluded", clause)
        if type(clause.get("count")) is not int or clause["count"] < 1:
            raise refused("a count of at least 1", clause)
    for index, clause in enumerate(include):
        if clause.get("color") and clause["color"] not in COLOURS:
            raise refused(f"a color of {', '.join(COLOURS)}", clause)
        position = clause.get("position")
        if position and not (
            isinstance(position, Sequence)
            and len(position) == 2
            and position[0] in RELATIONS
            and type(position[1]) is int
            and 0 <= position[1] < index
        ):
            raise refused(f"a position such as [{json.dumps(RELATIONS[0])}, 0], of an earlier clause", clause)
