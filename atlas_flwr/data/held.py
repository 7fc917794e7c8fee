# SPDX-License-Identifier: Apache-2.0
"""What is held in memory of a source that may be larger than it: an even share.

A text's own hash says whether it is held, not where it stands: so all who read a source
hold the same of it, and texts that are alike are held or left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Generic, TypeVar

__all__ = ["HELD", "Held"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

HELD = 1 << 27  # characters; with what Python adds, some 0.2 to 1 GiB
_BITS = 64


class Held(Generic[K, V]):
    """Values by what they are of, no more than a number of characters of these.

    All are held that there is room for. Beyond that half of them are left out, by the
    first bit of their hash; then half of the rest, by the second; but never all.

    Parameters
    ----------
    text : Callable[[K], str]
        What a key's hash is of; its characters are counted.
    limit : int, optional
        Characters; :data:`HELD` by default. Texts so large that few are
        left may have more.

    Attributes
    ----------
    kept : dict[K, V]
        What is held.
    """

    def __init__(self, text: Callable[[K], str], limit: int | None = None) -> None:
        self.kept: dict[K, V] = {}
        self._text = text
        self._limit = HELD if limit is None else limit
        self._characters = self._halvings = self._beyond = 0

    def has_room(self, key: K) -> bool:
        """Tell whether a text is among those that are held; count it if not."""
        found = self._is_chosen(key)
        self._beyond += not found
        return found

    def add(self, key: K, value: V) -> None:
        """Hold a text that there is room for, and that is not held yet."""
        self.kept[key] = value
        self._characters += len(self._text(key))
        while self._characters > self._limit and self._halved():
            pass

    def told(self) -> list[str]:
        """Say how many are not held; nothing where all are."""
        if not self._beyond:
            return []
        share = 2**self._halvings
        return [
            f"{self._beyond:,} beyond the {self._limit:,} characters that are held in "
            f"memory (1 text of {share} is, evenly from all)"
        ]

    def _halved(self) -> bool:
        """Leave out half of what is held, if that leaves anything."""
        rest = {k: v for k, v in self.kept.items() if self._is_chosen(k, more=1)}
        if not rest:
            return False
        self._halvings += 1
        self._beyond += len(self.kept) - len(rest)
        self._characters = sum(len(self._text(key)) for key in rest)
        self.kept = rest
        return self._halvings < _BITS

    def _is_chosen(self, key: K, more: int = 0) -> bool:
        halvings = self._halvings + more
        if not halvings:
            return True
        text = self._text(key).encode("utf-8", "surrogatepass")
        mark = int.from_bytes(blake2b(text, digest_size=_BITS // 8).digest(), "big")
        return mark >> (_BITS - halvings) == 0
