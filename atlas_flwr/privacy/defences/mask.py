# SPDX-License-Identifier: Apache-2.0
"""Numbers, addresses and names are replaced before the head reads a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence

if TYPE_CHECKING:
    from atlas_flwr.data import Example

__all__ = ["ADDRESSES", "NAME", "Mask", "masked"]

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_MAIL = re.compile(r"\S+@\S+\.\S+")
ADDRESSES = (_LINK, _MAIL)
# Those of Latin, Greek and Cyrillic, accented ones too: `re` has no class of them.
_LETTERS = map(chr, [*range(0x530), *range(0x1E00, 0x2000)])
_CAPITAL = "".join(filter(str.isupper, _LETTERS))
# Capital letters inside a sentence: one at its beginning tells nothing.
NAME = re.compile(rf"(?<=[\w,;:] )[{_CAPITAL}][\w'’-]+(?: [{_CAPITAL}][\w'’-]+)*")

_RULES = (
    (_LINK, "link"),
    (_MAIL, "mail"),
    (re.compile(r"\d"), "0"),
    (NAME, "Name"),
)


@dataclass(frozen=True)
class Mask(Defence):
    """Replaces what looks like a number, an address or a name, and nothing else.

    What is replaced never crosses, so that no attack can read it; all else is read as
    without. It knows no names: one that begins a sentence, or is written small, stays,
    and a capital letter is enough to be taken for one. Texts that are trained on and
    that are scored are replaced alike.
    """

    name: ClassVar[str] = "mask"

    @property
    def needs_classes(self) -> bool:
        """It does: what is to be written is not replaced."""
        return True

    def examples(
        self, examples: Sequence[Example], classes: int, secret: bytes, *, learned: bool
    ) -> Sequence[Example]:
        """Replace in each text."""
        return [replace(e, text=masked(e.text)) for e in examples]


def masked(text: str) -> str:
    """Return a text without what looks like a number, an address or a name."""
    for pattern, word in _RULES:
        text = pattern.sub(word, text)
    return text
