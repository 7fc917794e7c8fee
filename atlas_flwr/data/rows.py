# SPDX-License-Identifier: Apache-2.0
"""Rows of a source: those that can be used, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from atlas_flwr.data.turns import Turn

__all__ = ["Fault", "Row", "told"]

SHOWN = 5


@dataclass(frozen=True)
class Row:
    """One example as it stands in the source.

    Attributes
    ----------
    text, label : str
        Its fields.
    where : str
        Its place in the source: ``"row 17"``, a file's name.
    turns : tuple[Turn, ...]
        Of a conversation: all before its last answer, which is the label.
    owner : str
        Whose it is, where the source says so.
    """

    text: str
    label: str
    where: str = field(default="", compare=False)
    turns: tuple[Turn, ...] = ()
    owner: str = ""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used.

    Attributes
    ----------
    where : str
        See :class:`Row`.
    why : str
        The same for all rows of one fault, so that they can be counted.
    """

    where: str
    why: str


def told(faults: Iterable[Fault]) -> list[str]:
    """Say each fault once: how many rows have it, and which come first."""
    places: dict[str, list[str]] = {}
    for fault in faults:
        places.setdefault(fault.why, []).append(fault.where)
    return [
        f"{len(where):,} {why} ({', '.join(where[:SHOWN])}"
        f"{', ...' if len(where) > SHOWN else ''})"
        for why, where in places.items()
    ]
