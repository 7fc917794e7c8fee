# SPDX-License-Identifier: Apache-2.0
"""ATLAS whose server sees the sum of each cluster's updates, and no single one.

Members send sketches of their products under masks that cancel in their cluster's sum
(:mod:`atlas_flwr.protocol.sketches`, :mod:`atlas_flwr.grids.secure`). What is learned
is what :class:`~atlas_flwr.strategies.Atlas` learns, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from atlas_flwr._arguments import check_choice, with_fixed
from atlas_flwr.cohort.secure_exchange import SecureExchange
from atlas_flwr.config import SUMMED
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["SecureAtlas"]


class SecureAtlas(Atlas):
    """Atlas for :class:`~atlas_flwr.grids.secure.SecureGrid`, and for it alone.

    For whole clients of one rank, in clusters of three or more; members of smaller ones
    are not asked to train. Takes Atlas's arguments but ``sessions``. Clients answer
    ``query.fingerprint`` (``fingerprints='gradients'``), or ``clustering='none'`` has
    them in one cluster: updates, of which ``Atlas`` makes fingerprints else, are not
    seen.
    """

    single_replies = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **with_fixed("SecureAtlas", kwargs, {"sessions": None}))
        check_choice("aggregation", self.aggregation, SUMMED)
        if self.fingerprints == "updates" and self.discovery.method != "none":
            raise ValueError(
                "fingerprints='updates': a secure sum shows no client's update; use "
                "fingerprints='gradients', or clustering='none'"
            )
        given = self.roster, self.adapters, None, self
        self.exchange = self._sums = SecureExchange(*given, seed=self.seed)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for sums of sketches, in clusters that are large enough."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        clients = [self.roster.client(m.metadata.dst_node_id) for m in messages]
        groups = [str(self._group(client)) for client in clients]
        return self._sums.planned(server_round, messages, groups)
