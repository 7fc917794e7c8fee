# SPDX-License-Identifier: Apache-2.0
"""HetLoRA: zero-pad factors, average them by their size, slice (arXiv 2401.06432).

EMNLP'24: clients of unlike ranks are sent the first rows and columns of the global
factors, and the server averages what comes back, zero-padded to the largest rank, with
weights proportional to the Frobenius norm of each client's product ("sparsity-weighted
aggregation", eq. 4-5). The average of factors is not that of products; the published
rule is kept as it is. Left out: pruning of ranks on the client by a penalty of its own.
"""

from __future__ import annotations

from typing import Any

from atlas_flwr.strategies.atlas import Atlas

__all__ = ["HetLora"]


class HetLora(Atlas):
    """Atlas without clusters, factors averaged by the size of their products.

    Takes Atlas's arguments but ``clustering`` and ``aggregation``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fixed = {"clustering": "none", "aggregation": "sparsity-mean"}
        super().__init__(*args, **{"fingerprints": "gradients", **kwargs, **fixed})
