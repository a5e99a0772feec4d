"""CoBSAT as published: 500 pictures with captions, and the 1,000 index records that make 10,000 prompts for each number of shots.

    DIR/color_leaf/yellow_leaf.jpg      a picture a cell, in a folder for each theme and object
    DIR/color_object.csv                columns image and caption, a file for each theme

The pictures and captions are Zeng et al.'s, under the MIT licence: https://huggingface.co/datasets/yzeng58/CoBSAT, datasets.zip.

Every record has two permutations of 0 to 9. For N shots the demonstrations' texts are the first N of the one, the query is the next,
and the latent of all is number N + 1 of the other (counted from 0): the same record has another latent at every N. That is how the
published numbers were made; `paired` keeps the latent and the query of eight shots for all, so that shots are compared on the same
questions.

Source: Zeng et al., "Can MLLMs Perform Text-to-Image In-Context Learning?", 2024, and its released code.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from raysuite.errors import UserError
from raysuite.in_context.tasks import Cell, Demo, Episode, Judgement, Task, Theme, Variant, World, texts_of

OBJECTS = ("leaf", "hat", "cup", "chair", "car", "box", "book", "ball", "bag", "apple")
ANIMALS = ("zebra", "tiger", "sheep", "pig", "monkey", "lion", "dog", "cow", "cat", "bird")
THEMES: Mapping[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "Color": (
        "color",
        ("yellow", "white", "red", "purple", "pink", "orange", "green", "brown", "blue", "black"),
        "object",
        OBJECTS,
    ),
    "Background": (
        "background",
        ("beach", "desert", "glacier", "volcano", "park", "gym", "waterfall", "space", "cave", "seafloor"),
        "animal",
        ANIMALS,
    ),
    "Style": (
        "style",
        ("watercolor", "sketch", "pixel", "origami", "lego", "icon", "graffiti", "futuristic", "3d", "old"),
        "object",
        OBJECTS,
    ),
    "Action": (
        "action",
        ("swim", "sleep", "sing", "run", "read", "fly", "eat", "drink", "cry", "angry"),
        "animal",
        ANIMALS,
    ),
    "Texture": (
        "texture",
        ("wood", "wicker", "sequined", "plastic", "paper", "metal", "leather", "lace", "denim", "ceramic"),
        "object",
        OBJECTS,
    ),
}
"""By theme: what its details are, which, what its objects are, which. The order is that of the records' numbers."""
WORDS = {"3d": "wireframe", "park": "amusement park"}
"""How texts, and the judge's options, say what file names say in another word. Latents that a text names keep the file's word."""
FORMS: Mapping[str, tuple[str, ...]] = {
    "leaf": ("leaves",),
    "box": ("boxes",),
    "watercolor": ("watercolour",),
    "pixel": ("pixelated",),
    "swim": ("swimming",),
    "sleep": ("sleeping", "asleep"),
    "sing": ("singing",),
    "run": ("running",),
    "read": ("reading",),
    "fly": ("flying", "flies"),
    "eat": ("eating",),
    "drink": ("drinking",),
    "cry": ("crying", "cries"),
    "angry": ("angrily",),
    "wood": ("wooden",),
    "metal": ("metallic",),
}
"""Other forms of the same words, by which descriptions may name them, besides the plural with s."""
RECORDS = 1_000
SEED = 123
"""With which the published records were shuffled."""
DIGEST = "06f1c92f2e75bcf637b4f33a94e6399be667860da716eaede40955e6e1338f2f"
"""SHA-256 of the published records as JSON, [[x_list, theta_list], ...] without spaces."""
PUBLISHED = "prompts_list_default.json"
"""The file of them in the released code."""

Record = tuple[tuple[int, ...], tuple[int, ...]]
"""Numbers of texts and of latents, each a permutation of 0 to 9."""


@cache
def records() -> tuple[Record, ...]:
    """The published index records, made again as they were made: one shuffle after the other of two lists, with Python's generator."""
    shuffled = random.Random(SEED)
    texts, latents = list(range(10)), list(range(10))
    found = []
    for _ in range(RECORDS):
        shuffled.shuffle(texts)
        shuffled.shuffle(latents)
        found.append((tuple(texts), tuple(latents)))
    if digest(found) != DIGEST:
        raise UserError(
            "expected this version of Python to shuffle as the one that made the published records, it does not: the episodes would "
            "be others; use Python 3.11 to 3.14"
        )
    return tuple(found)


def digest(found: list[Record]) -> str:
    """SHA-256 of records, as in `DIGEST`."""
    return hashlib.sha256(json.dumps(found, separators=(",", ":")).encode()).hexdigest()


