# SPDX-License-Identifier: Apache-2.0
"""Reading labels: each is tried through the public tail, and its gradient compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import LABEL, Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["LabelGradient"]


class LabelGradient(Attack):
    """Matches the gradient that the tail sent (DLG, arXiv 1906.08935, on labels alone).

    A u-shaped server has the tail's weights and adapters, what it answered and the
    gradient that came back: of all classes, the one whose gradient points most nearly
    where the one sent does.
    """

    name = "label-gradient"
    target = LABEL
    reads_summaries = True
    about = "each class tried through the public tail, the nearest gradient kept"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want gradients, and classes."""
        if any(o.gradient is None or o.answer is None for o in seen):
            return "it needs the tail's gradients, and not all of these texts have one"
        if any(not knowledge.answers.get(o.client) for o in seen):
            return "it is for tasks with classes"
        return ""

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess the class of each text."""
        import torch

        from atlas_flwr.privacy.attacks.gradients import alignments

        return [
            torch.tensor([int(alignments(knowledge, found).argmax())]) for found in seen
        ]
