# SPDX-License-Identifier: Apache-2.0
"""The seam of aggregation: what a group holds, and what its clients start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from atlas_flwr.aggregation.contribution import Contribution
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["Rule", "Start"]


@dataclass(frozen=True)
class Start:
    """How a client is to start a round.

    Attributes
    ----------
    initial : AdapterState
        What all clients of the federation started from, at the largest rank.
    ranks : Mapping[str, int]
        The client's rank by layer; layers at 0, or missing, get no adapter.
    scale : Callable[[int], float]
        The scale that the client applies at a rank.
    seed : int
        Of the run, for fresh adapters.
    round : int
        Server round.
    """

    initial: AdapterState
    ranks: Mapping[str, int]
    scale: Callable[[int], float]
    seed: int = 0
    round: int = 1

    @property
    def adapted(self) -> Mapping[str, int]:
        """The layers with an adapter, and its rank."""
        return {name: rank for name, rank in self.ranks.items() if rank}

    def nested(self, dense: AdapterState) -> AdapterState:
        """Give each layer the first rows of the shared initial A, and of B.

        An initial adapter has B = 0, so there is no product to approximate; what
        matters is that clients of all ranks start in the same directions.

        Raises
        ------
        AdapterError
            If a rank is above that of the initial arrays.
        """
        factors = {}
        for name, rank in self.adapted.items():
            A, B = self.initial.factors[name].A, self.initial.factors[name].B
            if rank > A.shape[0]:
                raise AdapterError(
                    f"layer {name!r}: rank {rank} was assigned, but the initial arrays "
                    f"have rank {A.shape[0]}; start with arrays of the largest rank"
                )
            factors[name] = LoraFactors(A[:rank], B[:, :rank], self.scale(rank))
        return AdapterState(factors, dense.dense)


class Rule(ABC):
    """How a group's adapters become one, and come back to each client's ranks.

    Parameters
    ----------
    max_rank : int, optional
        Products are kept exactly up to this rank; ``None`` for any.
    flat : bool
        Whether a round sends no more of a group's product than one round's ranks add up
        to, however many rounds there were. The group's sum is exact either way.

    Attributes
    ----------
    folds : bool
        Whether clients are sent products to fold into their frozen weights, beside the
        adapters that they train.
    adds_changes : bool
        Whether members count by their weights alone, so that the change of one that is
        late can be added to what its group holds.
    rescales : bool
        Whether what it hands out equals what was learned as a product alone, so that A
        and B may be scaled against each other.
    """

    folds: ClassVar[bool] = False
    adds_changes: ClassVar[bool] = True
    rescales: ClassVar[bool] = True

    def __init__(self, max_rank: int | None = None, flat: bool = False) -> None:
        self.max_rank = max_rank
        self.flat = flat

    @property
    def keeps_rest(self) -> bool:
        """Whether groups keep a part of their sums to themselves."""
        return self.room(0) is not None

    def room(self, trained: int, *ranks: int) -> int | None:
        """Return the rank at which a product is handed out; ``None`` for its own.

        Parameters
        ----------
        trained : int
            Sum of the ranks that were trained in this round.
        *ranks : int
            At which the terms of the product were handed out before.
        """
        return None

    @abstractmethod
    def start(self, held: AdapterState, at: Start) -> AdapterState:
        """Return what a client starts from, given what its group holds."""

    @abstractmethod
    def combine(
        self, held: AdapterState | None, parts: Sequence[Contribution]
    ) -> AdapterState:
        """Return what a group holds after a round.

        Parameters
        ----------
        held : AdapterState, optional
            What it held, which all its members started from; ``None`` in its first
            round.
        parts : Sequence[Contribution]
            At least one, of total weight above 0.
        """
