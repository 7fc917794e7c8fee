# SPDX-License-Identifier: Apache-2.0
"""Where a trunk that listens can be found, and whether there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from atlas_flwr.budget.queues import QUEUES
from atlas_flwr.config.parsing import parse_address, split_list
from atlas_flwr.config.peers import PeerConfig
from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["TRUNK_ALONE", "trunk_is_found", "trunk_is_used"]

# What a trunk on a machine of its own was started with, and no run that uses it reads.
TRUNK_ALONE = (
    "trunk-batch",
    "trunk-device",
    "trunk-limit",
    "trunk-queue",
    "trunk-rate",
    "trunk-recompute",
    "trunk-threads",
)

# What only a run reads in which something crosses; keys with rules of their own apart.
CROSSING = (
    "codec",
    "max_head",
    "trunk_access",
    "trunk_address",
    "trunk_advertise",
    "trunk_batch",
    "trunk_client_ca",
    "trunk_learning_rate",
    "trunk_limit",
    "trunk_listen",
    "trunk_metrics",
    "trunk_queue",
    "trunk_rate",
    "trunk_recompute",
    "trunk_replicas",
    "trunk_session_memory",
    *(entry.name for entry in fields(PeerConfig)),
)


def trunk_is_used(config: RunConfig) -> Iterator[Problem]:
    """Want nothing said of a trunk where clients train whole models."""
    if config.split != "none":
        return
    found = {
        name: value
        for name in CROSSING
        if (value := getattr(config, name)) != getattr(RunConfig, name)
    }
    if config.trunk == "peers":
        found["trunk"] = "peers"
    if found:
        keys = [name.replace("_", "-") for name in found]
        listed = ", ".join(
            f"{key}={value!r}" for key, value in zip(keys, found.values(), strict=True)
        )
        yield Problem(
            (*keys, "split"),
            f"{listed}: with split='none' every client trains the whole model, and "
            "there is no trunk; leave this out, or set another split",
        )


def trunk_is_found(config: RunConfig) -> Iterator[Problem]:
    """Want a place to listen at that clients can dial, where the trunk listens."""
    yield from _elsewhere(config)
    if config.trunk_queue not in QUEUES:
        yield Problem(
            ("trunk-queue",),
            f"trunk-queue={config.trunk_queue!r}: it must be one of "
            + ", ".join(QUEUES),
        )
    yield from _replicas(config)
    among_peers = config.trunk == "peers" and config.peer_fallback == "none"
    is_inner = among_peers or config.trunk in ("ray", "local")
    if is_inner and config.trunk_client_ca:
        yield Problem(
            ("trunk-client-ca", "trunk"),
            f"trunk-client-ca={config.trunk_client_ca!r}: with trunk={config.trunk!r} "
            "the ServerApp serves no trunk that could ask for certificates; set "
            "trunk='grpc' or 'auto', or leave it out",
        )
    if is_inner and config.trunk_rate != RunConfig.trunk_rate:
        yield Problem(
            ("trunk-rate", "trunk"),
            f"trunk-rate={config.trunk_rate}: with trunk={config.trunk!r} the "
            "ServerApp serves no trunk whose calls it could limit; leave it out",
        )
    hosts: dict[str, str] = {}
    for name in ("trunk_listen", "trunk_advertise"):
        key, text = name.replace("_", "-"), getattr(config, name)
        if is_inner and text != getattr(RunConfig, name):
            yield Problem(
                (key, "trunk"),
                f"{key}={text!r}: trunk={config.trunk!r} listens nowhere; set "
                "trunk='grpc' or 'auto'",
            )
        if not text and name == "trunk_advertise":
            continue
        try:
            hosts[name], port = parse_address(text)
        except ValueError as error:
            yield Problem((key,), f"{key}={text!r}: {error}")
            continue
        if port is None and name == "trunk_listen":
            yield Problem((key,), f"{key}={text!r}: has no port; write HOST:PORT")
    dialled = hosts.get("trunk_advertise", hosts.get("trunk_listen"))
    if dialled in ("0.0.0.0", "::"):
        yield Problem(
            ("trunk-advertise", "trunk-listen"),
            f"clients cannot dial {dialled}, which is every address of this machine; "
            "set trunk-advertise to the name or address by which they reach it",
        )


def _replicas(config: RunConfig) -> Iterator[Problem]:
    """Want copies of a trunk that this run starts, and no one thing in all of them."""
    count, places = config.trunk_replicas, len(split_list(config.trunk_access))
    if places > 1 and config.trunk_address:
        yield Problem(
            ("trunk-address", "trunk-access"),
            f"trunk-address={config.trunk_address!r}: is one address, and trunk-access "
            f"names {places} trunks; leave it out, or write each trunk's into its file",
        )
    if count == 1 and places < 2:
        return
    started = config.trunk not in ("grpc", "peers") and not config.trunk_access
    if count > 1 and not started:
        yield Problem(
            ("trunk-replicas", "trunk"),
            f"trunk-replicas={count}: are actors of a simulation's Ray cluster; set "
            "trunk='ray' without trunk-access, or leave trunk-replicas out",
        )
    if config.server_adapters == "shared":
        yield Problem(
            ("trunk-replicas", "server-adapters"),
            f"{max(count, places)} trunks: server-adapters='shared' is one adapter "
            "that all clients step, in one place, and other replicas would idle; set "
            "server-adapters='own', or have one trunk",
        )


def _elsewhere(config: RunConfig) -> Iterator[Problem]:
    """Want one place where the trunk is: here, or on a machine of its own."""
    access, address = config.trunk_access, config.trunk_address
    places = split_list(access)
    if "" in places or len(set(places)) < len(places):
        yield Problem(
            ("trunk-access",),
            f"trunk-access={access!r}: name different files, none of them empty, as in "
            "a.json,b.json",
        )
    if address and not access:
        yield Problem(
            ("trunk-address", "trunk-access"),
            f"trunk-address={address!r} without trunk-access: give the file "
            "access.json that `atlas-flwr trunk` wrote, which proves the owner",
        )
    if address and not address.startswith(("grpcs://", "grpc://")):
        yield Problem(
            ("trunk-address",),
            f"trunk-address={address!r}: write grpcs://HOST:PORT",
        )
    if access and config.trunk in ("ray", "local"):
        yield Problem(
            ("trunk-access", "trunk"),
            f"trunk-access={access!r}: trunk={config.trunk!r} is started by the run "
            "itself; set trunk='grpc' or 'auto'",
        )
    if access and config.trunk_metrics:
        yield Problem(
            ("trunk-metrics", "trunk-access"),
            f"trunk-metrics={config.trunk_metrics}: the trunk of trunk-access is "
            "another's; start `atlas-flwr trunk` with --metrics, and leave this out",
        )
    for key in TRUNK_ALONE if access else ():
        name = key.replace("-", "_")
        value = getattr(config, name)
        if value != getattr(RunConfig, name):
            yield Problem(
                (key, "trunk-access"),
                f"{key}={value!r}: the trunk of trunk-access has its own; give it to "
                "`atlas-flwr trunk -c`, and leave it out here",
            )
    if access and config.trunk_client_ca:
        yield Problem(
            ("trunk-client-ca", "trunk-access"),
            f"trunk-client-ca={config.trunk_client_ca!r}: the trunk of trunk-access "
            "asks for certificates if it was started with --client-ca; leave this out",
        )
    for name in ("trunk_listen", "trunk_advertise"):
        text = getattr(config, name)
        if access and text != getattr(RunConfig, name):
            key = name.replace("_", "-")
            yield Problem(
                (key, "trunk-access"),
                f"{key}={text!r}: the trunk of trunk-access listens already; leave "
                f"{key} out",
            )
