# SPDX-License-Identifier: Apache-2.0
"""Rounds that do not wait for the slowest: go on when enough have answered.

Semi-asynchronous rounds, as FedBuff's buffer of K updates (arXiv 2106.06639, algorithm
1), for any strategy: it is the Grid that stops waiting. A reply that comes tau rounds
late is taken into the round that it comes in, its weight times s(tau) = (1 + tau)^-a,
FedAsync's polynomial (arXiv 1903.03934, section 5.2; a = 1/2 is FedBuff's), or dropped
past a number of rounds. Each reply is pulled once, so that none counts twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.log import log

__all__ = ["QuorumGrid"]


class QuorumGrid(DelegatingGrid):
    """Return from a training round once a share of the replies is there.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    quorum : float
        Share of the messages whose replies are waited for, in (0, 1]; 1 waits for all.
        A reply that is an error does not count.
    keep_late : bool
        Take late replies into the round that they come in, discounted. FedAvg averages
        whole models, late ones among them. ATLAS and its kin add a late client's
        change to what its cluster holds, if their roster knows who is :meth:`busy`.
    weighted_by_key : str
        The metric that is discounted.
    poll_seconds : float
        Between looks for replies.
    exponent : float
        a. 0 counts late replies as if they were not.
    cutoff : int
        Rounds after which a late reply is dropped.

    Raises
    ------
    ValueError
        If the quorum is not in (0, 1], or the exponent or the cutoff below 0.
    """

    def __init__(
        self,
        grid: Grid,
        quorum: float = 1.0,
        *,
        keep_late: bool = False,
        weighted_by_key: str = "num-examples",
        poll_seconds: float = 0.5,
        exponent: float = 0.5,
        cutoff: int = 4,
    ) -> None:
        super().__init__(grid)
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum={quorum}; it must be above 0 and at most 1")
        if not exponent >= 0 or cutoff < 0:
            raise ValueError(f"{exponent=}, {cutoff=}: both must be 0 or more")
        self.quorum = quorum
        self.exponent, self.cutoff = exponent, cutoff
        self.keep_late = keep_late
        self.weighted_by_key = weighted_by_key
        self.poll_seconds = poll_seconds
        self._rounds = 0
        # By message id: the round that sent it, and to which node.
        self._missing: dict[str, tuple[int, int]] = {}
        self._late = self._overdue = 0
        self._late_errors: list[Message] = []
        self._discounted: dict[str, dict[str, float]] = {}

    @property
    def late(self) -> int:
        """Replies that were not waited for, since a quorum was there without them."""
        return self._late

    @property
    def overdue(self) -> int:
        """Replies of earlier rounds that were taken into the last."""
        return self._overdue

    @property
    def late_errors(self) -> Sequence[Message]:
        """Replies of earlier rounds that came in the last, and are errors."""
        return self._late_errors

    @property
    def discounted(self) -> Mapping[str, Mapping[str, float]]:
        """What clients told of themselves before it was discounted in the last."""
        return self._discounted

    def busy(self) -> set[int]:
        """Return the nodes whose late replies would be taken into the next round."""
        if not self.keep_late:
            return set()
        oldest = self._rounds + 1 - self.cutoff
        return {node for sent, node in self._missing.values() if sent >= oldest}

    def give_up(self) -> None:
        """Wait for no late reply any more: those who owe one are asked anew."""
        self._missing.clear()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; wait for as many replies as the quorum asks."""
        out = list(messages)
        self._late = self._overdue = 0
        self._late_errors = []
        self._discounted = {}
        if not out or out[0].metadata.message_type != MessageType.TRAIN:
            return self.grid.send_and_receive(out, timeout=timeout)
        self._rounds += 1
        self._drop_stale()
        return self._waited(out, timeout)

    def repeat(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages of this round anew, and wait for the quorum's share of them."""
        out = list(messages)
        if not out or out[0].metadata.message_type != MessageType.TRAIN:
            return self.grid.send_and_receive(out, timeout=timeout)
        anew = {(self._rounds, message.metadata.dst_node_id) for message in out}
        void = [name for name, sent in self._missing.items() if sent in anew]
        for name in void:
            del self._missing[name]
        self._late = max(self._late - len(void), 0)  # none are, after a timeout
        return self._waited(out, timeout)

    def _waited(self, out: list[Message], timeout: float | None) -> list[Message]:
        names = list(self.grid.push_messages(out))
        nodes = {i: m.metadata.dst_node_id for i, m in zip(names, out, strict=True)}
        waiting = set(names)
        # 0.28 * 25 comes to a little more than 7; and at least one reply is waited for.
        enough = max(math.ceil(self.quorum * len(out) - 1e-9), 1)
        end = math.inf if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and _valid(replies) < enough and time.monotonic() < end:
            found = list(self.grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if waiting and _valid(replies) < enough:
                time.sleep(self.poll_seconds)
        overdue = self._overdue_replies()
        self._overdue += len(overdue)
        if waiting and _valid(replies) >= enough:
            self._late += len(waiting)
            log(INFO, "%d of %d replies are late", len(waiting), len(out))
        self._missing |= {name: (self._rounds, nodes[name]) for name in waiting}
        return [*replies, *overdue]

    def _overdue_replies(self) -> list[Message]:
        if not self._missing:
            return []
        found = list(self.grid.pull_messages(self._missing))
        kept = []
        for reply in found:
            sent, _ = self._missing.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                self._late_errors.append(reply)
            elif self.keep_late:
                self._discount(reply, self._rounds - sent)
                kept.append(reply)
        return kept

    def _drop_stale(self) -> None:
        """Wait no more for what would come past the cutoff."""
        oldest = self._rounds - self.cutoff
        stale = [name for name, (sent, _) in self._missing.items() if sent < oldest]
        for name in stale:
            del self._missing[name]
        if stale and self.keep_late:
            log(INFO, "%d replies are too late to be counted", len(stale))

    def _discount(self, reply: Message, rounds: int) -> None:
        told = self._discounted.setdefault(reply.metadata.reply_to_message_id, {})
        for metrics in reply.content.metric_records.values():
            weight = metrics.get(self.weighted_by_key)
            if isinstance(weight, int | float):
                told[self.weighted_by_key] = weight
                metrics[self.weighted_by_key] = weight * (1 + rounds) ** -self.exponent


def _valid(replies: Iterable[Message]) -> int:
    return sum(not reply.has_error() for reply in replies)
