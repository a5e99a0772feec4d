"""Preference data as others publish it: where its rows are, and what a row says. One class a layout; the place to add one.

A row that cannot be used says why (`Unusable`), and is set aside; only a file that cannot be read at all ends the command.
"""

from __future__ import annotations

import glob
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError, in_a_line


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


class Unusable(Exception):
    """A row or a picture that nothing can be learned from; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures of one prompt, in order of preference as far as it is known."""

    prompt: str
    images: tuple[bytes | Path, ...]
    """Files, or what is in them; at least two, where pictures are compared."""
    ranks: tuple[float, ...]
    """One a picture: the lower, the better. Equal ranks state no preference."""


def as_row(prompt: object, images: Sequence[object], ranks: object) -> Row:
    """What a file says, if it is a row.

    Raises:
        Unusable: it is none.
    """
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise Unusable("empty caption")
    if not isinstance(prompt, str) or any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise Unusable("caption that is no text")  # JSON may hold halves of characters, which nothing can write
    found = tuple(image for image in images if isinstance(image, bytes | Path))
    if len(found) < len(images):
        raise Unusable("missing image")
    if len(found) < 2:
        raise Unusable("fewer than two images")
    if not isinstance(ranks, list) or len(ranks) != len(found) or not all(map(_is_rank, ranks)):
        raise Unusable("ranks that are not one number an image")
    return Row(prompt=prompt.strip(), images=found, ranks=tuple(ranks))


def _is_rank(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and isfinite(value))


