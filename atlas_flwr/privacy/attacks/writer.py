# SPDX-License-Identifier: Apache-2.0
"""Writing a text from whatever crossed, by the public model tuned on other texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Writer"]

LEAST = 2  # texts through each head: of one alone what is usual is itself


class Writer(Attack):
    """Tunes the public model on what other texts give; its best try is what is read.

    Of some texts that it writes for each crossing the one is kept whose own crossing,
    through the public head, is nearest to what was received. It needs no position for
    each token, and is not told how long a text is.
    """

    name = "writer"
    about = "the public model, tuned, writes a text from what crossed; the nearest kept"
    reads_summaries = True
    writes = True

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want a public model that writes, and texts through each head."""
        if not knowledge.whole:
            return "it is for causal models"
        known = Counter(text.through for text in knowledge.known)
        least = min(known[one.client, one.round] for one in seen)
        if least < LEAST:
            return (
                f"of a client and round it knows what {least} other texts send, and "
                f"needs {LEAST}: name tasks that have more texts with --known"
            )
        return ""

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Write each text."""
        from atlas_flwr.privacy.attacks.writing import CrossingWriter

        writer = CrossingWriter(knowledge)
        return [writer.nearest(found, writer.tries(found)) for found in seen]
