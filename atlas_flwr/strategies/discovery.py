# SPDX-License-Identifier: Apache-2.0
"""Phase 1: who learns with whom, from one sketch a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.clustering import Clusters, cluster
from atlas_flwr.errors import AdapterError

__all__ = ["CLUSTERINGS", "Discovery"]

CLUSTERINGS = ("kmeans", "none")


@dataclass
class Discovery:
    """Sketches by client, and the clusters fitted on them.

    Parameters
    ----------
    method : str
        ``"kmeans"``, or ``"none"``: everyone in cluster 0.
    num_clusters : int, optional
        Fixed number of clusters; ``None`` chooses it.
    max_clusters : int
        Largest number to choose from.
    seed : int
        Seed of k-means.
    """

    method: str = "kmeans"
    num_clusters: int | None = None
    max_clusters: int = 8
    seed: int = 0
    sketches: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    fitted_on: tuple[str, ...] = ()
    _clusters: Clusters | None = None

    def add(self, client: str, sketch: NDArray[np.float32]) -> None:
        """Remember a client's sketch.

        Raises
        ------
        AdapterError
            If it is not a finite vector as long as the others.
        """
        known = next(iter(self.sketches.values()), sketch)
        if sketch.ndim != 1 or sketch.shape != known.shape:
            raise AdapterError(
                f"client {client}: sketch of shape {sketch.shape}; the others have "
                f"{known.shape}. All clients must use the same fingerprint-dim."
            )
        if not np.isfinite(sketch).all():
            raise AdapterError(f"client {client}: its sketch has NaN or infinity")
        self.sketches[client] = np.asarray(sketch, dtype=np.float32)

    def knows(self, client: str) -> bool:
        """Tell whether the client has a cluster, or can be given one."""
        return self.method == "none" or client in self.sketches

    def fit(self) -> Clusters | None:
        """Cluster the sketches known now; ``None`` where there is nothing to."""
        if self.method == "none" or not self.sketches:
            return None
        return self._fit(sorted(self.sketches))

    def _fit(self, clients: Sequence[str]) -> Clusters:
        points = np.stack([self.sketches[client] for client in clients])
        k = None if self.num_clusters is None else min(self.num_clusters, len(clients))
        self._clusters = cluster(
            points, k=k, max_k=min(self.max_clusters, len(clients)), seed=self.seed
        )
        self.fitted_on = tuple(clients)
        return self._clusters

    @property
    def fitted(self) -> bool:
        """Whether there are clusters."""
        return self.method == "none" or self._clusters is not None

    def label(self, client: str) -> int | None:
        """Return the client's cluster; a newcomer joins the nearest centroid."""
        if self.method == "none":
            return 0
        if self._clusters is None or client not in self.sketches:
            return None
        if client in self.fitted_on:
            return int(self._clusters.labels[self.fitted_on.index(client)])
        return int(self._clusters.nearest(self.sketches[client]))

    def labels(self) -> dict[str, int]:
        """Return the cluster of every client with a sketch."""
        found = {client: self.label(client) for client in self.sketches}
        return {client: label for client, label in found.items() if label is not None}

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return the sketches, to be saved with :attr:`fitted_on`."""
        return dict(self.sketches)

    def restore(
        self, sketches: Mapping[str, NDArray[np.float32]], fitted_on: Sequence[str]
    ) -> None:
        """Take up a saved state: the same fit on the same clients."""
        self.sketches = dict(sketches)
        if fitted_on:
            self._fit(fitted_on)
