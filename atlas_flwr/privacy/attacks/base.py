# SPDX-License-Identifier: Apache-2.0
"""The seam of attacks: what crossed, and what the attacker knows, become guesses.

An attack is one file beside this one and one line in ``registry.py``, which also names
two of another form. It sees no truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from atlas_flwr.privacy.adversary import PASSIVE_SERVER, Adversary, Who

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import Knowledge
    from atlas_flwr.privacy.observation import Observation

__all__ = [
    "BALANCE",
    "LABEL",
    "MEMBER",
    "RESPONSE",
    "TASK",
    "TEXT",
    "Attack",
    "MemberAttack",
    "Shadows",
    "SketchAttack",
    "Suspects",
    "TaskAttack",
]

TEXT, LABEL, RESPONSE = "text", "label", "response"
MEMBER, TASK, BALANCE = "member", "task", "balance"


class Attack(ABC):
    """One attack.

    Attributes
    ----------
    name : str
        Key in :data:`~atlas_flwr.privacy.ATTACKS`.
    target : str
        :data:`TEXT`, :data:`LABEL`, or :data:`RESPONSE`: of a text what is learned.
    adversary : Adversary
        Who can do it.
    about : str
        What it does, in a sentence.
    reads_summaries : bool
        Whether it can do with summary positions, which are not one for each token.
    writes : bool
        Whether it guesses a prompt without knowing how long it is: tokens that no
        template says, as many as it likes.
    names_labels : bool
        Whether it says which class, not only which texts are of one.
    """

    name: ClassVar[str]
    target: ClassVar[str] = TEXT
    adversary: ClassVar[Adversary] = PASSIVE_SERVER
    about: ClassVar[str]
    reads_summaries: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    names_labels: ClassVar[bool] = True

    def unfit(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Say why it cannot be tried on these; empty where it can."""
        if knowledge.summarised and not self.reads_summaries:
            return "it reads one position for each token, and only summaries crossed"
        return self.unfit_for(knowledge, seen)

    def unfit_for(self, knowledge: Knowledge, seen: Sequence[Observation]) -> str:
        """Say what else an attack of this kind misses; empty for nothing."""
        return ""

    @property
    def undefended(self) -> Attack:
        """The attack whose reading without a defence bounds this one's under it."""
        return self

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
            For each observation token ids (T,), int64, -1 where nothing is guessed;
            of a label its class, (1,).
        """


@dataclass(frozen=True)
class Suspects:
    """Texts of one client's task, of which adapters were trained on some.

    Attributes
    ----------
    losses, untrained : Tensor
        Shape (N,): the loss of each with the adapters, and without.
    shadows : Tensor
        Shape (S, N): with S adapters that the attacker has trained.
    within : Tensor
        Shape (S, N), bool: whether it has trained them on this text.
    """

    losses: Tensor
    untrained: Tensor
    shadows: Tensor
    within: Tensor


class MemberAttack(ABC):
    """One attack on exported adapters: it tells texts that they were trained on.

    Attributes
    ----------
    name, adversary, about
        As :class:`Attack`'s.
    shadows : int
        How many adapters it wants trained.
    """

    name: ClassVar[str]
    adversary: ClassVar[Adversary] = Adversary(
        Who.OUTSIDER, weights=True, adapters=True, texts=False, defence=False
    )
    about: ClassVar[str]
    shadows: ClassVar[int] = 0

    @abstractmethod
    def scores(self, suspects: Suspects) -> Tensor:
        """Say of each text how much it looks like one that was trained on.

        Returns
        -------
        Tensor
            Shape (N,); members should have the greater ones.
        """


class TaskAttack(ABC):
    """One attack on the sizes of what crossed: it tells a client's task.

    Attributes
    ----------
    name, adversary, about
        As :class:`Attack`'s.
    """

    name: ClassVar[str]
    adversary: ClassVar[Adversary] = Adversary(
        Who.OUTSIDER, weights=False, adapters=False, texts=True, defence=False
    )
    about: ClassVar[str]

    @abstractmethod
    def guess(
        self, sizes: NDArray[Any], rows: int, lengths: Mapping[str, NDArray[Any]]
    ) -> str:
        """Say which task a client has.

        Parameters
        ----------
        sizes : NDArray
            Shape (steps,): positions that crossed in each step of a round.
        rows : int
            Texts of a step.
        lengths : Mapping[str, NDArray]
            By task, how many positions single texts of it have.
        """


@dataclass(frozen=True)
class Shadows:
    """What clients that the attacker has made up would send, all of one task.

    Attributes
    ----------
    sketches : NDArray
        Shape (S, parts, dim): fingerprints; or updates, each of one part.
    shares : NDArray
        Shape (S, classes): how many of a shadow's texts are of each class.
    second : NDArray
        Shape (S,), bool: of which of two sets of texts that have none in common.
    usual : NDArray
        Shape (classes,): the shares of public texts; a guess without information.
    """

    sketches: NDArray[Any]
    shares: NDArray[Any]
    second: NDArray[Any]
    usual: NDArray[Any]


class SketchAttack(ABC):
    """One attack on fingerprints or updates: it tells what a client's data are like.

    Attributes
    ----------
    name, adversary, about
        As :class:`Attack`'s.
    """

    name: ClassVar[str]
    adversary: ClassVar[Adversary] = Adversary(
        Who.PASSIVE_SERVER, adapters=False, labels=True
    )
    about: ClassVar[str]

    @abstractmethod
    def task(self, sketch: NDArray[Any], shadows: Mapping[str, Shadows]) -> str:
        """Say which task a client has.

        Parameters
        ----------
        sketch : NDArray
            Shape (parts, dim): what it sent.
        shadows : Mapping[str, Shadows]
            By task that it may have.
        """

    @abstractmethod
    def balance(self, sketch: NDArray[Any], shadows: Shadows) -> NDArray[Any]:
        """Say which share of a client's texts is of each class, (classes,).

        Parameters
        ----------
        sketch : NDArray
            Shape (parts, dim): what it sent.
        shadows : Shadows
            Of its task.
        """
