# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: what becomes of the clients' adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import option

__all__ = ["AggregationConfig"]


@dataclass(frozen=True)
class AggregationConfig:
    """What becomes of the clients' adapters."""

    aggregation: Literal["both", "fold", "truncate", "mean", "none"] = option(
        "both",
        "The clients' products are added exactly, whatever their ranks; what differs "
        "is how the sum comes back to a client. both: its strongest directions are "
        "trained on, the rest is folded into the frozen weights, and nothing is lost; "
        "fold: all is folded and a fresh adapter begins; truncate: the rest is lost, "
        "which sends the fewest bytes. To compare: mean averages the factors, which is "
        "another matrix; none keeps every client's own.",
        only=("atlas", "mira"),
    )
    flat_rounds: bool = option(
        True,
        "aggregation='both' sends clients and trunk as much of a cluster's sum as one "
        "round's ranks add up to, its strongest directions, so that round 50 costs "
        "what round 3 costs. What is beyond is not lost: the server keeps it, and "
        "sends it as it grows (held_back in summary.json). false sends all of it, more "
        "with every round.",
        only=("atlas", "mira"),
    )
    mixing: float = option(
        0.0,
        "How strongly clusters (mira: clients) are drawn to those with similar "
        "fingerprints after each round, from 0 to 1. Try 0.1 to 0.5 where tasks are "
        "related; unrelated ones pull each other down.",
        minimum=0,
        maximum=1,
        only=("atlas", "mira"),
    )
    mixing_decay: float = option(
        0.0,
        "Share of mixing that each round takes from it: at 0.5 it halves every round. "
        "Groups take more of others while they have learned little themselves.",
        minimum=0,
        maximum=1,
        only=("atlas", "mira"),
    )
    aggregation_interval: int = option(
        1,
        "Rounds between SplitLoRA's aggregations; clients go on from their own until "
        "then. More saves bytes and lets them drift.",
        minimum=1,
        only=("splitlora",),
    )
    server_adapters: Literal["own", "shared"] = option(
        "own",
        "SplitLoRA's server side: own trains one adapter for each client and averages "
        "them (SFL-V1); shared lets all clients' steps train one in turn (SFL-V2), "
        "or some batches at a time (trunk-merge), and wants one cut and "
        "ranks='uniform'.",
        only=("splitlora",),
    )
    trunk_merge: int = option(
        1,
        "Batches that server-adapters='shared' merges: the one adapter steps on the "
        "mean of so many batches' gradients, whichever clients they come from. With as "
        "many as clients it steps as rarely as each of them does.",
        minimum=1,
        only=("splitlora",),
    )
