# SPDX-License-Identifier: Apache-2.0
"""MIRA: every client its own model, drawn to those of similar clients.

IEEE Networking Letters 7(3), 2025, eq. 3-7: multi-task learning over a graph of
clients. The server never averages; each round it moves every client's adapters a little
towards its neighbours'. The paper's step needs factors of one rank, and its graph is
random; here the step is on products (see :mod:`atlas_flwr.clustering.graph`), and the
graph comes from fingerprints, or is given.
"""

from __future__ import annotations

from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.aggregation.mixing import Mixing
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["Mira"]


class Mira(Atlas):
    """Atlas with a group for each client, and mixing between all of them.

    Takes Atlas's arguments but ``clustering``, and

    Parameters
    ----------
    mixing : Mixing
        Its strength is the paper's eta lambda times the graph's largest degree.
    """

    single_replies = SINGLE_REPLIES["mira"]

    def __init__(self, *args: Any, mixing: Mixing | None = None, **kwargs: Any) -> None:
        fixed = {
            "clustering": "none",
            "min_cluster_size": 1,
            "mixing": mixing or Mixing(0.5),
        }
        defaults = {"fingerprints": "gradients", "aggregation": "both"}
        super().__init__(*args, **with_fixed("Mira", kwargs, fixed, defaults))

    @property
    def parts(self) -> bool:
        """Whether clients may get unlike arrays: each its own."""
        return True

    def _group(self, client: str) -> str | None:
        return client