class Source(ABC):
    """A published layout of preference data."""

    layout: ClassVar[str]
    members: ClassVar[int] = 2
    """Pictures in a ranking: 1 where nothing is compared."""
    has_splits: bool = True
    """Whether `split` says which rows or pictures are meant."""

    def __init__(self, paths: Sequence[str], split: str, names: Mapping[str, str] | None = None) -> None:
        self.paths, self.split, self.names = tuple(paths), split, dict(names or {})

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether what is at a path, or the beginning of it, looks like this layout."""

    @property
    @abstractmethod
    def lengths(self) -> dict[str, int]:
        """Number of rows of every file.

        Raises:
            UserError: the source is not there, or is not of this layout.
        """

    @abstractmethod
    def raw(self, part: Part) -> Iterator[Any]:
        """The rows of a part as they are stored."""

    @abstractmethod
    def row(self, raw: Any, file: str) -> Row:
        """What a stored row of a file says.

        Raises:
            Unusable: nothing that can be learned from.
        """

    def identity(self) -> dict[str, Any]:
        """What decides the content of the blocks."""
        names = {"names": self.names} if self.names else {}
        return {"layout": self.layout, "paths": self.paths, "split": self.split, "rows": self.lengths, **names}

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
            raise UserError(
                f"expected preferences in {', '.join(self.paths)}, found not one row: check the path and --split"
            )
        return parts


class Tables(Source):
    """Parquet files with pictures in them, local or on the hub. `names` has columns that are called otherwise, by the first of the
    layout's own names.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]]
    """What each column may be called."""

    def __init__(self, paths: Sequence[str], split: str, names: Mapping[str, str] | None = None) -> None:
        super().__init__(paths, split, names)
        # data sets have, files have not
        self.has_splits = not all(path.endswith(".parquet") or Path(path).is_file() for path in paths)
        self._reading, self._last = Lock(), dict[tuple[str, int], pa.Table]()

    @classmethod
    def roles(cls) -> list[str]:
        """The first name of each column."""
        return [column[0] for column in cls.columns]

    @classmethod
    def named(cls, there: Collection[str], names: Mapping[str, str] | None = None) -> list[str] | None:
        """Each column by the name that it has among those that are there; None if one is missing."""
        found = [next((name for name in column if name in there), None) for column in cls._called(names or {})]
        known = [name for name in found if name is not None]
        return known if len(known) == len(found) else None

    @classmethod
    def known_among(cls, there: Collection[str]) -> list[str]:
        """Those of a table's columns that this layout knows."""
        return [name for column in cls.columns for name in column if name in there]

    @classmethod
    def _called(cls, names: Mapping[str, str]) -> list[tuple[str, ...]]:
        return [(names[column[0]],) if column[0] in names else column for column in cls.columns]

    @cached_property
    def files(self) -> list[str]:
        """Where the parquet files of the split are, as `datasets` finds them."""
        return [file for path in self.paths for file in self._files(path)]

    def _files(self, path: str) -> list[str]:
        if Path(path).is_file():
            return [path]
        try:
            if path.endswith(".parquet"):
                builder = datasets.load_dataset_builder("parquet", data_files={self.split: [path]})
            else:
                builder = datasets.load_dataset_builder(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected parquet files or a hub dataset at {path}, could not find them: {in_a_line(error)}"
            ) from error
        found = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
        if self.split not in found:
            raise UserError(f"expected a split {self.split} in {path}, found {', '.join(found) or 'none'}: set --split")
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
        if self.named(names, self.names) is None:
            raise self._other_columns(file, names)
        return length

    def _other_columns(self, file: str, there: Sequence[str]) -> UserError:
        """What to say of a table with these columns: of the layout that is meant, or of the one that most of them fit."""
        tables: list[type[Tables]] = [known for known in LAYOUTS.values() if issubclass(known, Tables)]
        if fits := next((known for known in tables if known is not type(self) and known.named(there)), None):
            return UserError(
                f"expected the columns of the layout {self.layout} in {file}, found {', '.join(there)}: name it with "
                f"--layout {fits.layout}"
            )
        meant = max(tables, key=lambda known: (len(known.known_among(there)), known is type(self)))
        if self.names:
            meant = type(self)
        called = dict(zip(meant.roles(), meant._called(self.names), strict=True))
        missing = {role: column for role, column in called.items() if not {*column} & {*there}}
        advice = " ".join(f"--column {role}=NAME" for role in missing if role not in self.names)
        wanted, lacking = (", ".join(" or ".join(column) for column in of.values()) for of in (called, missing))
        return UserError(
            f"expected the columns {wanted} of the layout {meant.layout} in {file}, found {', '.join(there)}, and no {lacking}: "
            + (f"say what they are called ({advice})" if advice else "correct --column")
            + f", or write another layout ({', '.join(LAYOUTS)})"
        )

    def raw(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """From the row groups that hold the part."""
        try:
            with fsspec.open(part.file) as stream:
                file = pq.ParquetFile(stream)
                before = 0
                for group in range(file.num_row_groups):
                    length = file.metadata.row_group(group).num_rows
                    start, stop = max(part.start - before, 0), min(part.stop - before, length)
                    if start < stop:
                        yield from self._group(file, part.file, group).slice(start, stop - start).to_pylist()
                    before += length
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"expected rows {part.start} to {part.stop - 1} in {part.file}, could not read them: "
                f"{in_a_line(error)}: repeat the command, or fetch the file again"
            ) from error

    def _cells(self, raw: Mapping[str, Any]) -> list[Any]:
        """Of a row that was read, in the order of the layout's columns."""
        names = self.named(raw, self.names)
        assert names is not None, "what was read are these columns"
        return [raw[name] for name in names]

    def _group(self, file: pq.ParquetFile, name: str, group: int) -> pa.Table:
        """A row group, which is read whole: the last one is kept for the parts that follow, whoever asks for them at once."""
        with self._reading:
            if (name, group) not in self._last:
                self._last.clear()
                self._last[name, group] = file.read_row_group(
                    group, columns=self.named(file.schema_arrow.names, self.names)
                )
            return self._last[name, group]


class PickAPic(Tables):
    """Pick-a-Pic v2's columns: jpg_0, jpg_1, label_0, label_1 (0.5 each for a tie), caption."""

    layout = "pickapic"
    columns = (("jpg_0",), ("jpg_1",), ("label_0",), ("label_1",), ("caption",))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whatever no other layout is."""
        return True

    def row(self, raw: Mapping[str, Any], file: str) -> Row:
        """Bytes of two pictures."""
        *images, label_0, label_1, caption = self._cells(raw)
        if (label_0, label_1) not in ((1, 0), (0, 1), (0.5, 0.5)):
            raise Unusable("labels that are not 1 and 0 or 0.5 each")
        return as_row(caption, [_in_cell(image) for image in images], [1 - label_0, 1 - label_1])


class Chosen(Tables):
    """Pairs as preference trainers ask for them: the columns prompt, chosen and rejected, of which two hold pictures; `caption` and
    `preferred` say the same as `prompt` and `chosen`.
    """

    layout = "chosen"
    columns = (("prompt", "caption"), ("chosen", "preferred"), ("rejected",))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the columns of a file, or of the first one in a folder."""
        file = min(path.rglob("*.parquet"), default=None) if path.is_dir() else path
        return file is not None and file.suffix == ".parquet" and cls.named(_columns(file)) is not None

    def row(self, raw: Mapping[str, Any], file: str) -> Row:
        """Bytes of two pictures, the preferred first."""
        prompt, *images = self._cells(raw)
        return as_row(prompt, [_in_cell(image) for image in images], [0, 1])


