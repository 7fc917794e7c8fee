# SPDX-License-Identifier: Apache-2.0
"""Messages are sent again to clients whose place on the trunk was lost meanwhile.

A client whose peer fails has its session opened anew at another one, as it was when the
round began, and does its part again, to the same numbers. So does, once, a client that
has failed with a peer that lives: it may not reach it. A client whose peer hands over
other adapters than it has computed itself has failed, too. Those for whom nobody has
room fail, as clients do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from atlas_flwr.errors import AdapterError, TrunkError
from atlas_flwr.grids.delegation import NOTHING, DelegatingGrid, Repeated
from atlas_flwr.grids.recording import content_bytes
from atlas_flwr.log import log
from atlas_flwr.protocol.computed import computed_of
from atlas_flwr.protocol.doors import WAY, doors_of, way_to
from atlas_flwr.protocol.replies import CLIENT_APP_RAISED
from atlas_flwr.trunk.host import Door, Introducing, Judging

__all__ = ["MendingGrid"]


class MendingGrid(DelegatingGrid):
    """Send again what was lost with a peer.

    Parameters
    ----------
    grid : Grid
        Flower's grid, or another around it.
    host : Introducing, optional
        Finds clients other places. ``None``, as until a trunk has started, sends
        nothing again.
    """

    def __init__(self, grid: Grid, host: Introducing | None = None) -> None:
        super().__init__(grid)
        self.host = host
        self._repeated = NOTHING

    @property
    def repeated(self) -> Repeated:
        """What was sent again, and what came before in the place of another reply."""
        return self._repeated

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; send those again whose clients had to move."""
        out = list(messages)
        self._repeated = NOTHING
        if self.host is None:
            return self.grid.send_and_receive(out, timeout=timeout)
        found: dict[int, Message] = {}
        down, up, send = 0, 0, self.grid.send_and_receive
        while out:
            replies = list(send(out, timeout=timeout))
            up += sum(map(_size, replies))
            found |= {reply.metadata.src_node_id: reply for reply in replies}
            for message in out:
                self._judge(message, found)
            out = [again for m in out for again in self._again(m, found)]
            if out:
                log(WARNING, "%d clients have moved and begin again", len(out))
            down += sum(map(_size, out))
            if isinstance(self.grid, DelegatingGrid):
                send = self.grid.repeat
        self._repeated = Repeated(down, up - sum(map(_size, found.values())))
        return list(found.values())

    def _judge(self, message: Message, found: dict[int, Message]) -> None:
        """Put an error in a reply's place if its peer handed over other adapters."""
        reply = found.get(message.metadata.dst_node_id)
        if reply is None or reply.has_error() or not isinstance(self.host, Judging):
            return
        try:
            computed = computed_of(reply)
            if computed is not None:
                self.host.judge([door.token for door in _doors(message)], computed)
        except (AdapterError, TrunkError) as error:
            node = message.metadata.dst_node_id
            log(WARNING, "node %d: %s", node, error)
            found[node] = Message(
                Error(CLIENT_APP_RAISED, str(error)), reply_to=message
            )

    def _again(self, message: Message, found: Mapping[int, Message]) -> list[Message]:
        """Return the message to send again, if any."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        failed = node in found and found[node].has_error()
        records = message.content.config_records
        for name, entries in records.items():
            doors = doors_of(entries)
            moved = self._moved(doors, failed=failed)
            if moved:
                kept = {k: v for k, v in entries.items() if k not in WAY}
                own = ConfigRecord({**kept, **way_to(moved)})
                content = RecordDict({**message.content, name: own})
                return [Message(content, node, kind)]
        return []

    def _moved(self, doors: Sequence[Door], *, failed: bool) -> Sequence[Door]:
        if not doors or self.host is None:
            return ()
        return self.host.mend([door.token for door in doors], failed=failed)


def _doors(message: Message) -> list[Door]:
    records = message.content.config_records.values()
    return [door for entries in records for door in doors_of(entries)]


def _size(message: Message) -> int:
    return content_bytes(message.content) if message.has_content() else 0
