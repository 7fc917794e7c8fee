# SPDX-License-Identifier: Apache-2.0
"""Reading tokens by a small transformer trained on other texts (SIP, CCS '24)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Inverter"]


class Inverter(Attack):
    """Trains a transformer on what other texts give with the defence on."""

    name = "inverter"
    about = "a small transformer from all hidden states of a text to its tokens"

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess all positions of a text together."""
        from atlas_flwr.privacy.attacks.learned import LearnedReader

        reader = LearnedReader.of(knowledge, seen[0])
        return [reader.scores(found.hidden).argmax(1) for found in seen]
