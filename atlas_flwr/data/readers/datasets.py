# SPDX-License-Identifier: Apache-2.0
"""Data sets with typed columns: Parquet, and those of a hub."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from atlas_flwr.data.readers.records import numbered
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_hub", "read_parquet"]


def read_parquet(reading: Reading) -> Iterator[Row | Fault]:
    """Read a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(reading.content()))
    except pa.ArrowInvalid as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{reading.where} cannot be read as Parquet: {said}") from None
    yield from reading.picked(numbered(table.to_pylist()))


def read_hub(reading: Reading) -> Iterator[Row | Fault]:
    """Read a split of a hub's data set."""
    try:
        datasets = importlib.import_module("datasets")  # optional
    except ModuleNotFoundError:
        raise DataError(
            f"dataset {reading.dataset!r} is on a hub, which the library `datasets` "
            "reads: pip install datasets"
        ) from None
    try:
        records = datasets.load_dataset(reading.dataset, split=reading.split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"dataset {reading.dataset!r}, split {reading.split!r}: {error}"
        ) from None
    yield from reading.picked(numbered(records))