def _in_cell(cell: object) -> object:
    """The bytes of a picture, which `datasets` wraps with its path."""
    return cell.get("bytes") if isinstance(cell, Mapping) else cell


class Listed(Source):
    """Files that are read whole, and name pictures that lie beside them."""

    @abstractmethod
    def read(self, file: Path) -> list[Any]:
        """The rows of a file.

        Raises:
            UserError: it is no such file.
        """

    @cached_property
    def _rows(self) -> dict[str, list[Any]]:
        return {path: self.read(Path(path)) for path in self.paths}

    @property
    def lengths(self) -> dict[str, int]:
        """As read."""
        return {path: len(rows) for path, rows in self._rows.items()}

    def raw(self, part: Part) -> Iterator[Any]:
        """A slice of the list."""
        yield from self._rows[part.file][part.start : part.stop]

    def _beside(self, file: str, name: object) -> Path:
        """Where a picture is: its path is relative to the file, or to the folder there with the file's name or the split's."""
        if not isinstance(name, str) or not name:
            raise Unusable("missing image")
        folder = Path(file).parent
        places = [folder / name, folder / Path(file).stem / name, folder / self.split / name]
        return next((place for place in places if _is_there(place)), places[0])


class HpdV2(Listed):
    """HPDv2's train.json and test.json: lists of rows {prompt, image_path: [a, b, ...]} with a preference in one of two forms.

    `human_preference` is 1 for the picture that was chosen and 0 for every other (or, in the first version, the number of that
    which was chosen); `rank` is each picture's place, 1 the best, of any number of pictures. `image_path` may be called
    `file_path`. Pictures are in `train/` and `test/`.
    """

    layout = "hpdv2"
    images: ClassVar[Sequence[str]] = ("image_path", "file_path")
    ranks: ClassVar[str] = "rank"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its name."""
        return path.suffix == ".json"

    def read(self, file: Path) -> list[Any]:
        """The whole list."""
        try:
            rows = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"expected a list of rankings as JSON at {file}, could not read it: {error}") from error
        if not isinstance(rows, list):
            raise UserError(f"expected a list of objects in {file}, got something else: name the layout with --layout")
        return rows

    def row(self, raw: Any, file: str) -> Row:
        """Files of any number of pictures."""
        if not isinstance(raw, dict):
            raise Unusable("row that is no object")
        paths = next((raw[key] for key in self.images if key in raw), None)
        if not isinstance(paths, list):
            raise Unusable("missing image")
        ranks = raw[self.ranks] if self.ranks in raw else _ranks_of_chosen(raw.get("human_preference"), len(paths))
        return as_row(raw.get("prompt"), [self._beside(file, path) for path in paths], ranks)


def _ranks_of_chosen(labels: object, count: int) -> list[int]:
    """0 for the picture that was chosen, 1 for the others, about which nothing is said."""
    if isinstance(labels, int) and not isinstance(labels, bool) and 0 <= labels < count:
        labels = [int(number == labels) for number in range(count)]
    if not isinstance(labels, list) or len(labels) != count or labels.count(1) != 1 or labels.count(0) != count - 1:
        raise Unusable("labels that are not 1 and 0")
    return [1 - label for label in labels]


class ImageReward(HpdV2):
    """ImageRewardDB's rankings: its metadata-<split>.parquet, a row a picture {image_path, prompt_id, prompt, rank}, 1 the best,
    with its archives unpacked where `image_path` says; or a JSON list, either of the same rows (each archive has one) or of
    rankings {prompt, generations: [...], ranking: [...]}, as the code of the paper reads. A row here is one prompt's ranking.
    """

    layout = "imagereward"
    images = ("image_path", "generations")
    ranks = "ranking"
    columns = ("image_path", "prompt_id", "prompt", "rank")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the columns, or what the first row has."""
        known = _columns(path) if path.suffix == ".parquet" else _first_keys(path) if path.suffix == ".json" else set()
        return known.issuperset(cls.columns) or known.issuperset(("generations", "ranking"))

    def read(self, file: Path) -> list[Any]:
        """Rows of one prompt together, in the order in which prompts first come."""
        if file.suffix != ".parquet":
            rows = super().read(file)
        else:
            try:
                rows = pq.read_table(file, columns=list(self.columns)).to_pylist()
            except (OSError, pa.ArrowException, KeyError) as error:
                raise UserError(
                    f"expected ImageRewardDB's columns {', '.join(self.columns)} in {file}, could not read them: {error}"
                ) from error
        groups: dict[Any, dict[str, Any]] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or row.get("prompt_id") is None or "ranking" in row:
                groups[number,] = row  # a ranking, or none: `row` decides
                continue
            same = str(row["prompt_id"])
            group = groups.setdefault(same, {"prompt": row.get("prompt"), "image_path": [], "ranking": []})
            group["image_path"].append(row.get("image_path"))
            group["ranking"].append(row.get("rank"))
        return list(groups.values())


