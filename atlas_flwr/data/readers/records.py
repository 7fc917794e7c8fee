# SPDX-License-Identifier: Apache-2.0
"""Records, with the fields that a task wants, become rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.fields import plain_text, unwritable
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.data.templates import filled_in
from atlas_flwr.data.turns import ASSISTANT, joined, read_turns

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["numbered", "picked_row"]


def picked_row(reading: Reading, where: str, record: Mapping[str, Any]) -> Row | Fault:
    """Pick the fields that a task wants out of a record, or say what is wrong."""
    for key in reading.wanted:
        if key not in record:
            return Fault(where, f"without a field {key!r}")
        if why := _unfit(reading, key, record[key]):
            return Fault(where, why)
    owner = plain_text(record[reading.client]) if reading.client else ""
    if reading.messages:
        return _conversation(where, record[reading.messages], owner)
    if reading.response:
        text = filled_in(reading.prompt, record, plain_text)
        label = filled_in(reading.response, record, plain_text)
    else:
        text = " ".join(plain_text(record[key]) for key in reading.text)
        label = plain_text(record[reading.label]) if reading.label else ""
    return Row(text, label, where, owner=owner)


def _unfit(reading: Reading, key: str, value: Any) -> str:
    """Say why a field cannot be used, if it cannot."""
    if (value is None or value == "") and key not in reading.may_be_empty:
        is_label = key == reading.label and not reading.response
        what = "label" if is_label else f"text in {key!r}"
        return f"without a {what}"
    if key == reading.messages:
        return ""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"with {kind} in {key!r}, where text is wanted"
    why = unwritable(value)
    return f"with {why} in {key!r}" if why else ""


def _conversation(where: str, value: Any, owner: str) -> Row | Fault:
    """Read a conversation up to its last answer."""
    try:
        turns = read_turns(value)
    except ValueError as error:
        return Fault(where, f"whose conversation {error}")
    spoken = [n for n, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not spoken:
        return Fault(where, "whose conversation has no turn of the assistant's")
    before, answer = turns[: spoken[-1]], turns[spoken[-1]].content
    return Row(joined(before), answer, where, before, owner)


def numbered(records: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Name each record by its number."""
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record
