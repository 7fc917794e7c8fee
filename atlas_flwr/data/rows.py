# SPDX-License-Identifier: Apache-2.0
"""Rows of a source: those that can be used, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from atlas_flwr.data.turns import Turn

__all__ = ["Fault", "Faults", "Row"]

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


class Faults:
    """Rows that cannot be used: how many have each fault, and which come first.

    So few words are kept of them that a long file may be full of faults.
    """

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        """Count a row."""
        self._counts[fault.why] += 1
        first = self._places.setdefault(fault.why, [])
        if len(first) < SHOWN:
            first.append(fault.where)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def told(self) -> list[str]:
        """Say each fault once."""
        return [
            f"{count:,} {why} ({', '.join(self._places[why])}"
            f"{', ...' if count > SHOWN else ''})"
            for why, count in self._counts.items()
        ]
