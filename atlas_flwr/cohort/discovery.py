# SPDX-License-Identifier: Apache-2.0
"""Phase 1: who learns with whom, from one sketch a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO

import numpy as np
from numpy.typing import NDArray

from atlas_flwr._arguments import check_choice
from atlas_flwr.clustering import (
    METHODS,
    Clusters,
    cluster,
    match_labels,
    memberships,
    subsample_agreement,
)
from atlas_flwr.errors import AdapterError
from atlas_flwr.log import log

__all__ = ["Discovery"]

CLUSTERINGS = (*METHODS, "none")


@dataclass
class Discovery:
    """Sketches by client, and the clusters fitted on them.

    From one fit to the next a cluster keeps its number, as far as it keeps members.

    Parameters
    ----------
    method : str
        A key of :data:`atlas_flwr.clustering.METHODS`, or ``"none"``: everyone in
        cluster 0.
    num_clusters : int, optional
        Fixed number of clusters; ``None`` chooses it.
    max_clusters : int
        Largest number to choose from.
    seed : int
        Seed of the method.
    balanced : bool
        Sizes that differ by one at most, among the clients that were fitted on.

    least : int
        Members of a cluster: smaller ones join the nearest. While fewer clients are
        known, all are in one.

    Raises
    ------
    ValueError
        If there is no such method, or sizes are to be alike and at least so large.

    Attributes
    ----------
    sketches : dict[str, NDArray]
        Sketch by client.
    fitted_on : tuple[str, ...]
        Clients whose sketches made the clusters.
    numbers : tuple[int, ...]
        What the clusters are called.
    next_number : int
        The least that none was ever called, nor any above it.
    """

    method: str = "kmeans"
    num_clusters: int | None = None
    max_clusters: int = 8
    seed: int = 0
    sketches: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    fitted_on: tuple[str, ...] = ()
    _clusters: Clusters | None = None
    balanced: bool = False
    least: int = 1
    numbers: tuple[int, ...] = ()
    next_number: int = 0
    _joined: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("clustering", self.method, CLUSTERINGS)
        if self.least < 1 or (self.balanced and self.least > 1):
            raise ValueError(
                f"min_cluster_size={self.least} with balanced={self.balanced}: allowed "
                "is 1 and more, and 1 with balanced clusters; give these num_clusters"
            )

    @property
    def may_part(self) -> bool:
        """Whether there may ever be more clusters than one."""
        return self.method != "none" and 1 not in (self.num_clusters, self.max_clusters)

    def add(self, client: str, sketch: NDArray[np.generic]) -> None:
        """Remember a client's sketch, of shape (dim,) or (parts, dim).

        Raises
        ------
        AdapterError
            If it is not finite, or not of the others' shape.
        """
        known = next(iter(self.sketches.values()), sketch)
        if sketch.ndim not in (1, 2) or sketch.shape != known.shape:
            raise AdapterError(
                f"client {client}: sketch of shape {sketch.shape}; the others have "
                f"{known.shape}. All clients must use the same fingerprint-dim, and "
                "as many parts."
            )
        found = np.asarray(sketch, dtype=np.float32)
        if not np.isfinite(found).all():
            raise AdapterError(f"client {client}: its sketch has NaN or infinity")
        if self._clusters is not None and client in self.sketches:
            self._joined[client] = self._place(client)  # till all are clustered anew
        self.sketches[client] = found

    def knows(self, client: str) -> bool:
        """Tell whether the client has a cluster, or can be given one."""
        return self.method == "none" or client in self.sketches

    def fit(self) -> Clusters | None:
        """Cluster the sketches known now; ``None`` where there is nothing to."""
        if self.method == "none" or not self.sketches:
            return None
        # Of those who made the clusters: newcomers, placed where it was nearest, may
        # now make one of their own.
        labels = self.labels()
        before = {c: labels[c] for c in self.fitted_on if c in labels}
        found = self._fit(sorted(self.sketches))
        if found.joins:
            told = "clusters of fewer than %d clients: %d joined the nearest"
            log(INFO, told, self.least, found.joins)
        after = self.labels()
        matched = match_labels(before, after, fresh=self.next_number)
        numbers = {label: matched[client] for client, label in after.items()}
        self._number([numbers.get(label) for label in range(found.k)])
        return found

    def stability(self) -> float | None:
        """Agreement of clusterings of subsamples; ``None`` where there are too few."""
        if self._clusters is None:
            return None
        points = np.stack([self.sketches[client] for client in self.fitted_on])
        agreement: float | None = subsample_agreement(
            points, self._clusters.k, method=self.method, seed=self.seed
        )
        return agreement

    def memberships(self) -> dict[str, dict[str, float]]:
        """Return the share of every client with a sketch in each cluster's number."""
        if self._clusters is None:
            return {}
        points = np.stack([*self.sketches.values()])
        shares = memberships(points, self._clusters).round(4).tolist()
        names = [str(number) for number in self.numbers]
        return {
            client: dict(zip(names, found, strict=True))
            for client, found in zip(self.sketches, shares, strict=True)
        }

    def _number(self, numbers: Sequence[int | None]) -> None:
        """Number the clusters; those without members get the next that are free."""
        known = [number for number in numbers if number is not None]
        following = max([self.next_number - 1, *known]) + 1
        free = iter(range(following, following + len(numbers)))
        self.numbers = tuple(next(free) if n is None else n for n in numbers)
        self.next_number = max([self.next_number, *(n + 1 for n in self.numbers)])

    def _fit(self, clients: Sequence[str]) -> Clusters:
        points = np.stack([self.sketches[client] for client in clients])
        k = None if self.num_clusters is None else min(self.num_clusters, len(clients))
        self._clusters = cluster(
            points,
            k=k,
            method=self.method,
            max_k=min(self.max_clusters, len(clients)),
            seed=self.seed,
            balanced=self.balanced,
            least=min(self.least, len(clients)),
        )
        self.fitted_on, self._joined = tuple(clients), {}
        self.numbers = tuple(range(self._clusters.k))
        return self._clusters

    @property
    def clusters(self) -> Clusters | None:
        """What was found by the last fit."""
        return self._clusters

    def forget(self) -> None:
        """Forget sketches and clusters."""
        self.sketches, self.fitted_on, self.numbers = {}, (), ()
        self._clusters, self.next_number, self._joined = None, 0, {}

    @property
    def fitted(self) -> bool:
        """Whether there are clusters."""
        return self.method == "none" or self._clusters is not None

    def label(self, client: str) -> int | None:
        """Return the client's cluster; a newcomer joins the nearest centroid."""
        if not self.may_part:  # nobody waits for a sketch that can tell nothing
            return self.numbers[0] if self.numbers else 0
        if self._clusters is None or client not in self.sketches:
            return None
        return self.numbers[self._place(client)]

    def _place(self, client: str) -> int:
        """Return which of the clusters a client with a sketch is in."""
        assert self._clusters is not None
        if client in self.fitted_on:
            return int(self._clusters.labels[self.fitted_on.index(client)])
        if client in self._joined:
            return self._joined[client]
        return self._clusters.nearest(self.sketches[client])

    def labels(self) -> dict[str, int]:
        """Return the cluster of every client with a sketch."""
        found = {client: self.label(client) for client in self.sketches}
        return {client: label for client, label in found.items() if label is not None}

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return the sketches, to be saved with the other public attributes."""
        return dict(self.sketches)

    def restore(
        self,
        sketches: Mapping[str, NDArray[np.float32]],
        fitted_on: Sequence[str],
        numbers: Sequence[int] = (),
        next_number: int = 0,
    ) -> None:
        """Take up a saved state: the same fit on the same clients.

        Parameters
        ----------
        sketches : Mapping[str, NDArray]
            What :meth:`state` returned.
        fitted_on : Sequence[str]
            :attr:`fitted_on` of then.
        numbers, next_number : Sequence[int], int
            :attr:`numbers` and :attr:`next_number` of then; without them clusters are
            numbered as by a first fit, which differs after clustering anew.
        """
        self.sketches = dict(sketches)
        if fitted_on:
            found = self._fit(fitted_on)
            self.next_number = next_number
            self._number(tuple(numbers) or range(found.k))
