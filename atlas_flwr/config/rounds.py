# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: who takes part in a round, and how long one waits."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_flwr.options import ADAPTER_STRATEGIES, option

__all__ = ["RoundConfig"]


@dataclass(frozen=True)
class RoundConfig:
    """Who takes part in a round, and how long one waits."""

    fraction_train: float = option(
        1.0,
        "Share of the connected clients that train in a round.",
        above=0,
        maximum=1,
    )
    fraction_evaluate: float = option(
        1.0,
        "Share of the connected clients that evaluate. Below 1 the per-task numbers of "
        "two rounds come from different clients.",
        above=0,
        maximum=1,
    )
    min_train_nodes: int = option(
        2, "Fewest clients a training round asks; Flower waits for them.", minimum=1
    )
    min_evaluate_nodes: int = option(
        2, "Fewest clients an evaluation asks; Flower waits for them.", minimum=1
    )
    min_available_nodes: int = option(
        2,
        "Clients that must be connected before a round starts. Set it to the size of "
        "the federation where every client should be in the clustering.",
        minimum=1,
    )
    without_clients: str = option(
        "",
        "Clients that take no part, by id, as in '3,hospital-b'; they are asked who "
        "they are, and nothing else. To unlearn a client, begin its run anew without "
        "it: what comes out is what it would have been had it never taken part.",
        only=(*ADAPTER_STRATEGIES, "fedavg", "fedprox", "local"),
    )
    round_timeout: float = option(
        3600.0,
        "Seconds after which a round goes on without the clients still missing. "
        "Several times a slow client's round.",
        above=0,
    )
    quorum: float = option(
        1.0,
        "Share of a training round's replies after which it goes on; later ones count "
        "less (staleness-exponent), in the round that they come in. Below 1 slow "
        "clients hold nobody up, a run's numbers depend on who was fast, and a resumed "
        "run may differ.",
        above=0,
        maximum=1,
    )
    staleness_exponent: float = option(
        0.5,
        "With a quorum below 1, an update that comes tau rounds late counts (1 + tau) "
        "to the power of minus this: at 0 as any other, at 0.5 for 0.71 a round late, "
        "at 1 for a half.",
        minimum=0,
    )
    staleness_cutoff: int = option(
        4,
        "Rounds after which a late update is dropped; 0 drops all. Until then its "
        "client is asked for nothing else, but by fedavg and fedprox. Always dropped: "
        "those of hetlora, which weighs by other things, of local, of "
        "server-adapters='shared' and of trunk='peers'.",
        minimum=0,
    )
    secure_aggregation: bool = option(
        False,
        "Let the server see the sum of the clients' updates, and no single one: fedavg "
        "and fedprox learn the same, and 8 bytes a number go up. atlas has a sum for "
        "each cluster of three clients or more (smaller ones are not trained), with "
        "split='none' and ranks='uniform', and sends sketches, which are larger. What "
        "each client tells of its training is summed too; fingerprints and evaluation "
        "are not.",
    )
    evaluate_every: int = option(
        1,
        "Rounds between evaluations; the last round is always evaluated.",
        minimum=1,
    )
