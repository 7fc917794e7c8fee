# SPDX-License-Identifier: Apache-2.0
"""Whether what is said of late updates and of small clusters can happen."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["clusters_are_large_enough", "late_updates_are_met"]


def late_updates_are_met(config: RunConfig) -> Iterator[Problem]:
    """Want rounds that do not wait for all, where something is said of late updates."""
    if config.quorum < 1 and config.strategy == "centralized":
        yield Problem(
            ("quorum", "strategy"),
            f"quorum={config.quorum}: strategy='centralized' is one client, for which "
            "a round has to wait; set quorum=1.0",
        )
    drops = next(_dropping(config), None)
    for name in ("staleness_exponent", "staleness_cutoff"):
        value = getattr(config, name)
        if value == getattr(RunConfig, name):
            continue
        key = name.replace("_", "-")
        if config.quorum == 1:
            yield Problem(
                (key, "quorum"),
                f"{key}={value}: with quorum=1.0 a round waits for all, and no update "
                "is late; set quorum below 1, or leave this out",
            )
        elif drops and value:  # a cutoff of 0 says that nothing late counts
            because = f"{drops}={getattr(config, drops.replace('-', '_'))!r}"
            yield Problem(
                (key, drops),
                f"{key}={value}: with {because} all that is late is dropped, and "
                "nothing reads it; leave it out",
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


def _dropping(config: RunConfig) -> Iterator[str]:
    """Yield keys that are so that no late update is counted."""
    if config.strategy in ("hetlora", "local"):
        yield "strategy"
    if config.server_adapters == "shared":
        yield "server-adapters"
    if config.trunk == "peers":
        yield "trunk"
    if config.staleness_cutoff == 0:
        yield "staleness-cutoff"
