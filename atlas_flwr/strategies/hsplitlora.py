# SPDX-License-Identifier: Apache-2.0
"""HSplitLoRA: ranks by importance, cuts by device, concatenation (arXiv 2505.02795).

Split clients of unlike devices, one federation: important weight matrices get adapters
first, in each device's budget, and adapters are concatenated without noise. The
published text leaves out how the concatenated adapter comes back to a client's rank;
here it is folded, which loses nothing. What it does not have is ATLAS's clusters.
"""

from __future__ import annotations

from typing import Any

from atlas_flwr._arguments import with_fixed
from atlas_flwr.config import SINGLE_REPLIES
from atlas_flwr.strategies.atlas import Atlas

__all__ = ["HSplitLora"]


class HSplitLora(Atlas):
    """Atlas without clusters, with importances, its aggregate folded.

    Takes Atlas's arguments but ``clustering``, ``aggregation`` and ``importance``.
    """

    single_replies = SINGLE_REPLIES["hsplitlora"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fixed = {"clustering": "none", "aggregation": "fold", "importance": True}
        preset = {"fingerprints": "gradients"}
        super().__init__(*args, **with_fixed("HSplitLora", kwargs, fixed, preset))