class JsonLines(Listed):
    """A file of lines {"prompt": ..., "preferred": path, "rejected": path}, paths relative to the file; `caption` and `chosen` say the
    same as `prompt` and `preferred`.
    """

    layout = "jsonl"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its name."""
        return path.suffix == ".jsonl"

    def read(self, file: Path) -> list[bytes]:
        """The lines that are not empty."""
        try:
            lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            raise UserError(f"expected lines of JSON at {file}, could not read them: {error}") from error
        return [line for line in lines if line.strip()]

    def row(self, raw: bytes, file: str) -> Row:
        """Two files, the preferred first."""
        try:
            row = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            raise Unusable("not JSON") from error
        if not isinstance(row, dict):
            raise Unusable("row that is no object")
        images = [self._beside(file, path) for path in (row.get("preferred", row.get("chosen")), row.get("rejected"))]
        return as_row(row.get("prompt", row.get("caption")), images, [0, 1])


class Folders(Listed):
    """A folder with `winners/` and `losers/`: winners/NAME.png is preferred to losers/NAME.jpg, and NAME.txt beside either, or
    in the folder above, is the prompt. Names may have folders of their own in them; suffixes need not agree.
    """

    layout = "folders"
    has_splits = False
    sides = ("winners", "losers")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the two folders."""
        return all(_is_there(path / side) for side in cls.sides)

    def read(self, file: Path) -> list[dict[str, Any]]:
        """Every name that either side has, in alphabetical order."""
        found: dict[str, dict[str, list[Path]]] = {}
        for side in self.sides:
            folder = file / side
            if not folder.is_dir():
                raise UserError(f"expected the folders {' and '.join(self.sides)} in {file}, found no {side}: add it")
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".txt" and not path.name.startswith("."):
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    found.setdefault(name, {side: [] for side in self.sides})[side].append(path)
        return [{"name": name, **found[name]} for name in sorted(found)]

    def row(self, raw: Mapping[str, Any], file: str) -> Row:
        """One file of each side."""
        images = [raw[side] for side in self.sides]
        if any(len(paths) > 1 for paths in images):
            raise Unusable("several images of one name")
        if not all(images):
            raise Unusable("missing image")
        captions = [Path(file) / folder / f"{raw['name']}.txt" for folder in (*self.sides, "")]
        caption = next((path for path in captions if path.is_file()), None)
        try:
            prompt = caption.read_text(encoding="utf-8-sig") if caption else None
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable("caption that is no text") from error
        return as_row(prompt, [paths[0] for paths in images], [0, 1])


