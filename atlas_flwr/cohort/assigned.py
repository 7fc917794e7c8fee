# SPDX-License-Identifier: Apache-2.0
"""Phase 2: who has been given which cut and ranks, and when to give them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.budget import averaged, blended, distance
from atlas_flwr.log import log
from atlas_flwr.protocol.profile import Assigned, Profile

__all__ = ["AssignRule", "Assignments"]

Importance = Mapping[str, float]
AssignRule = Callable[[Profile, Importance], Assigned]


@dataclass
class Assignments:
    """What phase 2 gave each client, and the importances that it was based on.

    A client keeps its cut and ranks until its cluster's importances have moved away
    from those that they were based on.

    Parameters
    ----------
    rule : AssignRule, optional
        Called with a client's profile and its cluster's importances, which are empty
        where nobody measured any. ``None``: everyone unsplit, at the initial rank.
    tolerance : float
        Total variation distance, in [0, 1], above which a client is assigned anew.
    """

    rule: AssignRule | None = None
    tolerance: float = 0.1
    importances: dict[str, dict[str, float]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _examples: dict[str, float] = field(default_factory=dict)
    _bases: dict[str, Importance] = field(default_factory=dict)
    _given: dict[str, Assigned] = field(default_factory=dict)
    _limits: dict[str, dict[str, int]] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget what was measured and given."""
        self.importances, self._counts, self._examples = {}, {}, {}
        self._bases, self._given, self._limits = {}, {}, {}

    def learn(self, client: str, importance: Importance, examples: float = 1.0) -> None:
        """Take a client's new measurement into its mean.

        Parameters
        ----------
        client : str
            Its id.
        importance : Mapping[str, float]
            By layer.
        examples : float
            How many it has, by which it counts in its cluster.
        """
        self._examples[client] = examples
        count = self._counts.get(client, 0) + 1
        before = self.importances.get(client)
        self.importances[client] = blended(before, importance, count)
        self._counts[client] = count

    def cluster(self, members: Iterable[str]) -> Importance:
        """Return the mean importances of those members that have any."""
        known = [m for m in members if m in self.importances]
        measured = [self.importances[m] for m in known]
        return averaged(measured, [self._examples.get(m, 1.0) for m in known])

    def limit(self, client: str, ranks: Mapping[str, int]) -> None:
        """Keep a client's ranks at or below those that it has pruned them to.

        Parameters
        ----------
        client : str
            Its id.
        ranks : Mapping[str, int]
            Of every layer that it has an adapter in.
        """
        self._limits[client] = dict(ranks)

    def of(self, profile: Profile, importance: Importance) -> Assigned | None:
        """Return what a client has been given; give it where that is due.

        Parameters
        ----------
        profile : Profile
            The client's.
        importance : Mapping[str, float]
            Its cluster's, now.
        """
        given, limits = self._of(profile, importance), self._limits.get(profile.client)
        return given if limits is None else _limited(given, limits)

    def _of(self, profile: Profile, importance: Importance) -> Assigned | None:
        if self.rule is None:
            return None
        client = profile.client
        basis = self._bases.get(client)
        if basis is None or distance(basis, importance) > self.tolerance:
            if basis:
                log(INFO, "client %s: importances moved, assigned anew", client)
            self._bases[client] = basis = dict(importance)
            self._given.pop(client, None)
        if client not in self._given:
            self._given[client] = self.rule(profile, basis)
        return self._given[client]

    def state(self) -> tuple[dict[str, NDArray[np.float64]], dict[str, object]]:
        """Return what a resumed run needs: arrays, and JSON values."""
        names = list(dict.fromkeys(n for i in self._all() for n in i))
        arrays = {}
        for kind, table in (("mean", self.importances), ("basis", self._bases)):
            for client, found in table.items():
                key = f"importance/{kind}/{client}"
                arrays[key] = np.array([found.get(n, np.nan) for n in names])
        return arrays, {
            "importance-layers": names,
            "importance-counts": self._counts,
            "importance-examples": self._examples,
            "rank-limits": self._limits,
        }

    def restore(
        self, arrays: Mapping[str, NDArray[np.float64]], values: Mapping[str, object]
    ) -> None:
        """Take up what :meth:`state` returned; what was given is given again."""
        names, counts = values["importance-layers"], values["importance-counts"]
        limits = values["rank-limits"]
        examples = values.get("importance-examples", {})  # not in older checkpoints
        assert isinstance(names, list)
        assert isinstance(counts, dict)
        assert isinstance(examples, dict)
        assert isinstance(limits, dict)
        self._counts = dict(counts)
        self._examples = dict(examples)
        self._limits = dict(limits)
        self._given = {}
        self.importances = _table(arrays, "mean", names)
        self._bases = dict(_table(arrays, "basis", names))

    def _all(self) -> list[Importance]:
        return [*self.importances.values(), *self._bases.values()]


def _limited(given: Assigned | None, limits: Mapping[str, int]) -> Assigned:
    if given is None:
        return Assigned(limits)
    if isinstance(given.ranks, int):
        most = given.ranks
        return replace(given, ranks={n: min(most, r) for n, r in limits.items()})
    ranks = {name: min(r, limits.get(name, r)) for name, r in given.ranks.items()}
    return replace(given, ranks=ranks)


def _table(
    arrays: Mapping[str, NDArray[np.float64]], kind: str, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    prefix = f"importance/{kind}/"
    return {
        key.removeprefix(prefix): {
            name: float(value)
            for name, value in zip(names, found, strict=True)
            if not np.isnan(value)
        }
        for key, found in arrays.items()
        if key.startswith(prefix)
    }
