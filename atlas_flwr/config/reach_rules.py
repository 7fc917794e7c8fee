# SPDX-License-Identifier: Apache-2.0
"""Which trunks the clients of a run can reach: SuperNodes, or a simulation's."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["beyond_simulation", "beyond_supernodes"]

OUT_OF_REACH = {
    "ray": "an actor of the Ray cluster that Flower's simulation starts",
    "local": "an engine inside the ServerApp's process",
}


def beyond_supernodes(config: RunConfig) -> Iterator[Problem]:
    """Yield what SuperNodes, the clients of a deployment, cannot have."""
    if config.unsplit:
        return
    if config.trunk_replicas > 1 and config.trunk in ("auto", "grpc"):
        yield Problem(
            ("trunk-replicas",),
            f"trunk-replicas={config.trunk_replicas}: are actors of a simulation's Ray "
            "cluster, and this run's clients are SuperNodes, whose trunk is in the "
            "ServerApp; leave trunk-replicas out",
        )
    if config.trunk in OUT_OF_REACH:
        yield Problem(
            ("trunk",),
            f"trunk={config.trunk!r} is {OUT_OF_REACH[config.trunk]}, and the clients "
            "of this run are SuperNodes (Flower's deployment engine), which cannot "
            "reach it. Set trunk='grpc' or 'auto'; or run it as a simulation "
            "(atlas-flwr run, or flwr run on a SuperLink that was started with "
            "--simulation)",
        )


def beyond_simulation(config: RunConfig) -> Iterator[Problem]:
    """Yield what clients of a simulation cannot have."""
    if config.trunk_client_ca:
        yield Problem(
            ("trunk-client-ca",),
            f"trunk-client-ca={config.trunk_client_ca!r}: clients of a simulation "
            "have no node config that would name a certificate; leave it out",
        )
    if not config.unsplit and config.trunk == "local":
        yield Problem(
            ("trunk",),
            f"trunk='local' is {OUT_OF_REACH['local']}, and a simulation's clients are "
            "processes of Ray's; set trunk='auto'",
        )
