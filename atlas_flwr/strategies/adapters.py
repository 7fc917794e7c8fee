# SPDX-License-Identifier: Apache-2.0
"""What each cluster has learned: its adapters, from the shared start onwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState
from atlas_flwr.strategies.aggregation import Contribution, aggregate, at_rank, nested
from atlas_flwr.strategies.persistence import flatten, unflatten
from atlas_flwr.strategies.records import Layout

__all__ = ["ClusterAdapters"]


@dataclass
class ClusterAdapters:
    """Adapters by group: a cluster's label, or a client's id where each is alone.

    Parameters
    ----------
    mode : str
        A key of :data:`~atlas_flwr.strategies.aggregation.AGGREGATIONS`.
    max_rank : int
        A group's adapters are kept exactly up to this rank.
    alpha : float, optional
        The clients' LoRA alpha.
    """

    mode: str = "concat"
    max_rank: int = 64
    alpha: float | None = None
    groups: dict[str, AdapterState] = field(default_factory=dict)
    _initial: AdapterState | None = None
    _overall: AdapterState | None = None
    _layout: Layout | None = None

    def begin(self, arrays: ArrayRecord) -> None:
        """Take the initial arrays, unless training began before."""
        if self._layout is None:
            self._layout = Layout.of(arrays, self.alpha)
        if self._initial is None:
            self._initial = self._layout.read(arrays, "initial arrays")

    @property
    def layout(self) -> Layout:
        """Names and shapes of the arrays exchanged."""
        if self._layout is None:
            raise AdapterError("the strategy has not started: call start() first")
        return self._layout

    @property
    def initial(self) -> AdapterState:
        """What all clients start from."""
        if self._initial is None:
            raise AdapterError("the strategy has not started: call start() first")
        return self._initial

    @property
    def initial_rank(self) -> int:
        """The largest rank of the initial arrays."""
        return max((f.rank for f in self.initial.factors.values()), default=1)

    @property
    def overall(self) -> AdapterState:
        """All clients' adapters together, at the initial rank."""
        return self._overall or self.initial

    def to_train(self, group: str | None, rank: int | None) -> AdapterState:
        """Return what a client of a group starts its round from, at its rank."""
        ranks = self._ranks(rank)
        state = None if group is None else self.groups.get(group)
        if state is None:
            return nested(self.initial, ranks, self.layout.scale)
        return at_rank(state, ranks, self.layout.scale)

    def to_evaluate(self, group: str | None, rank: int | None) -> AdapterState:
        """Return a group's adapters in full, or at a rank where one is given."""
        state = self.overall if group is None else self.groups.get(group, self.overall)
        if rank is None or state is self.initial:
            return state
        return at_rank(state, self._ranks(rank), self.layout.scale)

    def aggregate(self, members: Mapping[str, Sequence[Contribution]]) -> None:
        """Replace the adapters of each group by its members' together."""
        for group, parts in members.items():
            former = self.groups.get(group, self.initial)
            self.groups[group] = aggregate(parts, self.mode, self.max_rank, former)
        everyone = [part for parts in members.values() for part in parts]
        total = aggregate(everyone, "concat", self.max_rank, self.initial)
        self._overall = at_rank(total, self._ranks(None), self.layout.scale)

    def regroup(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Give each new group what its members had learned in their former ones."""
        members: dict[str, list[Contribution]] = {}
        for client, label in after.items():
            former = self.groups.get(str(before.get(client)))
            if former is not None:
                part = Contribution(client, 1.0, former)
                members.setdefault(str(label), []).append(part)
        self.groups = {
            group: aggregate(parts, "concat", self.max_rank, self.initial)
            for group, parts in members.items()
        }

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs: arrays, and JSON values."""
        arrays = flatten(self.initial, "initial")
        if self._overall:
            arrays |= flatten(self._overall, "overall")
        for group, found in self.groups.items():
            arrays |= flatten(found, f"group/{group}")
        trained = self._overall is not None
        return arrays, {"groups": list(self.groups), "trained": trained}

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        self._initial = unflatten(arrays, "initial")
        self._overall = unflatten(arrays, "overall") if values["trained"] else None
        self.groups = {g: unflatten(arrays, f"group/{g}") for g in values["groups"]}

    def _ranks(self, given: int | None) -> dict[str, int]:
        factors = self.initial.factors
        if given is None:
            return {name: f.rank for name, f in factors.items()}
        return {name: min(given, *f.shape) for name, f in factors.items()}
