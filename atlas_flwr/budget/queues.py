# SPDX-License-Identifier: Apache-2.0
"""The order in which a trunk takes the calls that wait: each a rule of one class.

A rule ranks a call once, when it comes. The trunk takes the lowest rank first, and of
equal ranks the call that has waited longest. The trunk itself and the simulated clock
(:mod:`atlas_flwr.budget.clock`) use the same rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["QUEUES", "Fair", "Fifo", "LongestPath", "Queue", "Waiting"]


@dataclass(frozen=True)
class Waiting:
    """A call that waits for the trunk.

    Attributes
    ----------
    left : float
        Seconds that its client has still to spend in this round outside the trunk, on
        its own work and on its link.
    cluster : str
        Of its client.
    rows : float
        Work that it brings: positions.
    """

    left: float = 0.0
    cluster: str = ""
    rows: float = 1.0


class Queue(Protocol):
    """A rule; not safe to share between threads."""

    def rank(self, call: Waiting) -> float:
        """Rank a call that has come: the lowest is taken first."""
        ...

    def take(self, rank: float) -> None:
        """Note that the call of this rank was taken."""
        ...


class Fifo:
    """First come, first served."""

    def rank(self, call: Waiting) -> float:
        """Rank all calls alike."""
        return 0.0

    def take(self, rank: float) -> None:
        """Keep no account."""


class LongestPath:
    """First the client that has the longest way before it.

    A round ends with its last client. One that is slow, or far away, must not wait for
    others who have time (longest remaining path first; of list scheduling it is the
    rule by critical path, Graham 1969; PipeSFL ranks clients so, too).
    """

    def rank(self, call: Waiting) -> float:
        """Rank by the time that is left, the longest first."""
        return -call.left

    def take(self, rank: float) -> None:
        """Keep no account."""


class Fair:
    """Each cluster its share of the trunk, however many clients it has.

    Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a call's rank is its
    start tag S = max(v, F), F the finish tag of its cluster's call before, its own
    finish tag S + rows, and v the start tag of the call that was taken last.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._finish: defaultdict[str, float] = defaultdict(float)

    def rank(self, call: Waiting) -> float:
        """Return the call's start tag."""
        start = max(self._now, self._finish[call.cluster])
        self._finish[call.cluster] = start + call.rows
        return start

    def take(self, rank: float) -> None:
        """Advance the queue's own time."""
        self._now = max(self._now, rank)


# A new rule is a class above and a line here.
QUEUES: Mapping[str, Callable[[], Queue]] = {
    "fifo": Fifo,
    "longest-path": LongestPath,
    "fair": Fair,
}
