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
    hosts: dict[str, str] = {}
    for name in ("trunk_listen", "trunk_advertise"):
        key, text = name.replace("_", "-"), getattr(config, name)
        if config.trunk in ("ray", "local") and text != getattr(RunConfig, name):
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
