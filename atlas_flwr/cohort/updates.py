# SPDX-License-Identifier: Apache-2.0
"""Phase 1 without a question: sketches of what clients first send back."""

from __future__ import annotations

from collections.abc import Sequence
from logging import WARNING

from flwr.app import Message

from atlas_flwr.aggregation import Contribution
from atlas_flwr.cohort.discovery import Discovery
from atlas_flwr.cohort.exchange import Exchange
from atlas_flwr.log import log
from atlas_flwr.protocol.replies import update_sketch

__all__ = ["sketch_updates"]


def sketch_updates(
    discovery: Discovery,
    exchange: Exchange,
    accepted: Sequence[tuple[Message, Contribution]],
) -> None:
    """Sketch the updates of clients without a sketch; name those that are none.

    Parameters
    ----------
    discovery : Discovery
        Is given the sketches.
    exchange : Exchange
        Knows what each was sent.
    accepted : Sequence[tuple[Message, Contribution]]
        A round's replies.
    """
    for message, part in accepted:
        if discovery.knows(part.client):
            continue
        start = exchange.sent(message.metadata.src_node_id)
        sketch = update_sketch(start, part.state)
        if sketch is not None:
            discovery.add(part.client, sketch)
        else:
            log(WARNING, "client %s changed nothing: no cluster yet", part.client)
