# SPDX-License-Identifier: Apache-2.0
"""A Grid around a Grid: stable order, and an account of every message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.errors import RoundError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.log import log
from atlas_flwr.protocol.replies import reason_of

__all__ = ["RecordingGrid", "RoundTrip", "content_bytes"]

# What Ray raises where a worker or its node is gone.
DEAD_WORKER = (
    "ActorDiedError",
    "NodeDiedError",
    "ray.exceptions.OutOfMemoryError",
    "WorkerCrashedError",
)
DEAD_NODE = "its node has died"
NAMED = 5  # clients that are named in one line
RESUME = "continue the run with --run-config \"resume='<run folder>'\""


@dataclass(frozen=True)
class RoundTrip:
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
        Flower serialises them; what went again, as often as it went.
    seconds : float
        From the first message to the last reply.
    late : int
        Replies that nobody waited for.
    overdue : int
        Of ``replies``, those to earlier messages, which were late then; all are valid.
    silent : Sequence[int]
        Nodes that nothing came from, where all were waited for.
    late_errors : Sequence[Message]
        Replies to earlier messages, which were late then, and are errors.
    discounted : Mapping[str, Mapping[str, float]]
        Metrics of ``replies`` as they came, by the message replied to, where they are
        others now.
    """

    kind: str
    replies: list[Message]
    sent: int
    bytes_down: int
    bytes_up: int
    seconds: float
    late: int = 0
    overdue: int = 0
    silent: Sequence[int] = ()
    late_errors: Sequence[Message] = ()
    discounted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[int, str]:
        """Why each node that is known to have failed did."""
        errors = [reply for reply in self.replies if reply.has_error()]
        told = {reply.metadata.src_node_id: reason_of(reply) for reply in errors}
        return {**told, **dict.fromkeys(self.silent, "no reply came in time")}

    @property
    def late_reasons(self) -> list[tuple[int, str]]:
        """Nodes that were late in an earlier round and then failed, and why."""
        errors = self.late_errors
        return [(r.metadata.src_node_id, f"late: {reason_of(r)}") for r in errors]

    @property
    def failed(self) -> int:
        """Messages to which an error came, or nothing in time."""
        valid = sum(not reply.has_error() for reply in self.replies)
        return self.sent - self.late - (valid - self.overdue)


class RecordingGrid(DelegatingGrid):
    """Delegate to a grid; sort nodes and replies by client; tell what was exchanged.

    Works round any strategy, Flower's own among them, whose sums would otherwise depend
    on which reply came first, and whose samples on the nodes' random ids.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    roster : Roster
        Learns who is behind each node.
    on_exchange : Callable[[RoundTrip], None]
        Called after each ``send_and_receive``.
    resumed : bool
        Whether rounds were done before this grid was made: none was done without an
        answer to each question that this run asks.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        on_exchange: Callable[[RoundTrip], None],
        resumed: bool = False,
    ) -> None:
        super().__init__(grid)
        self.roster = roster
        self.on_exchange = on_exchange
        self.resumed = resumed
        self._answered: set[str] = set()  # questions that somebody has answered

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that have said who they are, in order of their clients."""
        nodes = list(self.grid.get_node_ids())
        self.roster.ask_again(but=nodes)
        self.roster.learn(self.grid, nodes)
        return self.roster.order(nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, wait for their replies, sort and record them."""
        out = list(messages)
        if not out:
            return []
        kind = out[0].metadata.message_type
        if kind == MessageType.TRAIN:
            self.roster.ask_again()
        started = time.monotonic()
        came = self.grid.send_and_receive(out, timeout=timeout)
        replies = self.roster.sorted_replies(came)
        down, up = self.repeated
        down += sum(content_bytes(message.content) for message in out)
        up += sum(content_bytes(r.content) for r in replies if r.has_content())
        seconds = time.monotonic() - started
        answered = {reply.metadata.src_node_id for reply in replies}
        asked = [] if self.late else [m.metadata.dst_node_id for m in out]
        silent = [node for node in asked if node not in answered]
        late = self.late, self.overdue
        seen = RoundTrip(
            kind,
            replies,
            len(out),
            down,
            up,
            seconds,
            *late,
            silent,
            self.late_errors,
            self.discounted,
        )
        self.on_exchange(seen)
        self._judge(seen)
        return replies

    def _judge(self, seen: RoundTrip) -> None:
        """Say aloud who failed; end the run where all did.

        A question that others have answered before ends nothing: who comes to be asked
        it alone, and cannot answer, is to take nobody along.

        Raises
        ------
        RoundError
            If no valid reply came, or a simulation's worker has died: Flower would
            give it work to the end of the run.
        """
        kind, failed = seen.kind, seen.failed
        told = [
            f"client {self.roster.client(node)}: {reason}"
            for node, reason in seen.reasons.items()
        ] or ["no reply came in time"]
        errors = [reply for reply in seen.replies if reply.has_error()]
        for node, reason in seen.late_reasons:
            client = self.roster.client(node)
            log(WARNING, "%s: client %s FAILED, %s", kind, client, reason)
        for reply in filter(_is_dead, [*errors, *seen.late_errors]):
            lost_node = DEAD_NODE in str(reply.error.reason)
            why, mend = (
                ("with its machine", "See to that machine")
                if lost_node
                else (
                    "most likely for want of memory",
                    "Run fewer clients at once (--client-cpus 2)",
                )
            )
            raise RoundError(
                f"{kind}: a worker of the simulation has died, {why}, and Flower would "
                f"go on to give it work ({reason_of(reply)}). {mend} and {RESUME}"
            )
        if failed < seen.sent:
            self._answered.add(kind)
        elif not self._was_answered(kind):
            raise RoundError(
                f"{kind}: none of {seen.sent} clients gave a valid reply, and nothing "
                f"can be learned so; {told[0]}. Mend that and {RESUME}"
            )
        if failed > 0:
            more = len(told) - NAMED
            named = told[:NAMED] + [f"and {more} more"] * (more > 0)
            what = "%s: %d of %d clients FAILED: %s"
            log(WARNING, what, kind, failed, seen.sent, "; ".join(named))

    def _was_answered(self, kind: str) -> bool:
        is_question = kind.startswith(MessageType.QUERY)
        return is_question and (self.resumed or kind in self._answered)


def _is_dead(reply: Message) -> bool:
    return any(word in str(reply.error.reason) for word in DEAD_WORKER)


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's records, as Flower's ``message_size_mod`` does.

    Of what is empty in a ``ConfigRecord``, an error there, the key is counted.
    """
    total = 0
    for record in content.values():
        if isinstance(record, ConfigRecord):
            empty = [key for key, value in record.items() if _is_empty(value)]
            total += sum(map(len, empty))
            record = ConfigRecord({k: record[k] for k in record if k not in empty})
        total += record.count_bytes()
    return total


def _is_empty(value: object) -> bool:
    return isinstance(value, str | bytes | list) and not value
