# SPDX-License-Identifier: Apache-2.0
"""A Grid around a Grid that tells of each reply as it arrives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from atlas_flwr.grids.delegation import DelegatingGrid

__all__ = ["InFlight", "ProgressGrid"]


@dataclass(frozen=True)
class InFlight:
    """Messages that were sent together, and what has come back so far.

    Attributes
    ----------
    kind : str
        Message type: ``train``, ``evaluate``, ``query.fingerprint``...
    number : int
        Of the sending, from 1.
    sent, came, failed : int
        Messages; their replies; those of the replies that are errors.
    """

    kind: str
    number: int
    sent: int
    came: int = 0
    failed: int = 0


class ProgressGrid(DelegatingGrid):
    """Delegate to a grid, and look for replies often enough to tell of each.

    The innermost of the grids, so that it sees what any of the others does.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    on_progress : Callable[[InFlight], None]
        Called when messages were sent, and after each look for replies.
    on_waiting : Callable[[int], None]
        Called with the number of nodes each time somebody asks who is connected.
    poll_seconds : float
        Between looks.
    """

    def __init__(
        self,
        grid: Grid,
        on_progress: Callable[[InFlight], None],
        on_waiting: Callable[[int], None] = lambda connected: None,
        poll_seconds: float = 0.25,
    ) -> None:
        super().__init__(grid)
        self.on_progress = on_progress
        self.on_waiting = on_waiting
        self.poll_seconds = poll_seconds
        self._now = InFlight("", 0, 0)
        self._ours: set[str] = set()

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        nodes = list(self.grid.get_node_ids())
        self.on_waiting(len(nodes))
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        out = list(messages)
        ids = list(self.grid.push_messages(out))
        if out:
            self._ours = set(ids)
            kind = out[0].metadata.message_type
            self._now = InFlight(kind, self._now.number + 1, len(out))
            self.on_progress(self._now)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages; late ones of an earlier sending are passed on uncounted."""
        found = list(self.grid.pull_messages(message_ids))
        fresh = [m for m in found if m.metadata.reply_to_message_id in self._ours]
        now = self._now
        failed = now.failed + sum(reply.has_error() for reply in fresh)
        self._now = replace(now, came=now.came + len(fresh), failed=failed)
        self.on_progress(self._now)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies, as Flower's grids do."""
        waiting = set(self.push_messages(messages))
        end = math.inf if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            found = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if waiting:
                time.sleep(min(self.poll_seconds, max(end - time.monotonic(), 0)))
        return replies
