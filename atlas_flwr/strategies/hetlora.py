# SPDX-License-Identifier: Apache-2.0
"""HetLoRA: zero-pad factors, average them by their size, slice (arXiv 2401.06432).

EMNLP'24: clients of unlike ranks are sent the first rows and columns of the global
factors, and the server averages what comes back, zero-padded to the largest rank, with
weights proportional to the Frobenius norm of each client's product ("sparsity-weighted
aggregation", eq. 4-5). The average of factors is not that of products; the published
rule is kept as it is.

Clients may prune their ranks themselves (:mod:`atlas_flwr.lora.pruning`), here each
layer for itself; the server keeps what is left of a client's ranks for its later
rounds. Of split clients only the layers on their own side are pruned: those on the
trunk are trained there, using only the gradients that clients send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.aggregation import Contribution
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["HetLora"]


class HetLora(Atlas):
    """Atlas without clusters, factors averaged by the size of their products.

    Takes Atlas's arguments but ``clustering`` and ``aggregation``, and

    Parameters
    ----------
    rank_decay : float
        Gamma: clients may reply with floor(gamma r) of a layer's r directions, at
        least one, and have that rank from then on. 1: they may not.
    """

    single_replies = SINGLE_REPLIES["hetlora"]

    def __init__(self, *args: Any, rank_decay: float = 1.0, **kwargs: Any) -> None:
        if not 0 < rank_decay <= 1:
            raise ValueError(f"rank_decay={rank_decay}; it must be above 0, at most 1")
        fixed = {"clustering": "none", "aggregation": "sparsity-mean"}
        preset = {"fingerprints": "gradients"}
        super().__init__(*args, **with_fixed("HetLora", kwargs, fixed, preset))
        if rank_decay < 1 and self.fingerprints == "updates":
            raise ValueError(
                "fingerprints='updates' sketches factors of one rank; with "
                f"rank_decay={rank_decay} use fingerprints='gradients'"
            )
        self.exchange.rank_decay = rank_decay

    def _combine(self, server_round: int, parts: Sequence[Contribution]) -> None:
        super()._combine(server_round, parts)
        if self.exchange.rank_decay < 1:
            for part in parts:
                ranks = {name: f.rank for name, f in part.state.factors.items()}
                self.planner.assignments.limit(part.client, ranks)
