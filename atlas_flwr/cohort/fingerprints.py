# SPDX-License-Identifier: Apache-2.0
"""Fingerprints asked of ATLAS's own clients, with the importances of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import WARNING

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import AdapterError, SessionError
from atlas_flwr.log import log
from atlas_flwr.lora import AdapterState
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.replies import reason_of
from atlas_flwr.split import SplitPlan

__all__ = ["Fingerprints", "ask_fingerprints"]

# One cut for all, so that every sketch is of the same tensors.
PLAN = SplitPlan(head=1, tail=1)


@dataclass(frozen=True)
class Fingerprints:
    """What clients answered, by client.

    Attributes
    ----------
    sketches : dict[str, NDArray]
        Shape (parts, dim) each.
    sensitivities : dict[str, dict[str, float]]
        Sum of abs(W dL/dW) by layer, the trunk's among them; empty if not asked for.
    examples : dict[str, float]
        How many it has, of clients that said so beside these.
    """

    sketches: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    sensitivities: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: dict[str, float] = field(default_factory=dict)


def ask_fingerprints(
    grid: Grid,
    nodes: Sequence[int],
    entries: ConfigRecord,
    roster: Roster,
    sessions: TrunkSessions | None,
    importance: bool = False,
) -> Fingerprints:
    """Ask nodes for their sketches.

    Parameters
    ----------
    grid : Grid
        Reaches the nodes.
    nodes : Sequence[int]
        Whom to ask.
    entries : ConfigRecord
        What every message brings along.
    roster : Roster
        Who is behind each node.
    sessions : TrunkSessions, optional
        Opens a session without adapters for each, where clients are split.
    importance : bool
        Ask how much the loss depends on each layer, too, which the same backward
        passes tell.

    Returns
    -------
    Fingerprints
        Those that failed are missing.
    """
    own = ConfigRecord({**entries, keys.IMPORTANCE: importance})
    messages = [_message(node, own, roster, sessions) for node in nodes]
    found = Fingerprints()
    replies = grid.send_and_receive(messages, timeout=roster.timeout)
    for reply in roster.sorted_replies(replies):
        node = reply.metadata.src_node_id
        if reply.has_error():
            log(WARNING, "node %d sent no fingerprint: %s", node, reason_of(reply))
            continue
        client = roster.client(node)
        try:
            sketch = _sketch(reply)
            if importance:
                told = _told(reply)
                examples = told.pop(keys.NUM_EXAMPLES, None)
                if sessions is not None:
                    told |= sessions.importance(client)
                if examples is not None:
                    found.examples[client] = _count(examples)
                found.sensitivities[client] = told
        except (AdapterError, SessionError) as error:
            log(WARNING, "node %d has no fingerprint: %s", node, error)
            continue
        found.sketches[client] = sketch
    return found


def _message(
    node: int, entries: ConfigRecord, roster: Roster, sessions: TrunkSessions | None
) -> Message:
    own = ConfigRecord(dict(entries))
    if sessions is not None:
        probe, client = bool(entries[keys.IMPORTANCE]), roster.client(node)
        own[keys.PLAN] = str(PLAN)
        round_ = int(str(entries.get(keys.SERVER_ROUND, 0)))
        token = sessions.open(
            client, PLAN, AdapterState(), probe=probe, server_round=round_
        )
        own.update(sessions.way(token))
    return Message(RecordDict({"config": own}), node, keys.FINGERPRINT)


def _sketch(reply: Message) -> NDArray[np.float32]:
    records = reply.content.array_records.values()
    arrays = [record[keys.SKETCH] for record in records if keys.SKETCH in record]
    if len(arrays) != 1:
        raise AdapterError(f"its reply needs one array {keys.SKETCH!r}")
    return np.asarray(arrays[0].numpy(), np.float32)


def _told(reply: Message) -> dict[str, float]:
    if keys.IMPORTANCE not in reply.content.metric_records:
        raise AdapterError(f"its reply needs metrics {keys.IMPORTANCE!r}")
    told = reply.content.metric_records[keys.IMPORTANCE]
    return {name: float(str(value)) for name, value in told.items()}


def _count(examples: float) -> float:
    if not 0 < examples < float("inf"):
        raise AdapterError(f"its {keys.NUM_EXAMPLES!r} is {examples}; above 0 is meant")
    return examples
