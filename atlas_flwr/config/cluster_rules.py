# SPDX-License-Identifier: Apache-2.0
"""Whether what is said of clusters, and of the graph that joins them, can happen."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = [
    "clusters_agree",
    "clusters_are_balanced",
    "clusters_are_large_enough",
    "decay_has_a_mixing",
    "mira_has_a_pull",
]


def clusters_agree(config: RunConfig) -> Iterator[Problem]:
    """Want numbers about clusters to agree, and clustering for them."""
    if config.num_clusters > config.max_clusters:
        yield Problem(
            ("num-clusters", "max-clusters"),
            f"num-clusters={config.num_clusters}: more than max-clusters="
            f"{config.max_clusters}; lower it or raise max-clusters",
        )
    if config.clustering != "none":
        return
    for key, value in (
        ("num-clusters", config.num_clusters),
        ("recluster-every", config.recluster_every),
    ):
        if value > 0:
            yield Problem(
                ("clustering", key),
                f"{key}={value}: clustering='none' keeps all clients in one cluster; "
                f"set {key}=0, or clustering='kmeans'",
            )


def clusters_are_balanced(config: RunConfig) -> Iterator[Problem]:
    """Want clusters where they are to be of one size."""
    if config.balanced_clusters and config.clustering == "none":
        yield Problem(
            ("clustering", "balanced-clusters"),
            "balanced-clusters=true: clustering='none' keeps all clients in one "
            "cluster; leave it out, or set clustering='kmeans'",
        )


def clusters_are_large_enough(config: RunConfig) -> Iterator[Problem]:
    """Want so many clients, and sums, where clusters are to have so many at least."""
    least = config.min_cluster_size
    if least > config.min_available_nodes:
        yield Problem(
            ("min-cluster-size", "min-available-nodes"),
            f"min-cluster-size={least}: a round may begin with fewer clients, by "
            f"min-available-nodes={config.min_available_nodes}; raise that to {least} "
            "or more",
        )
    drawn = int(config.min_available_nodes * config.fraction_train)
    drawn = max(drawn, config.min_train_nodes)
    if drawn < least <= config.min_available_nodes:
        yield Problem(
            ("min-cluster-size", "min-train-nodes", "fraction-train"),
            f"min-cluster-size={least}: with fraction-train={config.fraction_train} "
            f"and min-train-nodes={config.min_train_nodes} a round may draw {drawn} of "
            f"{config.min_available_nodes} clients to train; raise min-train-nodes to "
            f"{least} or more",
        )
    if least > 1 and config.aggregation == "none":
        yield Problem(
            ("min-cluster-size", "aggregation"),
            f"min-cluster-size={least}: with aggregation='none' no updates are added "
            "up; leave it out",
        )
    if least > 1 and config.balanced_clusters:
        yield Problem(
            ("min-cluster-size", "balanced-clusters"),
            f"min-cluster-size={least}: joined clusters are not balanced; leave one of "
            "the two out, and give balanced ones num-clusters",
        )


def decay_has_a_mixing(config: RunConfig) -> Iterator[Problem]:
    """Want something that decays."""
    if config.mixing_decay > 0 and config.mixing == 0:
        yield Problem(
            ("mixing-decay", "mixing"),
            f"mixing-decay={config.mixing_decay}: with mixing=0.0 there is nothing to "
            "decay; set mixing above 0, or mixing-decay=0.0",
        )


def mira_has_a_pull(config: RunConfig) -> Iterator[Problem]:
    """Want a graph step in MIRA: without, it is local training."""
    if config.strategy == "mira" and config.mixing == 0:
        yield Problem(
            ("strategy", "mixing"),
            "mixing=0.0: mira without its graph step is local training; set it above "
            "0, e.g. mixing=0.5",
        )