def check_published(file: Path) -> None:
    """Hold the records against a file of the released code.

    Raises:
        UserError: they differ, or it is no such file.
    """
    try:
        found = [(tuple(row["x_list"]), tuple(row["theta_list"])) for row in json.loads(file.read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected the published index records in {file}, could not read them ({error})") from error
    if tuple(found) != records():
        raise UserError(
            f"expected the 1,000 published index records in {file}, got {len(found)} others: copy it again, or take it away"
        )


class OfficialWorld(World):
    """The published data.

    Args:
        directory: with the five csv files, or with a folder `datasets` that has them.
        paired: whether one latent and one query serve all numbers of shots.

    Raises:
        UserError: pictures or captions are missing.
    """

    one_picture = True

    def __init__(self, directory: Path, *, paired: bool = False) -> None:
        self.name, self.paired = "CoBSAT", paired
        self.directory = directory / "datasets" if (directory / "datasets").is_dir() else directory
        self.themes = tuple(Theme(name, details, objects) for name, (_, details, _, objects) in THEMES.items())
        pairs = product(self.themes, ("I", "II"))
        self.tasks = tuple(
            Task(number, theme, "I" if kind == "I" else "II") for number, (theme, kind) in enumerate(pairs, start=1)
        )
        for file in (directory / PUBLISHED, directory / "load_datasets" / PUBLISHED):
            if file.exists():
                check_published(file)
        self._captions = {theme.name: self._read(theme) for theme in self.themes}
        self._meanings = {
            # a caption that two cells have says nothing of which is meant
            name: {caption: Judgement(*cell) for cell, caption in captions.items() if often[caption] == 1}
            for name, captions in self._captions.items()
            for often in [Counter(captions.values())]
        }
        self._opened = lru_cache(maxsize=100)(_opened)

    def settings(self) -> Mapping[str, object]:
        """What decides the episodes: captions are among it, pictures by their sizes on disk."""
        hashed = hashlib.sha256()
        for theme in self.themes:
            for cell in theme.cells:
                hashed.update(f"{self.file(theme, cell).stat().st_size} {self._captions[theme.name][cell]}\n".encode())
        return {"name": self.name, "paired": self.paired, "data": hashed.hexdigest()}

    def file(self, theme: Theme, cell: Cell) -> Path:
        """A cell's picture."""
        detail_word = THEMES[theme.name][0]
        return self.directory / f"{detail_word}_{cell.object}" / f"{cell.detail}_{cell.object}.jpg"

    def episode(self, task: Task, shots: int, index: int, variant: Variant = "default") -> Episode:
        """Prompt number `index` of those with so many shots, 0 to 999.

        Raises:
            ValueError: there are not so many prompts or shots.
        """
        if not (0 <= index < RECORDS and 0 < shots <= 8):
            raise ValueError(f"expected an index from 0 to {RECORDS - 1} and 1 to 8 shots, got {index} and {shots}")
        texts, latents = records()[index]
        last = 8 if self.paired else shots
        latent = task.latents[latents[last + 1]]
        asked = [task.requests[number] for number in (*texts[:shots], texts[last])]
        wrong = [task.latents[number] for number in latents[: shots + 1]]
        said = texts_of(variant, [WORDS.get(request, request) for request in asked], latent, wrong)
        cells = [task.cell(request, latent) for request in asked]
        demos = [
            Demo(text, cell, self.sentence(task.theme, cell), partial(self._opened, self.file(task.theme, cell)))
            for text, cell in zip(said[:-1], cells[:-1], strict=True)
        ]
        return Episode(task, index, variant, tuple(demos), said[-1], asked[-1], cells[-1])

    def sentence(self, theme: Theme, cell: Cell) -> str:
        """The published caption of the cell's picture."""
        return self._captions[theme.name][cell]

    def meaning(self, theme: Theme, description: str) -> Judgement:
        """A published caption means its cell; of another text, an option of each side counts where it alone occurs, as whole words."""
        known = self._meanings[theme.name].get(description)
        return known or Judgement(named(theme.details, description), named(theme.objects, description))

    def picture(self, theme: Theme, cell: Cell, rng: np.random.Generator) -> np.ndarray:
        """The cell's picture: there is one."""
        return self._opened(self.file(theme, cell))

    def _read(self, theme: Theme) -> dict[Cell, str]:
        """Captions of a theme by cell, after a look at its pictures."""
        detail_word, _, object_word, _ = THEMES[theme.name]
        file = self.directory / f"{detail_word}_{object_word}.csv"
        otherwise = "unpack datasets.zip of huggingface.co/datasets/yzeng58/CoBSAT and name the folder with --data"
        try:
            with file.open(newline="", encoding="utf-8-sig") as opened:
                rows = [(row["image"], row["caption"]) for row in csv.DictReader(opened)]
        except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"expected a table of images and captions in {file}, could not read it ({error}): {otherwise}"
            ) from error
        captions = {Path(image or "").name: (caption or "").strip() for image, caption in rows}
        found = {}
        for cell in theme.cells:
            picture = self.file(theme, cell)
            if not picture.is_file():
                raise UserError(f"expected all 500 pictures of CoBSAT, found no {picture}: {otherwise}")
            if not captions.get(picture.name):
                raise UserError(f"expected a caption of {picture.name} in {file}, found none: {otherwise}")
            found[cell] = captions[picture.name]
        return found


def named(options: tuple[str, ...], text: str) -> str | None:
    """The one option that a text names in whole words, by any of its names and forms; None where it names none or several."""
    found = [option for option in options if any(re.search(word, text, re.IGNORECASE) for word in _patterns(option))]
    return found[0] if len(found) == 1 else None


def _patterns(option: str) -> list[str]:
    words = (option, WORDS.get(option, option), *FORMS.get(option, ()))
    return [rf"\b{re.escape(word)}s?\b" for word in words]


def _opened(file: Path) -> np.ndarray:
    """A picture, uint8 (H, W, 3)."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"expected a picture in {file}, could not read it ({error}): unpack datasets.zip again"
        ) from error
