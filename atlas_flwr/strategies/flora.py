# SPDX-License-Identifier: Apache-2.0
"""FLoRA: stack everyone's adapters, fold the product, begin anew (arXiv 2409.05976).

NeurIPS'24, eq. 6-8: the server stacks A and B of clients with ranks that may differ,
the weights p_k on A alone, and everyone adds the product to its frozen weights and
starts the next round from a fresh adapter. The paper assumes one scale for all; here
each product has its own, so that what is added is what was learned.
"""

from __future__ import annotations

from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["Flora"]


class Flora(Atlas):
    """Atlas without clusters, its aggregate folded.

    Takes Atlas's arguments but ``clustering`` and ``aggregation``.
    """

    single_replies = SINGLE_REPLIES["flora"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fixed = {"clustering": "none", "aggregation": "fold"}
        preset = {"fingerprints": "gradients"}
        super().__init__(*args, **with_fixed("Flora", kwargs, fixed, preset))
