# SPDX-License-Identifier: Apache-2.0
"""Everything that is trained of a model: LoRA factors and dense arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.lora.factors import LoraFactors

__all__ = ["AdapterState"]


@dataclass(frozen=True)
class AdapterState:
    """What is trained: LoRA factors by layer, and dense arrays (a classifier) by key.

    Attributes
    ----------
    factors : Mapping[str, LoraFactors]
        By the layer's name in the whole model.
    dense : Mapping[str, NDArray]
        Arrays that are trained in full, e.g. ``classifier.weight``. Of any dtype in
        an app that trains whole models; ours are float32.
    folded : Mapping[str, LoraFactors]
        Products that are part of the frozen weights, by layer: learned before, exact,
        and not trained any more.
    origin : str
        The name of what :attr:`folded` are the last directions of, so that those who
        hold it need not be sent it again; empty for nothing.
    rest : Mapping[str, Tensor]
        What a sum has beyond :attr:`factors`, by layer, dense, float32: kept by the
        server alone (see :mod:`atlas_flwr.lora.remainder`).
    """

    factors: Mapping[str, LoraFactors] = field(default_factory=dict)
    dense: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    folded: Mapping[str, LoraFactors] = field(default_factory=dict)
    origin: str = ""
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    def merged(self, other: AdapterState) -> AdapterState:
        """Add the layers and arrays of another state, which wins over this one's."""
        rest = {n: r for n, r in self.rest.items() if n not in other.factors}
        return AdapterState(
            {**self.factors, **other.factors},
            {**self.dense, **other.dense},
            {**self.folded, **other.folded},
            self.origin or other.origin,
            {**rest, **other.rest},
        )

    @property
    def layers(self) -> set[str]:
        """All layers that it says something of."""
        return {*self.factors, *self.folded}

    def select(
        self,
        layers: Iterable[str],
        dense: Mapping[str, NDArray[Any]] | None = None,
    ) -> AdapterState:
        """Keep the given layers, and all dense arrays or those given."""
        wanted = set(layers)
        kept = {name: f for name, f in self.factors.items() if name in wanted}
        folded = {name: f for name, f in self.folded.items() if name in wanted}
        own = self.dense if dense is None else dense
        rest = {name: r for name, r in self.rest.items() if name in wanted}
        return AdapterState(kept, own, folded, self.origin, rest)
