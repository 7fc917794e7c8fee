# SPDX-License-Identifier: Apache-2.0
"""A Grid around a Grid, to be changed in one place or two by those that derive it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

__all__ = ["NOTHING", "DelegatingGrid", "Repeated"]


class Repeated(NamedTuple):
    """What went beside the messages that were given, and the replies that came back.

    Attributes
    ----------
    down, up : int
        Bytes of messages that were sent again, and of replies that others replaced.
    """

    down: int = 0
    up: int = 0


NOTHING = Repeated()


class DelegatingGrid(Grid):
    """Pass everything on.

    Parameters
    ----------
    grid : Grid
        Flower's grid, or another around it.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @property
    def late(self) -> int:
        """Replies to the last messages for which nobody waits; they have not failed."""
        return self.grid.late if isinstance(self.grid, DelegatingGrid) else 0

    @property
    def overdue(self) -> int:
        """Replies to earlier messages that were returned with the last ones."""
        return self.grid.overdue if isinstance(self.grid, DelegatingGrid) else 0

    @property
    def late_errors(self) -> Sequence[Message]:
        """Replies to earlier messages that came with the last ones, and are errors."""
        return self.grid.late_errors if isinstance(self.grid, DelegatingGrid) else ()

    @property
    def discounted(self) -> Mapping[str, Mapping[str, float]]:
        """Metrics of returned replies as they came, by the message replied to."""
        return self.grid.discounted if isinstance(self.grid, DelegatingGrid) else {}

    @property
    def repeated(self) -> Repeated:
        """What of the last messages and replies went more than once."""
        return self.grid.repeated if isinstance(self.grid, DelegatingGrid) else NOTHING

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
        """Return the connected nodes."""
        return self.grid.get_node_ids()

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
        """Send messages and wait for their replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)

    def repeat(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send some of the last messages anew, in the place of those that went."""
        return self.send_and_receive(messages, timeout=timeout)
