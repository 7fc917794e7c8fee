# SPDX-License-Identifier: Apache-2.0
"""Where a trunk that listens can be found."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.parsing import parse_address
from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["trunk_is_found"]


def trunk_is_found(config: RunConfig) -> Iterator[Problem]:
    """Want a place to listen at that clients can dial, where the trunk listens."""
    yield from _elsewhere(config)
    hosts: dict[str, str] = {}
    for name in ("trunk_listen", "trunk_advertise"):
        key, text = name.replace("_", "-"), getattr(config, name)
        silent = config.trunk == "peers" and config.peer_fallback == "none"
        if (silent or config.trunk in ("ray", "local")) and text != getattr(
            RunConfig, name
        ):
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


def _elsewhere(config: RunConfig) -> Iterator[Problem]:
    """Want one place where the trunk is: here, or on a machine of its own."""
    access, address = config.trunk_access, config.trunk_address
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
    for name in ("trunk_listen", "trunk_advertise"):
        text = getattr(config, name)
        if access and text != getattr(RunConfig, name):
            key = name.replace("_", "-")
            yield Problem(
                (key, "trunk-access"),
                f"{key}={text!r}: the trunk of trunk-access listens already; leave "
                f"{key} out",
            )
