# SPDX-License-Identifier: Apache-2.0
"""Whether what is said of late updates can happen."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["late_updates_are_met"]


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
