# SPDX-License-Identifier: Apache-2.0
"""Records, with the fields that a task wants, become rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.fields import plain_text, unwritable
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.data.templates import filled_in

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["numbered", "picked_row"]


def picked_row(reading: Reading, where: str, record: Mapping[str, Any]) -> Row | Fault:
    """Pick the fields that a task wants out of a record, or say what is wrong."""
    for key in reading.wanted:
        if key not in record:
            return Fault(where, f"without a field {key!r}")
        is_empty = record[key] is None or record[key] == ""
        if is_empty and key not in reading.may_be_empty:
            is_label = key == reading.label and not reading.response
            what = "label" if is_label else f"text in {key!r}"
            return Fault(where, f"without a {what}")
        if isinstance(record[key], dict | list):
            kind = "an object" if isinstance(record[key], dict) else "a list"
            return Fault(where, f"with {kind} in {key!r}, where text is wanted")
        if why := unwritable(record[key]):
            return Fault(where, f"with {why} in {key!r}")
    if reading.response:
        prompt = filled_in(reading.prompt, record, plain_text)
        return Row(prompt, filled_in(reading.response, record, plain_text), where)
    text = " ".join(plain_text(record[key]) for key in reading.text)
    return Row(text, plain_text(record[reading.label]), where)


def numbered(records: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Name each record by its number."""
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record
