# SPDX-License-Identifier: Apache-2.0
"""What can happen where the trunk is in several places: at peers, or replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PeerLost", "PeerMoved", "PeersPaired", "ReplicaLost", "ReplicaMoved"]


@dataclass(frozen=True)
class PeersPaired:
    """Clients were given peers that carry the trunk for them.

    Attributes
    ----------
    round : int
        Server round.
    what : str
        For ``"train"``, ``"evaluate"`` or ``"fingerprint"`` messages.
    ways : Mapping[str, str]
        By client, the peers with the blocks that they hold, as ``"3[1-8] 5[9-15]"``.
    alone : tuple[str, ...]
        Clients that nobody had room for; they sit it out.
    """

    round: int
    what: str
    ways: Mapping[str, str]
    alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerLost:
    """A peer that carried the trunk does not answer any more, and why."""

    round: int
    host: str
    reason: str


@dataclass(frozen=True)
class PeerMoved:
    """A client of a lost peer is carried by another; by nobody where ``way`` is empty.

    What it did in the round is done again, from its start.
    """

    round: int
    client: str
    way: str


@dataclass(frozen=True)
class ReplicaLost:
    """A replica of the trunk does not answer any more, and why."""

    round: int
    replica: str
    reason: str


@dataclass(frozen=True)
class ReplicaMoved:
    """Clients of a lost replica go on at others, by client.

    What they did in the round is done again, from its start.
    """

    round: int
    seats: Mapping[str, str]
