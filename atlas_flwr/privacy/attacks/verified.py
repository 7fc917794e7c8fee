# SPDX-License-Identifier: Apache-2.0
"""Reading tokens from left to right, each guess tried through the public head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Verified"]


class Verified(Attack):
    """Runs a reader's 256 best guesses of each place, and keeps the likeliest.

    Where nothing is drawn at random, that is the one nearest to what was received, past
    defence and codec; under noise, the likeliest under it and under the reader. For
    causal models, whose hidden states depend on no later token.
    """

    name = "verified"
    about = "256 guesses of each place run through the public head, the likeliest kept"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want a causal model."""
        return "" if knowledge.causal else "it is for causal models"

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess from left to right."""
        from atlas_flwr.privacy.attacks.trying import Trying

        trying = Trying.of(knowledge, seen)
        return [trying.read(found) for found in seen]
