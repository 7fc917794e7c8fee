# SPDX-License-Identifier: Apache-2.0
"""How well clusters agree with the true tasks, where these are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

__all__ = ["Quality", "quality"]


@dataclass(frozen=True)
class Quality:
    """Agreement of two labellings, none of which names the other's groups.

    Attributes
    ----------
    ari : float
        Adjusted Rand index: 1 for equal partitions, 0 in expectation for chance.
    nmi : float
        Normalised mutual information, in [0, 1].
    purity : float
        Share of clients whose cluster's commonest task is theirs; many small clusters
        flatter it.
    """

    ari: float
    nmi: float
    purity: float


def quality(clusters: Sequence[object], tasks: Sequence[object]) -> Quality:
    """Compare clusters with tasks, client by client."""
    pairs = Counter(zip(clusters, tasks, strict=True))
    commonest: dict[object, int] = {}
    for (label, _), count in pairs.items():
        commonest[label] = max(commonest.get(label, 0), count)
    names = [str(task) for task in tasks]
    labels = [str(label) for label in clusters]
    return Quality(
        float(adjusted_rand_score(names, labels)),
        float(normalized_mutual_info_score(names, labels)),
        sum(commonest.values()) / len(labels),
    )
