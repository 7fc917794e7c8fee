# SPDX-License-Identifier: Apache-2.0
"""JSON: an array of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from logging import WARNING
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.readers.records import picked_row
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError
from atlas_flwr.log import log

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["loaded_json", "read_json", "read_jsonl"]

LARGE = 1 << 26  # characters of an array


def read_jsonl(reading: Reading) -> Iterator[Row | Fault]:
    """Read an object a line."""
    _, first = next(reading.lines(), (0, ""))
    if first.lstrip().startswith("["):
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


def loaded_json(text: str) -> Any:
    """Read JSON; of an object with a key twice, its pairs, as no record is.

    Raises
    ------
    json.JSONDecodeError
        If it is none, too deep, or has a number that Python will not read.
    """

    def made(pairs: list[tuple[str, Any]]) -> Any:
        record = dict(pairs)
        return record if len(record) == len(pairs) else pairs

    try:
        return json.loads(text, object_pairs_hook=made)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit of digits
        raise json.JSONDecodeError("a number of too many digits", text, 0) from None


def read_json(reading: Reading) -> Iterator[Row | Fault]:
    """Read an array of objects."""
    text = reading.string()
    if len(text) > LARGE:
        what = (
            "%s is one JSON array of %s MiB, in memory with all its objects while it "
            "is read; as an object a line it would be read bit by bit: "
            "`jq -c '.[]' FILE > FILE.jsonl`, with `format: jsonl`"
        )
        log(WARNING, what, reading.where, f"{len(text) >> 20:,}")
    try:
        found = loaded_json(text)
    except json.JSONDecodeError as error:
        many = "; is it `format: jsonl`?" if error.msg == "Extra data" else ""
        raise DataError(f"{reading.where}: {error}{many}") from None
    if not isinstance(found, list):
        raise DataError(
            f"{reading.where}: a JSON {type(found).__name__}; it must be an array of "
            "objects, or one object a line"
        )
    for number, record in enumerate(found, start=1):
        yield _recorded(reading, f"entry {number}", record)


def _recorded(reading: Reading, where: str, record: Any) -> Row | Fault:
    if not isinstance(record, dict):
        return Fault(where, "that are no JSON object, or have a key twice")
    return picked_row(reading, where, record)
