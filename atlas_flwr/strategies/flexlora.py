# SPDX-License-Identifier: Apache-2.0
"""FlexLoRA: sum the products, cut them by SVD at each client's rank (arXiv 2402.11505).

NeurIPS'24, algorithm 1: the server forms sum p_k B_k A_k, decomposes it, and sends each
client the leading directions that its rank holds. The paper forms the dense matrix;
here QR and a small SVD give the same without it.
"""

from __future__ import annotations

from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["FlexLora"]


class FlexLora(Atlas):
    """Atlas without clusters, its aggregate cut.

    Takes Atlas's arguments but ``clustering`` and ``aggregation``.
    """

    single_replies = SINGLE_REPLIES["flexlora"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fixed = {"clustering": "none", "aggregation": "truncate"}
        preset = {"fingerprints": "gradients"}
        super().__init__(*args, **with_fixed("FlexLora", kwargs, fixed, preset))
