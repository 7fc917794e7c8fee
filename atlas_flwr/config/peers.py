# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: clients that carry the trunk for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, option

__all__ = ["PeerConfig"]


@dataclass(frozen=True)
class PeerConfig:
    """Clients that carry the trunk for others, with trunk='peers' (docs/peers.md)."""

    peer_memory: str = option(
        "",
        "Memory that clients lend to the trunk, e.g. 1GiB,0,0 where a third of them "
        "hosts; dealt as devices are, and repeated over the clients. 0 carries "
        "nothing. It is besides what they train in.",
        only=ADAPTER_STRATEGIES,
    )
    peer_speeds: str = option(
        "",
        "How fast they compute as hosts, 1 being common (50 GFLOP/s), dealt in step "
        "with peer-memory: one of 0.5 is given half the guests. Empty: all alike.",
        only=ADAPTER_STRATEGIES,
    )
    peer_links: str = option(
        "",
        "What the links of clients carry each way, guests' and hosts', e.g. "
        "100Mbit/s,5Mbit/s, dealt in step with peer-memory: a slow one is given few "
        "guests or none. Empty: links are not weighed.",
        only=ADAPTER_STRATEGIES,
    )
    peer_trust: str = option(
        "",
        "Groups of clients that show each other what crosses their cuts, e.g. "
        "north,north+lab,south, repeated over the clients in their order; a client of "
        "several joins them with +. Empty: all are one group.",
        only=ADAPTER_STRATEGIES,
    )
    peer_timeout: float = option(
        600.0,
        "Seconds that a client waits for its host's answer to a call before it fails, "
        "and is given another host once. Above what a step takes a host with all its "
        "guests; 60 finds a machine that hangs sooner.",
        above=0,
        only=ADAPTER_STRATEGIES,
    )
    peer_checks: float = option(
        0.0,
        "Share of a client's messages with which it is sent its trunk's adapters, too, "
        "and repeats its round itself, block by block: a host whose answers or "
        "gradients differ, or the adapters that it hands over, is left for another. "
        "Each such round costs a client the trunk's work besides its own; try 0.05. "
        "For split='u-shaped', and codec='raw', which auto then is.",
        minimum=0,
        maximum=1,
        only=ADAPTER_STRATEGIES,
    )
    peer_chains: Literal["relay", "direct"] = option(
        "relay",
        "How what one host of a chain has computed comes to the next. relay: over the "
        "client, whose link it crosses twice. direct: the host brings it there itself, "
        "which it must reach; for clients on slow links. The numbers are the same.",
        only=ADAPTER_STRATEGIES,
    )
    peer_fallback: Literal["none", "server"] = option(
        "none",
        "Where clients go for whom no peer has room, or that no peer trusts. none: "
        "they sit the round out. server: to a trunk on the server, which then reads "
        "what crosses; of clients with groups, those alone that name server.",
        only=ADAPTER_STRATEGIES,
    )
