# SPDX-License-Identifier: Apache-2.0
"""What peers or replicas carried in a run, from what is told of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TypedDict

from atlas_flwr.report.events import Event
from atlas_flwr.report.peer_events import (
    PeerLost,
    PeerMoved,
    PeersPaired,
    ReplicaLost,
    ReplicaMoved,
)

__all__ = ["Carrying", "carried"]

HOST = re.compile(r"(\S+)\[\d+-\d+\]")


class Carrying(TypedDict):
    """Fields of a summary, which says what they are."""

    carried: dict[str, int]
    peers_lost: dict[str, str]
    peer_moves: int
    sat_out: int
    replicas_lost: int
    replica_moves: int


def carried(events: Iterable[Event]) -> Carrying:
    """Count what peers or replicas carried, and what was lost with them."""
    guests: dict[str, int] = {}
    found = Carrying(
        carried=guests,
        peers_lost={},
        peer_moves=0,
        sat_out=0,
        replicas_lost=0,
        replica_moves=0,
    )
    for event in events:
        match event:
            case PeersPaired():
                now = Counter(
                    h for way in event.ways.values() for h in HOST.findall(way)
                )
                for host, number in now.items():
                    guests[host] = max(number, guests.get(host, 0))
                found["sat_out"] += len(event.alone) if event.what == "train" else 0
            case PeerLost():
                found["peers_lost"][event.host] = event.reason
            case PeerMoved():
                found["peer_moves"] += bool(event.way)
            case ReplicaLost():
                found["replicas_lost"] += 1
            case ReplicaMoved():
                found["replica_moves"] += len(event.seats)
    return found
