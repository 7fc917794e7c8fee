# SPDX-License-Identifier: Apache-2.0
"""How far a host's numbers are from a guest's own, answers and adapters alike.

Of adapters that it computed itself a guest tells the server a few numbers, a random
projection of what they have learned, by which those that the host hands over are
judged. It draws the projection's seed when its round is over, and the host learns
neither (docs/decisions/spot-checks.md).
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from atlas_flwr.clustering import project
from atlas_flwr.errors import AdapterError, SessionError, TrunkError
from atlas_flwr.lora import AdapterState

__all__ = ["Computed", "Departure", "check_handed"]

_NUMBERS = 64  # a norm's estimate from so many is off by a tenth
_SEED_BITS = 62


class Departure(NamedTuple):
    """How far a host's numbers are from a guest's own.

    Attributes
    ----------
    what : str
        Which numbers.
    off : float
        In norm, of what the trunk changes, or its adapters have learned.
    allowed : float
        Above what sound machines differ by.
    """

    what: str
    off: float
    allowed: float

    def check(self) -> None:
        """Raise a :class:`~atlas_flwr.errors.TrunkError` if it is too far."""
        if not self.off <= self.allowed:
            raise TrunkError(
                f"a spot check found the trunk's {self.what} off by {self.off:.2g} of "
                f"what they change (allowed: {self.allowed:g}): its host has other "
                "weights or adapters, computes in another precision, is broken, or lies"
            )


@dataclass(frozen=True)
class Computed:
    """What a guest tells of the adapters that it computed.

    Attributes
    ----------
    seed : int
        Of the projection.
    sketch : tuple[float, ...]
        What they have learned, projected.
    allowed : float
        How far a sound host's may be off, of that.

    Raises
    ------
    AdapterError
        If these are no such numbers.
    """

    seed: int
    sketch: tuple[float, ...]
    allowed: float

    def __post_init__(self) -> None:
        is_whole = len(self.sketch) == _NUMBERS and all(map(math.isfinite, self.sketch))
        if not is_whole or not 0 < self.allowed < math.inf:
            raise AdapterError(
                f"a client told {len(self.sketch)} numbers of its adapters, and allows "
                f"{self.allowed}; it tells {_NUMBERS} finite ones, and allows some"
            )

    @classmethod
    def of(cls, begun: AdapterState, learned: AdapterState, allowed: float) -> Computed:
        """Project what was learned, by a seed that nobody knew before."""
        seed = secrets.randbits(_SEED_BITS)
        return cls(seed, tuple(_sketch(begun, learned, seed).tolist()), allowed)

    def departure(self, begun: AdapterState, handed: AdapterState) -> Departure:
        """Compare what a host handed over, which has what it began with."""
        theirs, own = _sketch(begun, handed, self.seed), np.array(self.sketch)
        off = float(np.linalg.norm(theirs - own))
        change = float(np.linalg.norm(own))
        return Departure("adapters", off / change if change else off, self.allowed)


def check_handed(begun: AdapterState, handed: AdapterState, of: str) -> None:
    """Refuse what is not of the layers and ranks that a session began with.

    Raises
    ------
    SessionError
        Naming whose session it is, and the first array that is another.
    """
    before, after = _arrays(begun), _arrays(handed)
    for name in sorted(before.keys() | after.keys()):
        sizes = [tuple(a[name].shape) if name in a else None for a in (before, after)]
        if sizes[0] != sizes[1]:
            raise SessionError(
                f"{of}: its host handed over {name} of shape {sizes[1]}, and began "
                f"with {sizes[0]}"
            )


def _arrays(state: AdapterState) -> dict[str, Any]:
    factors = {
        f"{name}.{side}": value
        for name, both in state.factors.items()
        for side, value in (("A", both.A), ("B", both.B))
    }
    return {**factors, **state.dense}


def _sketch(begun: AdapterState, learned: AdapterState, seed: int) -> Any:
    before = _arrays(begun)
    changes = {name: now - before[name] for name, now in _arrays(learned).items()}
    return project(changes, _NUMBERS, seed)
