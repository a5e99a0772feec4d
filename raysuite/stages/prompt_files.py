"""Prompts as files and hubs have them: rows of a text and whatever else is known of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError, in_a_line

Row = tuple[str, Mapping[str, Any]]
"""A prompt, and the other columns of its row."""

BUILT_IN = ("scenes", "scenes-users", "scenes-validation", "scenes-test", "toy")
"""Sources that are worlds."""
TABLES: Mapping[str, Mapping[str, Any]] = {
    ".csv": {"delimiter": ","},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},  # its quotes are its prompts'
}
FORMS = ".txt, .json, .jsonl, .csv, .tsv, .parquet"
NAMES = ("prompt",)
"""Of the column of prompts, in lower case."""


def read(source: str, names: Sequence[str] = NAMES) -> list[Row]:
    """All rows of a file, of a directory with a data set, or of one on a hub, in order, repetitions and all.

    Files: `.txt` has a prompt a line; `.json` a list of prompts or of objects; `.jsonl` an object a line, `.csv`, `.tsv` and
    `.parquet` columns, one of which is called `prompt` (however it is spelled: `Prompt`) and the others of which are metadata.
    Lines end with newlines only: other separators of Unicode may be part of a prompt. Columns of bytes, such as pictures, are left
    out, and what JSON has no form for (dates, decimals) is text. A data set is `owner/name` or a directory that `datasets` can load;
    `owner/name:split` names its split, which is `train` or the only one unless told.

    Args:
        source: which.
        names: that the column of prompts may have, in lower case.

    Raises:
        UserError: there is no such thing, it cannot be decoded, or it has no prompt.
    """
    path = Path(source)
    if path.suffix in (".txt", ".jsonl"):
        rows = _lines(path, names)
    elif path.suffix == ".json":
        rows = _list(path, names)
    elif path.suffix in TABLES:
        rows = _table(path, names)
    elif path.suffix == ".parquet":
        rows = _parquet(path, names)
    elif Path(source.partition(":")[0]).is_dir() or (
        not path.exists() and not path.is_absolute() and source.count("/") == 1
    ):
        rows = _data_set(source, names)
    else:
        raise UserError(
            f"expected prompts from scenes, scenes-users, toy, a file ({FORMS}) or a data set, got {source}: name one of those"
        )
    if not rows:
        raise UserError(f"expected at least one prompt in {source}, found none: add one")
    return rows


def digest(source: str) -> str:
    """SHA-256 of what `source` holds: of the file, or of the rows of a data set."""
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256("\n".join(identity(row) for row in read(source)).encode()).hexdigest()


def identity(row: Row) -> str:
    """What makes two rows the same prompt: text and metadata."""
    return json.dumps([row[0], dict(row[1])], sort_keys=True, default=str)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"expected a prompt file at {path}, could not read it ({error.strerror}): check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"expected UTF-8 text in {path}, byte {error.start} is not: save the file as UTF-8") from error


def _lines(path: Path, names: Sequence[str]) -> list[Row]:
    lines = [(n, line.strip()) for n, line in enumerate(_text_of(path).split("\n"), start=1)]
    if path.suffix == ".txt":
        return [(line, {}) for _, line in lines if line]
    rows = []
    for number, line in ((number, line) for number, line in lines if line):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"expected a JSON object in {path}, line {number}, got something else ({in_a_line(error, 200)}): correct the line"
            ) from error
        rows.append(_json_row(row, f"{path}, line {number}", names))
    return rows


def _list(path: Path, names: Sequence[str]) -> list[Row]:
    try:
        rows = json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"expected JSON in {path}, got something else ({in_a_line(error, 200)}): correct it; a file with an object a line is a "
            ".jsonl"
        ) from error
    if not isinstance(rows, list):
        raise UserError(
            f"expected a list of prompts, or of objects with a prompt, in {path}, got {type(rows).__name__}: make it one"
        )
    return [
        _json_row({names[0]: row} if isinstance(row, str) else row, f"{path}, entry {number}", names)
        for number, row in enumerate(rows, start=1)
    ]


def _json_row(row: Any, where: str, names: Sequence[str]) -> Row:
    named = [name for name in row if name.lower() in names] if isinstance(row, dict) else []
    text = row[named[0]] if len(named) == 1 else None
    if not isinstance(text, str) or not text.strip():
        got = json.dumps(row, ensure_ascii=False)[:80]
        raise UserError(f'expected an object with a non-empty "{names[0]}" in {where}, got {got}: add it')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(
            f"expected whole characters in {where}, got half of one in {json.dumps(text)[:80]}: write the prompt again"
        )
    return text.strip(), {name: value for name, value in row.items() if name != named[0]}


def _table(path: Path, names: Sequence[str]) -> list[Row]:
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True, **TABLES[path.suffix])
    try:
        columns, *rows = [cells for cells in reader if cells] or [[]]
    except csv.Error as error:
        raise UserError(f"expected a table in {path}, line {reader.line_num} is none ({error}): correct it") from error
    for number, cells in enumerate(rows, start=1):
        if len(cells) != len(columns):
            raise UserError(
                f"expected {len(columns)} cells in row {number} of {path}, as its first line has, got {len(cells)}: correct it"
            )
    return _rows_of(path, columns, (dict(zip(columns, cells, strict=True)) for cells in rows), names)


def _parquet(path: Path, names: Sequence[str]) -> list[Row]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"expected a Parquet file at {path}, could not read it ({error}): check the path") from error
    kept = [field.name for field in table.schema if not _has_bytes(field.type)]
    return _rows_of(path, kept, table.select(kept).to_pylist(), names)


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) or pa.types.is_list(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _data_set(source: str, names: Sequence[str]) -> list[Row]:
    import datasets

    name, _, split = source.partition(":")
    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"expected prompts in the data set {name}, could not load it ({in_a_line(error, 200)}): name a file "
            f"({FORMS}), or check name and connection"
        ) from error
    split = split or ("train" if "train" in found or len(found) > 1 else next(iter(found)))
    if split not in found:
        raise UserError(f"expected the split {split} of {name}, found {', '.join(found)}: name one as {name}:SPLIT")
    table = found[split].with_format("arrow")[:]
    kept = [field.name for field in table.schema if not _has_bytes(field.type)]
    return _rows_of(source, kept, table.select(kept).to_pylist(), names)


def _rows_of(
    source: str | Path, columns: Iterable[str], rows: Iterable[dict[str, Any]], names: Sequence[str]
) -> list[Row]:
    columns = list(columns)
    named = [name for name in columns if name.lower() in names]
    if len(named) != 1:
        raise UserError(
            f"expected one column called {' or '.join(names)} in {source}, found {', '.join(map(str, columns)) or 'none'}: rename one"
        )
    read: list[Row] = []
    for number, row in enumerate(rows, start=1):
        text = row.pop(named[0])
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"expected a prompt in row {number} of {source}, got {text!r}: add it, or take the row out")
        read.append((text.strip(), json.loads(json.dumps(row, default=str))))  # rollouts are kept with it, as JSON
    return read
