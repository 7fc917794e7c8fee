# SPDX-License-Identifier: Apache-2.0
"""Reading texts from both directions: hidden states there, gradients back (BiSR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.optimised import Optimised

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Bisr"]

ALIKE = 0.05  # relative distance of gradients that a client's own steps may make


class Bisr(Optimised):
    """Joins an inverter, optimisation and the gradient at the tail's cut.

    After BiSR (CCS '24, arXiv 2409.00960), whose gradient is matched by optimisation;
    here labels are tried (:mod:`~atlas_flwr.privacy.attacks.matching`). What they tell
    is likelihood of a response's tokens, beside the reader's. Of tasks with classes
    the gradient tells the label alone, and this reads what ``optimised`` does.
    """

    name = "bisr"
    about = "optimised, with what the gradient at the tail's cut tells of a response"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want responses, a causal model and gradients."""
        if not knowledge.causal:
            return "it is for causal models"
        written = [o for o in seen if o.client not in knowledge.answers]
        if not written:
            return "it is for tasks with responses"
        if any(o.gradient is None or o.answer is None for o in written):
            return "it needs the tail's gradients, and not all of these texts have one"
        return ""

    def joined(self, knowledge: Knowledge, seen: Observation, scores: Tensor) -> Tensor:
        """Add what the gradient says of each token that was learned."""
        from atlas_flwr.privacy.attacks.matching import matched

        if seen.client in knowledge.answers:
            return scores
        scores = scores.clone()
        for place in matched(knowledge, seen):
            if place.learned:
                costs = place.costs
                if not knowledge.defence.draws:
                    costs = (costs / ALIKE).square() / 2
                told = -costs.max().expand(scores.shape[1]).clone()
                told[place.tokens] = -costs
                scores[place.place] += told
        return scores
