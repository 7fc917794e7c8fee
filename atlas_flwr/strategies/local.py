# SPDX-License-Identifier: Apache-2.0
"""Local training: every client alone, as the floor that federation must beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.wrappers import check_noise_arrives
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.log import flower_log

__all__ = ["Local"]


class Local(FedAvg):
    """Send each client its own arrays back; aggregate metrics only.

    Takes FedAvg's arguments and

    Parameters
    ----------
    roster : Roster, optional
        Who the clients are, so that a resumed run finds each one's arrays.
    """

    single_replies = SINGLE_REPLIES["local"]

    def __init__(self, *args: Any, roster: Roster | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roster = roster or Roster(ask=False)
        self.own: dict[str, ArrayRecord] = {}
        self._begun = False

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        check_noise_arrives(self, folds=False, many=True)
        flower_log(INFO, "\t├──> Local training: nothing is aggregated")
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node its own arrays."""
        if server_round == 1 and self._begun:  # another start() of this object
            self.own.clear()
        self._begun = True
        self.roster.learn(grid, grid.get_node_ids())
        messages = super().configure_train(server_round, arrays, config, grid)
        return self._with_own(messages, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node its own arrays."""
        self.roster.learn(grid, grid.get_node_ids())
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return self._with_own(messages, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep each client's arrays; average the metrics."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        for message in valid:
            client = self.roster.client(message.metadata.src_node_id)
            self.own[client] = next(iter(message.content.array_records.values()))
        contents = [message.content for message in valid]
        return None, self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _with_own(self, messages: Iterable[Message], kind: str) -> list[Message]:
        out = []
        for message in messages:
            node = message.metadata.dst_node_id
            record = RecordDict(dict(message.content))
            mine = self.own.get(self.roster.client(node))
            if mine is not None:
                record[self.arrayrecord_key] = mine
            out.append(Message(record, node, kind))
        return out

    def state(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
        """Return what a resumed run needs."""
        arrays = {
            f"{client}/{key}": array.numpy()
            for client, record in self.own.items()
            for key, array in record.items()
        }
        return arrays, {}

    def restore(
        self, arrays: Mapping[str, NDArray[np.generic]], values: Mapping[str, object]
    ) -> None:
        """Take up a saved state."""
        own: dict[str, dict[str, Array]] = {}
        for name, value in arrays.items():
            client, key = name.split("/", 1)
            own.setdefault(client, {})[key] = Array(value)
        self.own = {client: ArrayRecord(found) for client, found in own.items()}
