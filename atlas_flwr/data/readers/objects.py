# SPDX-License-Identifier: Apache-2.0
"""JSON: an array of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.readers.arrays import BrokenArrayError, array_entries
from atlas_flwr.data.readers.records import picked_row
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["loaded_json", "read_json", "read_jsonl"]


def read_jsonl(reading: Reading) -> Iterator[Row | Fault]:
    """Read an object a line."""
    if next(reading.pieces(), "").lstrip().startswith("["):
        yield from read_json(reading)
        return
    for number, line in reading.lines():
        where = f"line {number}"
        try:
            record = loaded_json(line)
        except json.JSONDecodeError as error:
            yield Fault(where, f"that are not JSON ({error.msg})")
        else:
            yield _recorded(reading, where, record)


def _made(pairs: list[tuple[str, Any]]) -> Any:
    """Make an object; of one with a key twice its pairs, as no record is."""
    record = dict(pairs)
    return record if len(record) == len(pairs) else pairs


_JSON = json.JSONDecoder(object_pairs_hook=_made)


@contextmanager
def _broken(text: str) -> Iterator[None]:
    """Tell of all that cannot be read as of what is no JSON."""
    try:
        yield
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit of digits
        raise json.JSONDecodeError("a number of too many digits", text, 0) from None


def loaded_json(text: str) -> Any:
    """Read JSON; of an object with a key twice, its pairs, as no record is.

    Raises
    ------
    json.JSONDecodeError
        If it is none, too deep, or has a number that Python will not read.
    """
    with _broken(text):
        return _JSON.decode(text)


def _loaded_from(text: str, at: int) -> tuple[Any, int]:
    with _broken(text):
        return _JSON.raw_decode(text, at)


def read_json(reading: Reading) -> Iterator[Row | Fault]:
    """Read an array of objects, one after the other."""
    entries = array_entries(reading.pieces(), _loaded_from)
    try:
        for number, record in enumerate(entries, start=1):
            yield _recorded(reading, f"entry {number}", record)
    except BrokenArrayError as error:
        raise DataError(f"{reading.where}: {error}") from None


def _recorded(reading: Reading, where: str, record: Any) -> Row | Fault:
    if not isinstance(record, dict):
        return Fault(where, "that are no JSON object, or have a key twice")
    return picked_row(reading, where, record)
