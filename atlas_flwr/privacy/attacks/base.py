# SPDX-License-Identifier: Apache-2.0
"""The seam of attacks: what crossed, and what the attacker knows, become guesses.

An attack is one file beside this one and one line in ``registry.py``. It sees no truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.adversary import PASSIVE_SERVER, Adversary

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = ["LABEL", "TEXT", "Attack"]

TEXT, LABEL = "text", "label"


class Attack(ABC):
    """One attack.

    Attributes
    ----------
    name : str
        Key in :data:`~atlas_flwr.privacy.ATTACKS`.
    target : str
        :data:`TEXT` or :data:`LABEL`.
    adversary : Adversary
        Who can do it.
    about : str
        What it does, in a sentence.
    """

    name: ClassVar[str]
    target: ClassVar[str] = TEXT
    adversary: ClassVar[Adversary] = PASSIVE_SERVER
    about: ClassVar[str]

    def unfit(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Say why it cannot be tried on these; empty where it can."""
        return ""

    @abstractmethod
    def read(self, knowledge: Knowledge, seen: Sequence[Observation]) -> list[Tensor]:
        """Guess.

        Parameters
        ----------
        knowledge : Knowledge
            What the attacker knows.
        seen : Sequence[Observation]
            What crossed: all of one depth of head.

        Returns
        -------
        list[Tensor]
            For each observation token ids (T,), int64; of a label its class, (1,).
        """
