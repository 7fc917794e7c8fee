# SPDX-License-Identifier: Apache-2.0
"""How good clusters are: against the true tasks, where these are known, and alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from atlas_flwr.clustering.choice import mean_silhouette
from atlas_flwr.clustering.rows import Rows
from atlas_flwr.clustering.stability import subsample_agreement
from atlas_flwr.errors import DataError

__all__ = ["Quality", "quality"]


@dataclass(frozen=True)
class Quality:
    """How good a clustering is; ``None`` for what could not be told.

    Attributes
    ----------
    ari : float, optional
        Adjusted Rand index with the tasks: 1 for equal partitions, 0 in expectation for
        chance.
    nmi : float, optional
        Normalised mutual information with the tasks, in [0, 1].
    purity : float, optional
        Share of clients whose cluster's commonest task is theirs; many small clusters
        flatter it.
    silhouette : float, optional
        Mean silhouette in [-1, 1]. Many dimensions of noise keep it low.
    stability : float, optional
        See :mod:`atlas_flwr.clustering.stability`; at most 1.
    """

    ari: float | None = None
    nmi: float | None = None
    purity: float | None = None
    silhouette: float | None = None
    stability: float | None = None


def quality(
    clusters: Sequence[object],
    tasks: Sequence[object] | None = None,
    *,
    points: NDArray[np.generic] | None = None,
    method: str = "kmeans",
    seed: int = 0,
) -> Quality:
    """Judge clusters, client by client.

    Parameters
    ----------
    clusters : Sequence
        Cluster of each client; names do not matter.
    tasks : Sequence, optional
        True task of each: ARI, NMI and purity.
    points : NDArray, optional
        Fingerprint of each, as for :func:`atlas_flwr.clustering.cluster`: silhouette
        and stability.
    method, seed : str, int
        How subsamples are clustered, for stability.

    Raises
    ------
    ValueError
        If lists have unlike lengths.
    """
    labels = [str(label) for label in clusters]
    ari = nmi = purity = silhouette = stability = None
    if tasks is not None:
        pairs = Counter(zip(labels, map(str, tasks), strict=True))
        commonest: dict[str, int] = {}
        for (label, _), count in pairs.items():
            commonest[label] = max(commonest.get(label, 0), count)
        names = [str(task) for task in tasks]
        ari = float(adjusted_rand_score(names, labels))
        nmi = float(normalized_mutual_info_score(names, labels))
        purity = sum(commonest.values()) / len(labels)
    if points is not None:
        if len(points) != len(labels):
            raise DataError(f"{len(points)} points of {len(labels)} clients; give each")
        distinct, numbers = np.unique(labels, return_inverse=True)
        silhouette = mean_silhouette(Rows.of(points).values, numbers)
        stability = subsample_agreement(points, len(distinct), method=method, seed=seed)
    return Quality(ari, nmi, purity, silhouette, stability)
