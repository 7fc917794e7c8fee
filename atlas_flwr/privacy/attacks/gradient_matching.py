# SPDX-License-Identifier: Apache-2.0
"""Reading a response: labels are tried by the gradient that the tail sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import RESPONSE, Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["GradientMatching"]


class GradientMatching(Attack):
    """Finds the tokens whose loss has the gradient that came (DLG, TAG), exactly.

    It needs nothing of the head, nor of what that sent. Under noise the public model's
    own odds of each token are its prior (as in LAMP, arXiv 2202.08827).
    """

    name = "gradient-matching"
    target = RESPONSE
    about = "labels of each place tried through the public tail by their gradient"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want a causal model, and gradients."""
        if not knowledge.causal:
            return "it is for causal models"
        if any(o.gradient is None or o.answer is None for o in seen):
            return "it needs the tail's gradients, and not all of these texts have one"
        return ""

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess what was learned at each place; -1 where nothing was."""
        import torch

        from atlas_flwr.privacy.attacks.matching import matched

        read = []
        for found in seen:
            guess = torch.full((len(found.hidden),), -1)
            for place in matched(knowledge, found):
                if place.learned:
                    guess[place.place] = place.tokens[place.costs.argmin()]
            read.append(guess)
        return read
