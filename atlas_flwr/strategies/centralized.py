# SPDX-License-Identifier: Apache-2.0
"""Centralized training: one node trains on everybody's data, as the ceiling.

Only a simulation can do this: the data would otherwise leave their owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.log import flower_log
from atlas_flwr.protocol import keys

__all__ = ["Centralized"]


class Centralized(FedAvg):
    """Let the first sampled node train on the pooled data of all sampled nodes.

    It takes as many steps as they would have taken together. Evaluation is FedAvg's,
    on every client's own test data. The ClientApp must understand ``pooled-nodes``:
    the number of clients whose data to pool. Takes FedAvg's arguments and

    Parameters
    ----------
    roster : Roster, optional
        Who the clients are: their ids go along as ``pooled-clients``, without which the
        ClientApp cannot know who was sampled.
    """

    single_replies = SINGLE_REPLIES["centralized"]

    def __init__(self, *args: Any, roster: Roster | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roster = roster

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        flower_log(INFO, "\t├──> Centralized training: one node holds all data")
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the arrays to one node, with the number of clients to pool."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if not messages:
            return []
        entries = ConfigRecord(dict(config))
        entries[keys.POOLED_NODES] = len(messages)
        sampled = [message.metadata.dst_node_id for message in messages]
        if self.roster is not None:
            ordered = self.roster.order(sampled)
            entries[keys.POOLED_CLIENTS] = list(map(self.roster.client, ordered))
        record = RecordDict(
            {self.arrayrecord_key: arrays, self.configrecord_key: entries}
        )
        node = min(sampled)
        return [Message(record, node, MessageType.TRAIN)]
