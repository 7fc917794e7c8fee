# SPDX-License-Identifier: Apache-2.0
"""Whether clients can carry the trunk for others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from atlas_flwr.config.parsing import (
    parse_lent,
    parse_link,
    parse_speed,
    split_list,
)
from atlas_flwr.config.peers import PeerConfig
from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem
from atlas_flwr.types import AUTO_CODEC

__all__ = ["peers_can_carry"]


def peers_can_carry(config: RunConfig) -> Iterator[Problem]:
    """Want what peers lend to be sizes, and nothing that needs one trunk for all."""
    yield from _items(config)
    if config.trunk != "peers":
        for entry in fields(PeerConfig):
            value = getattr(config, entry.name)
            if value != entry.default:
                key = entry.name.replace("_", "-")
                yield Problem(
                    (key, "trunk"),
                    f"{key}={value!r}: is read with trunk='peers' alone; set that, or "
                    f"leave {key} out",
                )
        return
    exact = config.codec in ("raw", AUTO_CODEC) and config.split == "u-shaped"
    if config.peer_checks and not exact:
        yield Problem(
            ("peer-checks", "codec", "split"),
            f"peer-checks={config.peer_checks}: an own computation is compared with "
            "hidden states as they were answered; set codec='raw' and "
            "split='u-shaped', or leave it out",
        )
    if config.server_adapters == "shared":
        yield Problem(
            ("trunk", "server-adapters"),
            "trunk='peers': server-adapters='shared' is one adapter that all clients "
            "step, and peers are several trunks; set server-adapters='own'",
        )
    if config.trunk_access:
        yield Problem(
            ("trunk", "trunk-access"),
            f"trunk-access={config.trunk_access!r}: is one trunk for all, and with "
            "trunk='peers' clients carry it; leave one of the two out",
        )


def _items(config: RunConfig) -> Iterator[Problem]:
    """Want each item of the lists to be what its key says."""
    count = len(split_list(config.peer_memory))
    for key, text, read in (
        ("peer-memory", config.peer_memory, parse_lent),
        ("peer-speeds", config.peer_speeds, parse_speed),
        ("peer-links", config.peer_links, parse_link),
    ):
        items = split_list(text)
        for item in items:
            try:
                read(item)
            except ValueError as error:
                yield Problem((key,), f"{key}={text!r}: {error}")
        if items and len(items) != count:
            yield Problem(
                (key, "peer-memory"),
                f"{key}={text!r}: has {len(items)} items, and peer-memory {count}; "
                "write one for each size",
            )
    groups = [
        name for item in split_list(config.peer_trust) for name in item.split("+")
    ]
    if "" in groups:
        yield Problem(
            ("peer-trust",),
            f"peer-trust={config.peer_trust!r}: has an empty name; write e.g. "
            "north,north+lab",
        )
