# SPDX-License-Identifier: Apache-2.0
"""Reading texts by optimising them: what crosses for them must be what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Optimised"]


class Optimised(Attack):
    """Begins with a learned reader's guess, and goes on through the public head.

    White-box inversion (after He et al., ACSAC 2019, and BiSR's second step, CCS '24).
    It reads all places together, and so encoders, too.
    """

    name = "optimised"
    about = "a learned reader's guess, optimised through the public head"

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Optimise each text."""
        from atlas_flwr.privacy.attacks.learned import LearnedReader
        from atlas_flwr.privacy.attacks.soft import optimised

        knowledge = knowledge.of_sent
        reader = LearnedReader.of(knowledge, seen[0])
        read = []
        for found in seen:
            scores = reader.scores(found.hidden).log_softmax(1)
            scores = self.joined(knowledge, found, scores)
            read.append(optimised(knowledge, found, scores))
        return read

    def joined(self, knowledge: Knowledge, seen: Observation, scores: Tensor) -> Tensor:
        """Return a text's scores (T, V) with what else tells of it."""
        return scores
