# SPDX-License-Identifier: Apache-2.0
"""The entries of a JSON array, one by one, however large the array is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

__all__ = ["BrokenArrayError", "array_entries"]

LONGEST = 1 << 24  # characters of an entry: a bracket that never closes takes no more
BLANKS = re.compile(r"[ \t\n\r]*")
Decoder = Callable[[str, int], tuple[Any, int]]


class BrokenArrayError(ValueError):
    """Text that is no JSON array; the message says where and why."""


def array_entries(pieces: Iterable[str], decode: Decoder) -> Iterator[Any]:
    """Read an array's entries; no more text is held than one of them needs.

    Parameters
    ----------
    pieces : Iterable[str]
        The text, cut anywhere.
    decode : Decoder
        ``JSONDecoder.raw_decode``, or what answers and fails as it does.

    Raises
    ------
    BrokenArrayError
        If the text is no array, once the entries before the fault are read, or an
        entry is longer than :data:`LONGEST`.
    """
    text = _Text(pieces)
    first = text.next_mark()
    if first != "[":
        begins = (
            f"begins with {first!r}; is it `format: jsonl`?" if first else "is empty"
        )
        raise BrokenArrayError(f"it must be an array of objects, and {begins}")
    text.at += 1
    mark = text.next_mark()
    text.at += mark == "]"
    numbers = count(1)
    while mark != "]":
        entry, mark = text.entry(next(numbers), decode)
        yield entry
    if text.next_mark():
        raise BrokenArrayError(
            f"line {text.line}: there is more behind the array's end"
        )


class _Text:
    """Text of which the beginning is let go, and more is taken when it is wanted."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._held, self._lines = "", 1
        self.at = 0

    @property
    def line(self) -> int:
        """The line that is read now."""
        return self._lines + self._held.count("\n", 0, self.at)

    def next_mark(self) -> str:
        """Go to the next character that is not blank; nothing at the text's end."""
        while True:
            self.at = self._past_blanks(self.at)
            if self.at < len(self._held) or not self._take():
                return self._held[self.at : self.at + 1]

    def entry(self, number: int, decode: Decoder) -> tuple[Any, str]:
        """Read an entry, and the comma or bracket behind it.

        Half an entry cannot be told from a broken one, nor 12 from half of 123: it is
        whole if what must follow it does, and else there has to be more text.
        """
        self.next_mark()
        while True:
            try:
                entry, end = decode(self._held, self.at)
            except json.JSONDecodeError as error:
                why, place = error.msg, error.pos
            else:
                place = self._past_blanks(end)
                mark = self._held[place : place + 1]
                if mark in (",", "]"):
                    self.at = place + 1
                    return entry, mark
                why = "a comma or the array's end must follow it"
            if len(self._held) - self.at > LONGEST:
                why = (
                    f"has more than {LONGEST:,} characters: is a bracket never closed?"
                )
                place = self.at
            elif self._take():
                continue
            self.at = place
            raise BrokenArrayError(f"entry {number}, line {self.line}: {why}")

    def _past_blanks(self, place: int) -> int:
        match = BLANKS.match(self._held, place)
        assert match is not None
        return match.end()

    def _take(self) -> bool:
        """Take as much again as is left, and let go what is read; or find no more.

        So of an entry that is longer than a piece twice its length is looked at.
        """
        left, taken, size = self._held[self.at :], [], 0
        for piece in self._pieces:
            taken.append(piece)
            size += len(piece)
            if size > len(left):
                break
        if not size:
            return False
        self._lines = self.line
        self._held, self.at = left + "".join(taken), 0
        return True
