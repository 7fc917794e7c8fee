# SPDX-License-Identifier: Apache-2.0
"""A Grid around a Grid: stable order, and an account of every message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from atlas_flwr.strategies.roster import Roster

__all__ = ["Exchange", "RecordingGrid", "content_bytes"]


@dataclass(frozen=True)
class Exchange:
    """One batch of messages and what came back.

    Attributes
    ----------
    kind : str
        Message type: ``train``, ``evaluate``, ``query.fingerprint``...
    replies : list[Message]
        In order of the clients' ids.
    sent : int
        Number of messages.
    bytes_down, bytes_up : int
        Payload to and from the clients: arrays, configuration values and metrics as
        Flower serialises them.
    seconds : float
        From the first message to the last reply.
    """

    kind: str
    replies: list[Message]
    sent: int
    bytes_down: int
    bytes_up: int
    seconds: float


class RecordingGrid(Grid):
    """Delegate to a grid; sort nodes and replies by client; tell what was exchanged.

    Works round any strategy, Flower's own among them, whose sums would otherwise depend
    on which reply came first, and whose samples on the nodes' random ids.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    roster : Roster
        Learns who is behind each node.
    on_exchange : Callable[[Exchange], None]
        Called after each ``send_and_receive``.
    """

    def __init__(
        self, grid: Grid, roster: Roster, on_exchange: Callable[[Exchange], None]
    ) -> None:
        self.grid = grid
        self.roster = roster
        self.on_exchange = on_exchange

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return self.grid.create_message(
            content, message_type, dst_node_id, group_id, ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that have said who they are, in order of their clients."""
        nodes = list(self.grid.get_node_ids())
        self.roster.learn(self.grid, nodes)
        return self.roster.order(nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, wait for their replies, sort and record them."""
        out = list(messages)
        if not out:
            return []
        down = sum(content_bytes(message.content) for message in out)
        kind = out[0].metadata.message_type
        started = time.monotonic()
        came = self.grid.send_and_receive(out, timeout=timeout)
        replies = self.roster.sorted_replies(came)
        up = sum(content_bytes(r.content) for r in replies if r.has_content())
        seconds = time.monotonic() - started
        self.on_exchange(Exchange(kind, replies, len(out), down, up, seconds))
        return replies


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's records, as Flower's ``message_size_mod`` does."""
    return sum(record.count_bytes() for record in content.values())
