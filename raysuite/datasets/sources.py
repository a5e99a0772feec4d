"""Preference data as others publish it: where its rows are, and what a row says. One class a layout; the place to add one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a source that become one block."""

    number: int
    file: str
    start: int
    """First row in the file."""
    stop: int
    first: int
    """Number of the first row in the whole source."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Two pictures of a prompt, each a file or its bytes, and which is preferred; None says neither."""

    prompt: str
    images: tuple[bytes | Path, bytes | Path]
    preferred: int | None


class Unusable(Exception):
    """A row that is no preference; the message is the reason."""


class Source(ABC):
    """A published layout of preference data."""

    layout: ClassVar[str]

    def __init__(self, path: str, split: str) -> None:
        self.path, self.split = path, split

    @property
    @abstractmethod
    def lengths(self) -> dict[str, int]:
        """Number of rows of every file.

        Raises:
            UserError: the source is not there, or is not of this layout.
        """

    @abstractmethod
    def raw(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """The rows of a part as they are stored."""

    @abstractmethod
    def row(self, raw: Mapping[str, Any]) -> Row:
        """What a stored row says.

        Raises:
            Unusable: nothing that can be learned from.
        """

    def identity(self) -> dict[str, Any]:
        """What decides the content of the blocks."""
        return {"layout": self.layout, "path": self.path, "split": self.split, "rows": self.lengths}

    def parts(self, size: int) -> list[Part]:
        """The source in parts of `size` rows; a part never crosses files."""
        parts: list[Part] = []
        first = 0
        for file, length in self.lengths.items():
            for start in range(0, length, size):
                stop = min(start + size, length)
                parts.append(Part(number=len(parts), file=file, start=start, stop=stop, first=first + start))
            first += length
        if not parts:
            raise UserError(f"expected preferences in {self.path}, found not one row: check the path and --split")
        return parts


class PickAPic(Source):
    """Pick-a-Pic v2's columns in parquet files, local or on the hub: jpg_0, jpg_1, label_0, label_1 (0.5 each for a tie), caption."""

    layout = "pickapic"
    columns = ("jpg_0", "jpg_1", "label_0", "label_1", "caption")

    @cached_property
    def files(self) -> list[str]:
        """Where the parquet files of the split are, as `datasets` finds them."""
        try:
            if self.path.endswith(".parquet"):
                builder = datasets.load_dataset_builder("parquet", data_files={self.split: [self.path]})
            else:
                builder = datasets.load_dataset_builder(self.path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected parquet files or a hub dataset at {self.path}, could not find them: {' '.join(str(error).split())}"
            ) from error
        found = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
        if self.split not in found:
            raise UserError(
                f"expected a split {self.split} in {self.path}, found {', '.join(found) or 'none'}: set --split"
            )
        return found[self.split]

    @cached_property
    def lengths(self) -> dict[str, int]:
        """From the files' footers, many at once: on a hub each takes a while."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(self.files, pool.map(self._length, self.files), strict=True))

    def _length(self, file: str) -> int:
        try:
            with fsspec.open(file) as stream:
                footer = pq.ParquetFile(stream)
                names, length = footer.schema_arrow.names, int(footer.metadata.num_rows)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"expected a parquet file at {file}, could not read it: {error}") from error
        missing = [column for column in self.columns if column not in names]
        if missing:
            raise UserError(
                f"expected Pick-a-Pic's columns {', '.join(self.columns)} in {file}, {', '.join(missing)} is missing: "
                "name the layout with --layout"
            )
        return length

    def raw(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """From the row groups that hold the part."""
        with fsspec.open(part.file) as stream:
            file = pq.ParquetFile(stream)
            before = 0
            for group in range(file.num_row_groups):
                length = file.metadata.row_group(group).num_rows
                start, stop = max(part.start - before, 0), min(part.stop - before, length)
                if start < stop:
                    table = file.read_row_group(group, columns=list(self.columns))
                    yield from table.slice(start, stop - start).to_pylist()
                before += length

    def row(self, raw: Mapping[str, Any]) -> Row:
        """Bytes of two pictures."""
        labels = raw["label_0"], raw["label_1"]
        if labels not in ((1, 0), (0, 1), (0.5, 0.5)):
            raise Unusable("labels that are not 1 and 0 or 0.5 each")
        images = tuple(
            image["bytes"] if isinstance(image, Mapping) else image for image in (raw["jpg_0"], raw["jpg_1"])
        )
        if None in images:
            raise Unusable("missing image")
        return Row(
            prompt=raw["caption"] or "",
            images=(images[0], images[1]),
            preferred=None if labels[0] == 0.5 else labels.index(1),
        )


class HpdV2(Source):
    """HPDv2's train.json: a list of {prompt, image_path: [a, b], human_preference: [1, 0]}, pictures in `train/` beside it."""

    layout = "hpdv2"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The whole list."""
        try:
            rows = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"expected HPDv2's JSON at {self.path}, could not read it: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(
                f"expected a list of objects in {self.path}, got something else: name the layout with --layout"
            )
        return rows

    @property
    def lengths(self) -> dict[str, int]:
        """One file."""
        return {self.path: len(self.rows)}

    def raw(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """A slice of the list."""
        yield from self.rows[part.start : part.stop]

    def row(self, raw: Mapping[str, Any]) -> Row:
        """Two files; test.json's rows of nine ranked pictures are no pairs."""
        paths, labels = raw.get("image_path"), raw.get("human_preference")
        if not isinstance(paths, list) or len(paths) != 2:
            raise Unusable("not two images")
        if labels not in ([1, 0], [0, 1]):
            raise Unusable("labels that are not 1 and 0")
        folder = Path(self.path).parent
        beside = [folder / path if (folder / path).exists() else folder / self.split / path for path in paths]
        return Row(prompt=str(raw.get("prompt") or ""), images=(beside[0], beside[1]), preferred=labels.index(1))


class JsonLines(Source):
    """A file of lines {"prompt": ..., "preferred": path, "rejected": path}, paths relative to the file."""

    layout = "jsonl"

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        try:
            text = Path(self.path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"expected lines of JSON at {self.path}, could not read them: {error}") from error
        return [line for line in text.splitlines() if line.strip()]

    @property
    def lengths(self) -> dict[str, int]:
        """One file."""
        return {self.path: len(self.lines)}

    def raw(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """A slice of the lines."""
        return ({"line": line} for line in self.lines[part.start : part.stop])

    def row(self, raw: Mapping[str, Any]) -> Row:
        """Two files, the preferred first."""
        try:
            row = json.loads(raw["line"])
        except ValueError as error:
            raise Unusable("not JSON") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("preferred", "rejected")):
            raise Unusable("missing image")
        folder = Path(self.path).parent
        images = folder / row["preferred"], folder / row["rejected"]
        return Row(prompt=str(row.get("prompt") or ""), images=images, preferred=0)


LAYOUTS: dict[str, type[Source]] = {source.layout: source for source in (PickAPic, HpdV2, JsonLines)}


def open_source(path: str, *, layout: str | None, split: str) -> Source:
    """A source at a path or hub id, of a named layout or of the one that its file name has.

    Raises:
        UserError: there is no such layout, or nothing at the path.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}: correct --layout")
    looks_local = path.startswith(("/", ".", "~")) or Path(path).suffix in (".json", ".jsonl", ".parquet")
    if looks_local and not Path(path).exists():
        raise UserError(f"expected preference data at {path}, there is nothing: check the path")
    if Path(path).exists():
        path = str(Path(path).absolute())  # processes that read it may stand elsewhere
    by_suffix = {".json": "hpdv2", ".jsonl": "jsonl"}
    return LAYOUTS[layout or by_suffix.get(Path(path).suffix, "pickapic")](path, split)


def as_items(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts as plain values, to travel."""
    return [asdict(part) for part in parts]
