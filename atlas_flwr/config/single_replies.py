# SPDX-License-Identifier: Apache-2.0
"""Whether secure sums are enough: which strategies need each client's own reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["SINGLE_REPLIES", "SUMMED", "sums_are_enough"]

# Aggregations by which ATLAS can do with the sum of a cluster.
SUMMED = ("both", "fold", "truncate")

# Why a strategy cannot do with the sum of its clients' replies.
SINGLE_REPLIES: Mapping[str, str] = {
    "centralized": "there is one client, which holds all data",
    "flexlora": "it adds up the clients' products B A, not their factors",
    "flora": "it stacks the clients' factors, and needs each of them",
    "hetlora": "it weighs each client by the norm of its product",
    "hsplitlora": "it concatenates products of unlike ranks",
    "local": "every client has adapters of its own",
    "mira": "every client has adapters of its own, which are mixed",
    "oracle": "each task has a sum of its own",
    "splitlora": "a split client's adapters are on the trunk too, and between "
    "aggregations every client has its own",
}


def sums_are_enough(config: RunConfig) -> Iterator[Problem]:
    """Want a strategy that can do with sums of updates, and all of each."""
    if not config.secure_aggregation:
        return
    if config.strategy in SINGLE_REPLIES:
        yield Problem(
            ("secure-aggregation", "strategy"),
            f"secure-aggregation=true: strategy={config.strategy!r} cannot do with the "
            f"sum of its clients' updates: {SINGLE_REPLIES[config.strategy]}; set "
            "strategy='atlas', 'fedavg' or 'fedprox', or secure-aggregation=false",
        )
    if config.quorum < 1:
        yield Problem(
            ("secure-aggregation", "quorum"),
            f"secure-aggregation=true with quorum={config.quorum}: masks cancel in the "
            "sum of all alone; set quorum=1.0",
        )
    if config.strategy == "atlas":
        yield from _clusters_have_sums(config)


def _clusters_have_sums(config: RunConfig) -> Iterator[Problem]:
    """Want whole clients of one rank, and products that are added."""
    told = "secure-aggregation=true with"
    if config.split != "none":
        yield Problem(
            ("secure-aggregation", "split"),
            f"{told} split={config.split!r}: the trunk sees each client's hidden "
            "states and trains its adapters there, so that a sum of the rest hides "
            "nothing from the server; set split='none', or secure-aggregation=false",
        )
    if config.ranks != "uniform" and config.adapter == "lora":
        yield Problem(
            ("secure-aggregation", "ranks"),
            f"{told} ranks={config.ranks!r}: what the largest rank alone can learn is "
            "one client's, and shows in the sum; set ranks='uniform' and lora-rank",
        )
    if config.aggregation not in SUMMED:
        yield Problem(
            ("secure-aggregation", "aggregation"),
            f"{told} aggregation={config.aggregation!r}: what is summed are products; "
            f"set aggregation={', '.join(map(repr, SUMMED))}, or strategy='fedavg' for "
            "the mean of factors",
        )
