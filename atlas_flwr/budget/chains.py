# SPDX-License-Identifier: Apache-2.0
"""Hosts too small for a trunk: several in order, which hold its blocks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

__all__ = ["Link", "Need", "Way", "chained", "most_guests"]

Need = Callable[[int, int], int]  # bytes of so many blocks with so many guests
MOST = 1024  # guests of a host: an engine's sessions


class Link(NamedTuple):
    """A host on a way, and the blocks that it holds, counted in the whole model."""

    host: str
    first: int
    stop: int

    @property
    def blocks(self) -> range:
        """Its blocks."""
        return range(self.first, self.stop)


Way = tuple[Link, ...]


def most_guests(memory: int, blocks: int, need: Need) -> int:
    """Return how many guests so much memory bears, beside so many blocks."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if need(blocks, middle) <= memory:
            low = middle
        else:
            high = middle - 1
    return low


def chained(
    sizes: Mapping[str, int], blocks: range, need: Need, wanted: int = 1
) -> dict[Way, int]:
    """Make chains of hosts none of which holds all blocks.

    For 1, 2, 3... guests a chain, the largest hosts come first, as many as reach, and
    a chain's blocks are dealt in proportion to what its hosts could hold. Short chains
    are taken if they have room for all; else those with most room.

    Parameters
    ----------
    sizes : Mapping[str, int]
        Bytes that each host lends.
    blocks : range
        The trunk's.
    need : Callable[[int, int], int]
        Bytes of so many blocks with so many guests.
    wanted : int
        Guests to have room for.

    Returns
    -------
    dict[Way, int]
        Chains, and how many guests each bears; some hosts may be on none.
    """
    best: dict[Way, int] = {}
    for each in range(1, MOST + 1):
        found = _chains(sizes, blocks, need, each)
        if not found:
            break
        if sum(found.values()) > sum(best.values()):
            best = found
        if sum(best.values()) >= wanted:
            break
    return best


def _chains(
    sizes: Mapping[str, int], blocks: range, need: Need, each: int
) -> dict[Way, int]:
    """Make chains that bear so many guests each, or more."""
    could = {
        host: _most_blocks(size, len(blocks), partial(_of_guests, need, each))
        for host, size in sizes.items()
    }
    ordered = sorted((h for h in could if could[h]), key=lambda h: (-could[h], h))
    found: dict[Way, int] = {}
    members: list[str] = []
    for host in ordered:
        members.append(host)
        if sum(could[m] for m in members) >= len(blocks):
            way = _dealt({m: could[m] for m in members}, blocks)
            bears = (most_guests(sizes[k.host], len(k.blocks), need) for k in way)
            found[way] = min(bears)
            members = []
    return found


def _of_guests(need: Need, guests: int, blocks: int) -> int:
    return need(blocks, guests)


def _most_blocks(memory: int, blocks: int, need: Callable[[int], int]) -> int:
    return max((k for k in range(1, blocks + 1) if need(k) <= memory), default=0)


def _dealt(could: Mapping[str, int], blocks: range) -> Way:
    """Give each host blocks in proportion to what it could hold, and no more."""
    total, way, first = sum(could.values()), [], blocks.start
    seen = 0
    for host, most in could.items():
        seen += most
        stop = blocks.start + len(blocks) * seen // total
        if stop > first:
            way.append(Link(host, first, stop))
        first = stop
    return tuple(way)
