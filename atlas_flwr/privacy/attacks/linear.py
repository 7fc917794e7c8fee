# SPDX-License-Identifier: Apache-2.0
"""Reading tokens by a linear map from hidden states to token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Linear"]


class Linear(Attack):
    """Fits a ridge regression on other texts; the nearest embedding is its guess.

    It is fitted on what those texts give with the clients' defence on.
    """

    name = "linear"
    about = "a linear map from hidden states to token embeddings; the nearest is read"

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess each position alone."""
        from atlas_flwr.privacy.attacks.reader import LinearReader

        table = knowledge.table(seen[0])
        known = knowledge.of_sent.known
        reader = LinearReader(known, table, first=not knowledge.causal)
        return [reader.scores(found.hidden).argmax(1) for found in seen]
