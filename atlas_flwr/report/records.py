# SPDX-License-Identifier: Apache-2.0
"""An event as a line of ``metrics.jsonl``: written as a JSON object, and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from atlas_flwr.errors import DataError
from atlas_flwr.report.events import EVENTS, Event

__all__ = ["from_record", "to_record"]

NAMES = {kind: name for name, kind in EVENTS.items()}
PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def to_record(event: Event, time: float) -> dict[str, Any]:
    """Make the JSON object of an event; numbers that JSON lacks become null.

    Parameters
    ----------
    event : Event
        What happened.
    time : float
        When, in seconds since 1970.
    """
    record = {"event": NAMES[type(event)], "time": round(time, 3)}
    return record | {key: _finite(value) for key, value in asdict(event).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    is_lost = isinstance(value, float) and not math.isfinite(value)
    return None if is_lost else value


def from_record(record: Mapping[str, Any]) -> Event | None:
    """Read an event back; ``None`` for a kind that is not in :data:`EVENTS`.

    Losses and scores that were not finite come back as NaN.

    Raises
    ------
    DataError
        When a field of a known kind is missing, or not of its type.
    """
    kind = EVENTS.get(record["event"])
    if kind is None:
        return None
    names = {entry.name for entry in fields(kind)}
    given = {name: value for name, value in record.items() if name in names}
    if "confusion" in given:
        given["confusion"] = tuple(given["confusion"])
    if "alone" in given:
        given["alone"] = tuple(given["alone"])
    if given.get("loss", 0.0) is None:
        given["loss"] = math.nan
    if isinstance(scores := given.get("scores"), dict):
        given["scores"] = {k: math.nan if v is None else v for k, v in scores.items()}
    for entry in fields(kind):
        wanted, value = PLAIN.get(str(entry.type)), given.get(entry.name)
        if wanted and value is not None and not isinstance(value, wanted):
            raise DataError(
                f"a {record['event']!r} event with {entry.name}={value!r}, which is no "
                f"{entry.type}"
            )
    try:
        return kind(**given)
    except TypeError as error:
        raise DataError(f"a {record['event']!r} event is incomplete: {error}") from None
