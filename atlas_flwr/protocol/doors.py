# SPDX-License-Identifier: Apache-2.0
"""The way to a session on the trunk, as the entries of a message say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atlas_flwr.protocol import keys
from atlas_flwr.trunk.host import Door

__all__ = ["WAY", "doors_of", "way_to"]

WAY = (keys.TRUNK_ADDRESS, keys.TRUNK_TOKEN, keys.TRUNK_CA)

Entries = dict[str, str | list[str]]


def way_to(doors: Sequence[Door]) -> Entries:
    """Write where a session is: texts, or lists of them for a chain of trunks."""
    if len(doors) == 1:
        (door,) = doors
        way: Entries = {keys.TRUNK_ADDRESS: door.address, keys.TRUNK_TOKEN: door.token}
        return {**way, keys.TRUNK_CA: door.ca} if door.ca else way
    return {
        keys.TRUNK_ADDRESS: [door.address for door in doors],
        keys.TRUNK_TOKEN: [door.token for door in doors],
        keys.TRUNK_CA: [door.ca for door in doors],
    }


def doors_of(entries: Mapping[str, object]) -> list[Door]:
    """Read where a session is; nothing where a message leads to none."""
    addresses = _texts(entries.get(keys.TRUNK_ADDRESS))
    tokens = _texts(entries.get(keys.TRUNK_TOKEN))
    cas = _texts(entries.get(keys.TRUNK_CA)) or [""] * len(addresses)
    return [Door(*door) for door in zip(addresses, tokens, cas, strict=True)]


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
