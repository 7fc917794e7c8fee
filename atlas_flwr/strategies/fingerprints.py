# SPDX-License-Identifier: Apache-2.0
"""Fingerprints by request: each client's gradients at the shared start, sketched."""

from __future__ import annotations

from collections.abc import Sequence
from logging import WARNING

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from atlas_flwr.log import log
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies.roster import Roster
from atlas_flwr.strategies.sessions import TrunkSessions

__all__ = ["FINGERPRINT", "ask_fingerprints"]

FINGERPRINT = "query.fingerprint"
# One cut for all, so that every sketch is of the same tensors.
PLAN = SplitPlan(head=1, tail=1)


def ask_fingerprints(
    grid: Grid,
    nodes: Sequence[int],
    entries: ConfigRecord,
    roster: Roster,
    sessions: TrunkSessions | None,
) -> dict[str, NDArray[np.float32]]:
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

    Returns
    -------
    dict[str, NDArray]
        Sketch by client, shape (parts, dim); those that failed are missing.
    """
    messages = [_message(node, entries, roster, sessions) for node in nodes]
    found = {}
    replies = grid.send_and_receive(messages, timeout=roster.timeout)
    for reply in roster.sorted_replies(replies):
        node = reply.metadata.src_node_id
        if reply.has_error():
            log(WARNING, "node %d sent no fingerprint: %s", node, reply.error.reason)
            continue
        record = next(iter(reply.content.array_records.values()))
        found[roster.client(node)] = np.asarray(record["sketch"].numpy(), np.float32)
    return found


def _message(
    node: int, entries: ConfigRecord, roster: Roster, sessions: TrunkSessions | None
) -> Message:
    own = ConfigRecord(dict(entries))
    if sessions is not None:
        own["plan"] = str(PLAN)
        own["trunk-address"] = sessions.address
        own["trunk-token"] = sessions.open(roster.client(node), PLAN, AdapterState())
    return Message(RecordDict({"config": own}), node, FINGERPRINT)
