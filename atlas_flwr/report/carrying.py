# SPDX-License-Identifier: Apache-2.0
"""What peers carried in a run, from what is told of their pairings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TypedDict

from atlas_flwr.report.events import Event
from atlas_flwr.report.peer_events import PeerLost, PeerMoved, PeersPaired

__all__ = ["Carrying", "carried_by_peers"]

HOST = re.compile(r"(\S+)\[\d+-\d+\]")


class Carrying(TypedDict):
    """Fields of a summary, which says what they are."""

    carried: dict[str, int]
    peers_lost: dict[str, str]
    peer_moves: int
    sat_out: int


def carried_by_peers(events: Iterable[Event]) -> Carrying:
    """Count what peers carried."""
    carried: dict[str, int] = {}
    found = Carrying(carried=carried, peers_lost={}, peer_moves=0, sat_out=0)
    for event in events:
        match event:
            case PeersPaired():
                now = Counter(
                    h for way in event.ways.values() for h in HOST.findall(way)
                )
                for host, guests in now.items():
                    carried[host] = max(guests, carried.get(host, 0))
                found["sat_out"] += len(event.alone) if event.what == "train" else 0
            case PeerLost():
                found["peers_lost"][event.host] = event.reason
            case PeerMoved():
                found["peer_moves"] += bool(event.way)
    return found
