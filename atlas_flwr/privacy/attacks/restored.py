# SPDX-License-Identifier: Apache-2.0
"""Reading texts whose tokens a defence has replaced: the likeliest behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_flwr.privacy.attacks.base import Attack
from atlas_flwr.privacy.attacks.verified import Verified

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["Restored"]


class Restored(Attack):
    """Decodes what ``verified`` reads as a noisy channel (Shannon, 1948).

    The defence says how likely each token makes the one that was read, and the public
    model how likely a text is; of both together the likeliest is sought by beams.
    """

    name = "restored"
    about = "what verified reads, replaced tokens restored by the public model"

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Want replaced tokens, and a public model that writes."""
        if not knowledge.defence.replaces_tokens:
            return "it is for a defence that replaces tokens"
        return "" if knowledge.whole else "it is for causal models"

    @property
    def undefended(self) -> Attack:
        """Where nothing is replaced, nothing is to be restored of what it reads."""
        return Verified()

    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Read, and restore."""
        from atlas_flwr.privacy.attacks.restoring import Restoring
        from atlas_flwr.privacy.attacks.trying import Trying

        trying, restoring = Trying.of(knowledge, seen), Restoring.of(knowledge)
        return [restoring.text(trying.read(one), one.client) for one in seen]
