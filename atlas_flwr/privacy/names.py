# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of a text, which are worse to lose than its other words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from atlas_flwr.privacy.defences.mask import ADDRESSES, NAME

__all__ = ["names_read", "places_of_names"]

_NUMBER = re.compile(r"\d+(?:[.,:/-]?\d+)*")


def places_of_names(pieces: Sequence[str]) -> list[list[int]]:
    """Return, for each name, number and address of a text, the tokens it is made of.

    Parameters
    ----------
    pieces : Sequence[str]
        What each token adds to the text.

    Returns
    -------
    list[list[int]]
        By what ``defence='mask'`` takes for one: a name is told by its capital letter
        inside a sentence, so that a text without capitals has none.
    """
    text, ends = "", []
    for piece in pieces:
        text += piece
        ends.append(len(text))
    starts = [0, *ends][:-1]
    spans = [
        found.span()
        for pattern in (*ADDRESSES, _NUMBER, NAME)
        for found in pattern.finditer(text)
    ]
    alone = [s for s in spans if not any(_inside(s, other) for other in spans)]
    tokens = list(enumerate(zip(starts, ends, strict=True)))
    return [
        [i for i, (first, last) in tokens if first < stop and last > start]
        for start, stop in sorted(set(alone))
    ]


def names_read(
    guesses: Sequence[Sequence[int]],
    truths: Sequence[Sequence[int]],
    names: Sequence[Sequence[Sequence[int]]],
) -> float | None:
    """Return the share of names of which every token was read; of none, ``None``."""
    read = [
        all(guess[i] == truth[i] for i in places)
        for guess, truth, found in zip(guesses, truths, names, strict=True)
        for places in found
    ]
    return sum(read) / len(read) if read else None


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span != other and other[0] <= span[0] and span[1] <= other[1]
