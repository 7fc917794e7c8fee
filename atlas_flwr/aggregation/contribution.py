# SPDX-License-Identifier: Apache-2.0
"""What clients bring to their group, and their shares in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState

__all__ = ["Contribution", "dense_means", "layer_names", "shares"]


@dataclass(frozen=True)
class Contribution:
    """What one client brings to its group, or several as one sum.

    Attributes
    ----------
    client : str
        Its id, for messages.
    weight : float
        Unnormalised, e.g. its number of examples.
    state : AdapterState
        Its trained adapters, the trunk's among them.
    sent : AdapterState, optional
        What it was sent to begin the round with, where that is known.
    late : bool
        Whether its group holds something else by now: it was sent that a round before
        this one, or when it was in no group or another.
    members : Sequence[str]
        Of a sum: whose it is. All were sent the same, ``state`` is the weighted mean of
        the products that they sent back, at any rank, and ``weight`` theirs together.
    """

    client: str
    weight: float
    state: AdapterState
    sent: AdapterState | None = None
    late: bool = False
    members: Sequence[str] = ()

    def trained(self, layer: str) -> int:
        """Return the rank at which each client of it trained a layer."""
        if self.members and self.sent is not None:
            return self.sent.factors[layer].rank
        return self.state.factors[layer].rank

    @property
    def weights(self) -> dict[str, float]:
        """Its weight by client; of a sum, where single ones are hidden, equal parts."""
        clients = self.members or (self.client,)
        return dict.fromkeys(clients, self.weight / len(clients))


def shares(parts: Sequence[Contribution]) -> list[float]:
    """Return p_k, the weights over their sum.

    Raises
    ------
    AdapterError
        If the sum is not above 0.
    """
    total = sum(part.weight for part in parts)
    if total <= 0:
        raise AdapterError(
            f"{len(parts)} contributions of total weight {total}: aggregation needs at "
            "least one client with examples"
        )
    return [part.weight / total for part in parts]


def layer_names(parts: Sequence[Contribution]) -> list[str]:
    """List the layers that any of them has, in order of first appearance."""
    return _names(part.state.factors for part in parts)


def dense_means(parts: Sequence[Contribution]) -> dict[str, NDArray[Any]]:
    """Average the dense arrays, each over the clients that have it, in float64.

    As from Flower's FedAvg, floating and complex arrays keep their dtype and others,
    such as BatchNorm's counters, become float64.
    """
    means = {}
    for key in _names(part.state.dense for part in parts):
        have = [part for part in parts if key in part.state.dense]
        first = have[0].state.dense[key]
        is_complex = first.dtype.kind == "c"
        kind = np.complex128 if is_complex else np.float64
        total: NDArray[Any] = np.zeros(first.shape, kind)
        for part, p in zip(have, shares(have), strict=True):
            value = part.state.dense[key].astype(total.dtype)
            if p < 0:  # taken off: infinities in it are a mask's, which stay
                value = np.where(np.isfinite(value), value, 0)
            # The product, too: p is exact in no array of half precision.
            total += p * value
        means[key] = total.astype(first.dtype if first.dtype.kind in "fc" else float)
    return means


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))
