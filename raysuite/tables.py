"""Parquet files that a command wrote whole, read again by whoever goes on from them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysuite.errors import UserError


def read_table(file: Path, *, columns: Collection[str] = (), leave_out: Collection[str] = ()) -> pa.Table:
    """A table.

    Args:
        file: of it.
        columns: that it must have.
        leave_out: columns that are not read.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is damaged, or lacks a column.
    """
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            table = opened.read([name for name in names if name not in leave_out])
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from error
    if lacking := [name for name in columns if name not in names]:
        raise damaged(file, f"it has no column {lacking[0]}")
    return table


def damaged(file: Path, what: object) -> UserError:
    """What to say of a file that cannot be read and can be had again."""
    return UserError(
        f"expected {file} as it was written, it is damaged ({what}): remove it, and give the command again"
    )
