# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: which clients learn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, ATLAS, option

__all__ = ["ClusterConfig"]


@dataclass(frozen=True)
class ClusterConfig:
    """Which clients learn together."""

    clustering: Literal["kmeans", "agglomerative", "spectral", "none"] = option(
        "kmeans",
        "How clients with similar tasks are found; none keeps all in one cluster, to "
        "see what clustering brings.",
        only=ATLAS,
    )
    num_clusters: int = option(
        0,
        "Number of clusters; 0 counts those that differ by more than noise. Set it "
        "only when you know it.",
        minimum=0,
        only=ATLAS,
    )
    balanced_clusters: bool = option(
        False,
        "Make cluster sizes differ by one at most. Use it only where tasks are known "
        "to have equally many clients.",
        only=ATLAS,
    )
    min_cluster_size: int = option(
        1,
        "Fewest clients in a cluster: smaller ones join the nearest, and fewer updates "
        "of a round are not added up. With 3 no client is told another's update. Needs "
        "min-available-nodes as large, and min-train-nodes if fraction-train is below "
        "1.",
        minimum=1,
        only=ATLAS,
    )
    max_clusters: int = option(
        8,
        "Most clusters that num-clusters=0 considers. Keep it well under the number "
        "of clients: a cluster of one learns from nobody.",
        minimum=1,
        only=ATLAS,
    )
    recluster_every: int = option(
        0,
        "Rounds between new clusterings; 0 clusters once. Use it where clients' data "
        "changes; each costs a pass of fingerprint-batches.",
        minimum=0,
        only=ATLAS,
    )
    fingerprint_batches: int = option(
        12,
        "Batches in a client's fingerprint, no example twice; each costs a training "
        "step, once. minilm needs 12, smollm2 4; at least fingerprint-parts.",
        minimum=1,
        only=ADAPTER_STRATEGIES,
    )
    fingerprint_parts: int = option(
        4,
        "Sketches in a fingerprint, of disjoint batches; they tell its noise, and so "
        "how many clusters there are. 1 chooses by silhouette instead.",
        minimum=1,
        maximum=64,
        only=ADAPTER_STRATEGIES,
    )
    fingerprint_dim: int = option(
        64,
        "Numbers in each part of a fingerprint, a byte each; with 4 parts 256 bytes.",
        minimum=2,
        maximum=65536,
        only=ADAPTER_STRATEGIES,
    )
    fingerprint_epsilon: float = option(
        0.0,
        "Noise on a fingerprint that makes it (epsilon, delta)-private towards the "
        "server; 0 adds none. 100 and less hides the tasks of eight clients. It covers "
        "the fingerprint alone, and such runs do not repeat bit by bit.",
        minimum=0,
        only=ADAPTER_STRATEGIES,
    )
    fingerprint_delta: float = option(
        1e-5,
        "Delta of fingerprint-epsilon. Well under one over the number of clients.",
        above=0,
        maximum=0.1,
        only=ADAPTER_STRATEGIES,
    )
