# SPDX-License-Identifier: Apache-2.0
"""Data sets with typed columns: Parquet, and those of a hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.readers.records import numbered
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_hub", "read_parquet"]

AT_ONCE = 1024  # rows


def read_parquet(reading: Reading) -> Iterator[Row | Fault]:
    """Read a Parquet file, some rows at a time."""
    yield from reading.picked(numbered(_records(reading)))


def _records(reading: Reading) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with reading.opened() as file:
            for batch in pq.ParquetFile(file).iter_batches(AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{reading.where} cannot be read as Parquet: {said}") from None


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
