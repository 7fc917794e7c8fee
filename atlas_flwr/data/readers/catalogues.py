# SPDX-License-Identifier: Apache-2.0
"""Catalogues of translations, as gettext's are written in JSON (Jed's form)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.readers.files import named_files
from atlas_flwr.data.readers.objects import loaded_json
from atlas_flwr.data.readers.records import picked_row
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_gettext"]

HEADER = ""  # the key that gettext keeps its own entries under
CONTEXT_END = "\x04"


def read_gettext(reading: Reading) -> Iterator[Row | Fault]:
    """Read records of every catalogue in a folder, a file an example's ``domain``.

    They have fields ``source``, ``translation`` (of a plural the first), ``context``
    and ``domain``, which is the file's name.
    """
    for name, content in named_files(reading, lambda name: name.endswith(".json")):
        catalogue = _catalogue(reading, name, content)
        domain = name.rpartition("/")[2].removesuffix(".json")
        for key, said in catalogue.items():
            if key != HEADER:
                yield _entry(reading, f"{name}, {key!r}", domain, key, said)


def _catalogue(reading: Reading, name: str, content: bytes) -> dict[str, Any]:
    where = f"{reading.where}, file {name}"
    try:
        found = loaded_json(reading.decoded(content, name))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: {error}") from None
    if not isinstance(found, dict):
        raise DataError(
            f"{where}: a JSON {type(found).__name__}; a catalogue is an object of "
            'texts, each with a list of translations: {"Open": ["Ouvrir"]}'
        )
    return found


def _entry(
    reading: Reading, where: str, domain: str, key: str, said: Any
) -> Row | Fault:
    context, _, source = key.rpartition(CONTEXT_END)
    if not isinstance(said, list) or not said:
        return Fault(where, "that are no list of translations")
    if said[0] == source:
        return Fault(where, "whose translation is the source itself")
    record = {"source": source, "translation": said[0], "context": context}
    return picked_row(reading, where, {**record, "domain": domain})
