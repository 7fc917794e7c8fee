# SPDX-License-Identifier: Apache-2.0
"""Seams of a chain: what its hosts are told of each other, and how a call crosses one.

A guest calls each host in turn, as ever. What one has computed it hands to the next
itself; the guest then asks that one to go on with what has come.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["ALONE", "Handover", "Neighbour", "Seams", "seams_between"]


class Neighbour(NamedTuple):
    """Where a host hands over what the next one goes on with.

    Attributes
    ----------
    address : str
        As guests dial it.
    ca : str
        The certificate of its authority, PEM; empty where there is no TLS.
    key : str
        Of the session there (see :class:`Seams`).
    """

    address: str
    ca: str
    key: str

    def __repr__(self) -> str:
        return f"Neighbour({self.address!r})"


@dataclass(frozen=True)
class Seams:
    """A session's place in a chain, as its owner tells a host.

    Attributes
    ----------
    key : str
        With it neighbours bring this session what it goes on with; nothing else can be
        done with it.
    onward : Neighbour, optional
        Takes hidden states; ``None``: the guest does.
    back : Neighbour, optional
        Takes gradients; ``None``: the guest does.
    """

    key: str = field(repr=False)
    onward: Neighbour | None = None
    back: Neighbour | None = None


@dataclass(frozen=True)
class Handover:
    """How a guest's call of one host crosses the seams beside it.

    Attributes
    ----------
    ticket : str
        Under which it is kept; each call of the chain has its own, which is kept when
        it is made again. Empty: nothing is handed over.
    comes : bool
        Whether what the call goes on with has come from a neighbour.
    goes : bool
        Whether a neighbour gets the answer.
    """

    ticket: str = ""
    comes: bool = False
    goes: bool = False


ALONE = Handover()


def seams_between(places: Sequence[tuple[str, str]]) -> list[Seams]:
    """Make the seams of a chain, with keys that nobody can guess.

    Parameters
    ----------
    places : Sequence[tuple[str, str]]
        Address and authority of each host, in the order of blocks.
    """
    found = [Neighbour(*place, secrets.token_urlsafe(24)) for place in places]
    around = [None, *found, None]
    return [
        Seams(mine.key, onward=around[k + 2], back=around[k])
        for k, mine in enumerate(found)
    ]
