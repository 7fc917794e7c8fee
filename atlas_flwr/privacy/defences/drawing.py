# SPDX-License-Identifier: Apache-2.0
"""What a client draws for each place of a text, once, by a secret of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

__all__ = ["DRAWN", "drawn_places"]

DRAWN = 2**64


def drawn_places(text: Sequence[int], secret: bytes) -> Iterator[tuple[int, int]]:
    """Draw two numbers below :data:`DRAWN` for each place of a text.

    Parameters
    ----------
    text : Sequence[int]
        All of it: another text has other draws.
    secret : bytes
        Without it nobody can tell them from chance.
    """
    whole = hashlib.blake2b(repr(list(text)).encode(), key=secret).digest()
    for place in range(len(text)):
        said = whole + place.to_bytes(8)
        drawn = hashlib.blake2b(said, key=secret, digest_size=16).digest()
        yield int.from_bytes(drawn[:8]), int.from_bytes(drawn[8:])
