# SPDX-License-Identifier: Apache-2.0
"""One sum of a round: whom it is of, what they are asked, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import ERROR
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray

from atlas_flwr.errors import AtlasError, DataError
from atlas_flwr.log import log
from atlas_flwr.protocol.replies import reason_of
from atlas_flwr.protocol.sketches import FEWEST_SKETCHED, SketchPlan
from atlas_flwr.protocol.sums import FEWEST, SECURE, SumLayout

__all__ = ["SumGroup"]

_REFUSED = 0


@dataclass
class SumGroup:
    """Those whose updates are one sum, through a round.

    Attributes
    ----------
    messages : list[Message]
        One a member.
    layout : SumLayout
        What a member sends.
    plan : SketchPlan, optional
        How it is sketched.
    """

    messages: list[Message]
    layout: SumLayout
    plan: SketchPlan | None
    _offers: dict[int, ConfigRecord] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _refused: str = ""

    @classmethod
    def of(cls, messages: list[Message], bits: int, weighted_by: str) -> SumGroup:
        """Find what all members send, from what all are sent."""
        arrays = _common_arrays(messages)
        told = messages[0].content.config_records.get(SECURE)
        plan = None if told is None else SketchPlan.from_record(told)
        how = (len(messages), bits, weighted_by)
        layout = SumLayout.of(arrays, *how)
        if plan is not None:
            layout = SumLayout(plan.arrays(arrays), *how)
        return cls(messages, layout, plan)

    @property
    def _members(self) -> list[Message]:
        """The messages to those that have trained."""
        return [m for m in self.messages if m.metadata.dst_node_id in self._offers]

    def questions(self) -> Iterator[Message]:
        """Ask each to train, and to keep what it learned."""
        for message in self.messages:
            content = RecordDict(dict(message.content))
            told = self.plan.to_record() if self.plan else ConfigRecord()
            told["clients"] = self.layout.clients
            told["fraction-bits"] = self.layout.bits
            told["weighted-by"] = self.layout.weighted_by
            content[SECURE] = told
            yield _like(message, content)

    def meets(self, offers: Mapping[int, ConfigRecord]) -> bool:
        """Take the members' keys; tell whether there can be a sum."""
        nodes = {message.metadata.dst_node_id for message in self.messages}
        self._offers = {n: offer for n, offer in offers.items() if n in nodes}
        try:
            fewest = FEWEST_SKETCHED if self.plan else FEWEST
            self._names = _common_metrics(self._offers, fewest)
        except DataError as error:
            self._refused = str(error)
        return not self._refused

    def exchanges(self) -> Iterator[Message]:
        """Give each member all members' keys."""
        public = [cast(bytes, offer["public-key"]) for offer in self._offers.values()]
        nodes = [str(node) for node in self._offers]
        keys = ConfigRecord({"nodes": nodes, "public-keys": public})
        for message in self._members:
            yield _like(message, RecordDict({SECURE: keys}))

    def answers(
        self, replies: Mapping[int, Message], arrayrecord_key: str
    ) -> list[Message]:
        """Return the mean, as if the first member had sent it, or errors."""
        members = self._members
        try:
            if self._refused:
                raise DataError(self._refused)
            mean = self.layout.mean(self._vectors(replies), self._names)
        except DataError as error:
            whose = f"cluster {self.plan.group}: " if self.plan else ""
            log(ERROR, "secure sum: %sno mean of this round: %s", whose, error)
            reason = f"no mean of this round: {error}"
            return [Message(Error(_REFUSED, reason), reply_to=m) for m in members]
        content = RecordDict({arrayrecord_key: mean.arrays, "metrics": mean.metrics})
        if self.plan is not None:
            nodes = [str(node) for node in self._offers]
            content[SECURE] = ConfigRecord({"nodes": nodes, "rounding": mean.rounding})
        return [Message(content, reply_to=members[0])]

    def _vectors(self, replies: Mapping[int, Message]) -> list[NDArray[np.uint64]]:
        """Return the members' masked updates; refuse if one is missing."""
        lost, vectors = {}, []
        for node in self._offers:
            reply = replies.get(node)
            if reply is None:
                lost[node] = "no reply came in time"
            elif reply.has_error():
                lost[node] = reason_of(reply)
            else:
                vectors.append(reply.content.array_records[SECURE]["masked"].numpy())
        if lost:
            told = "; ".join(f"node {node}: {why}" for node, why in lost.items())
            raise DataError(
                f"{len(lost)} of {len(self._offers)} clients gave a key and no masked "
                f"update, without which the sum of the others is noise ({told})"
            )
        return vectors


def _common_arrays(messages: Sequence[Message]) -> ArrayRecord:
    """Return the arrays that all messages bring."""
    found = [[*message.content.array_records.values()] for message in messages]
    if any(len(records) != 1 or not records[0] for records in found):
        raise AtlasError(
            "a secure sum wants one ArrayRecord in each message, not empty"
        )
    first = found[0][0]
    for message, (record,) in zip(messages, found, strict=True):
        if record is not first and record.object_id != first.object_id:
            raise AtlasError(
                f"node {message.metadata.dst_node_id} is sent other arrays than node "
                f"{messages[0].metadata.dst_node_id}: one mean cannot serve both; "
                "secure sums are for strategies that send the same to all, at one rank"
            )
    return first


def _common_metrics(offers: Mapping[int, ConfigRecord], fewest: int) -> list[str]:
    """Return the names of the metrics that all clients bring."""
    if len(offers) < fewest:
        raise DataError(
            f"no more than {len(offers)} of the clients trained; a sum of fewer than "
            f"{fewest} hides nothing"
        )
    names = {n: cast(list[str], offer["metrics"]) for n, offer in offers.items()}
    node, first = next(iter(names.items()))
    for other, found in names.items():
        if found != first:
            raise DataError(
                f"node {other} has metrics {found} and node {node} {first}; all must "
                "have the same"
            )
    return first


def _like(message: Message, content: RecordDict) -> Message:
    told = message.metadata
    return Message(
        content,
        told.dst_node_id,
        told.message_type,
        ttl=told.ttl,
        group_id=told.group_id,
    )