class Pictures(Listed):
    """A folder of pictures that are good, to learn from with sft: NAME.txt beside NAME.png is its prompt, and without one it is the
    empty prompt. Names may have folders of their own in them.
    """

    layout, members, has_splits = "pictures", 1, False
    suffixes = (".png", ".jpg", ".jpeg", ".webp")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By a picture that lies right in it."""
        return path.is_dir() and any(file.suffix.lower() in cls.suffixes for file in path.iterdir())

    def read(self, file: Path) -> list[Path]:
        """All pictures in alphabetical order."""
        if not file.is_dir():
            raise UserError(f"expected a folder of pictures, got {file}: name a folder")
        return sorted(path for path in file.rglob("*") if path.suffix.lower() in self.suffixes and path.name[0] != ".")

    def row(self, raw: Path, file: str) -> Row:
        """One picture."""
        caption = raw.with_suffix(".txt")
        try:
            prompt = caption.read_text(encoding="utf-8-sig") if caption.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable("caption that is no text") from error
        return Row(prompt=prompt.strip(), images=(raw,), ranks=(0,))


def _columns(file: Path) -> set[str]:
    """Names of a parquet file's columns; none where it cannot be read."""
    try:
        return set(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return set()


def _first_keys(file: Path) -> set[str]:
    """What the first object of a JSON list has; nothing where it cannot be read."""
    try:
        with file.open(encoding="utf-8") as stream:
            beginning = stream.read(1 << 20)
        first, _ = json.JSONDecoder().raw_decode(beginning, beginning.index("{"))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(first)


LAYOUTS: dict[str, type[Source]] = {
    source.layout: source for source in (Folders, Pictures, JsonLines, ImageReward, HpdV2, Chosen, PickAPic)
}
"""In the order in which they are asked whether they recognise a file."""


def open_source(
    given: Sequence[str], *, layout: str | None, split: str, names: Mapping[str, str] | None = None
) -> Source:
    """A source of one or more files, folders, patterns or hub ids, of a named layout or of the one that they look like.

    Args:
        given: paths, patterns or hub ids.
        layout: None is by their looks, or by the columns that are named.
        split: of the source.
        names: of a table's columns that are called otherwise than the layout says, by the layout's name.

    Raises:
        UserError: there is no such layout or column, nothing at a path, or paths are of several layouts.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}: correct --layout")
    if names:
        layout = _with_columns(layout, names)
    paths = list(dict.fromkeys(path for pattern in given for path in _found(pattern)))
    if layout is None:
        looks = {next(name for name, known in LAYOUTS.items() if known.recognises(Path(path))): path for path in paths}
        if len(looks) > 1:
            raise UserError(
                f"expected files of one layout, got {', '.join(f'{path} ({name})' for name, path in looks.items())}: encode them "
                "one after the other, or name the layout with --layout"
            )
        (layout,) = looks
        if layout == PickAPic.layout:
            for path in map(Path, paths):
                _check_looks(path)
    source = LAYOUTS[layout](paths, split, names)
    if split != "train" and not source.has_splits:
        raise UserError(
            f"expected no --split with {', '.join(paths)}, which has none, got {split}: leave it out, and name the file or "
            "folder that is meant"
        )
    return source


def _with_columns(layout: str | None, names: Mapping[str, str]) -> str:
    """The layout of tables that has all these columns."""
    tables = {name: known.roles() for name, known in LAYOUTS.items() if issubclass(known, Tables)}
    for name, roles in tables.items():
        if layout in (None, name) and set(names) <= set(roles):
            return name
    known = "; ".join(f"{', '.join(roles)} of {name}" for name, roles in tables.items())
    raise UserError(
        f"expected --column with columns of one layout ({known}), got {', '.join(names)}"
        f"{f' with --layout {layout}' if layout else ''}: correct one of them"
    )


def _check_looks(path: Path) -> None:
    """Refuse what is here and is no parquet file, nor a folder of such: it has been recognised as nothing else.

    Raises:
        UserError: it is something else.
    """
    if path.is_dir() and not any(path.rglob("*.parquet")):
        there = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        what = f"{', '.join(there[:6])}{', ...' if len(there) > 6 else ''}" if there else "nothing"
    elif path.is_file() and path.suffix != ".parquet":
        what = f"a file {path.suffix or 'without a suffix'}"
    else:
        return
    raise UserError(
        f"expected preference data at {path}, found {what}: name a folder of {' and '.join(Folders.sides)}, a .jsonl or a "
        ".parquet of prompt, preferred and rejected, Pick-a-Pic's .parquet, or another layout by its name (--layout)"
    )


def _found(pattern: str) -> list[str]:
    """Absolute paths of what is meant, since processes that read it may stand elsewhere; a hub's name as it is."""
    path = Path(pattern).expanduser()
    if _is_there(path):
        return [str(path.absolute())]
    matches = sorted(glob.glob(str(path.absolute()), recursive=True))  # noqa: PTH207 - Path.glob wants relative patterns
    looks_local = (
        pattern.startswith(("/", ".", "~")) or path.suffix in (".json", ".jsonl", ".parquet") or glob.has_magic(pattern)
    )
    if not matches and looks_local and "://" not in pattern:
        raise UserError(f"expected preference data at {pattern}, there is nothing: check the path")
    return matches or [pattern]


def _is_there(path: Path) -> bool:
    """Whether something is at a path; False for what cannot be a path, or may not be looked at."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for those


def as_items(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts as plain values, to travel."""
    return [asdict(part) for part in parts]
