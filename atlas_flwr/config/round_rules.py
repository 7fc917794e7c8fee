# SPDX-License-Identifier: Apache-2.0
"""Whether what is said of late updates can happen."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["late_updates_are_met"]


def late_updates_are_met(config: RunConfig) -> Iterator[Problem]:
    """Want rounds that do not wait for all, where something is said of late updates."""
    for name in ("staleness_exponent", "staleness_cutoff"):
        value = getattr(config, name)
        if config.quorum == 1 and value != getattr(RunConfig, name):
            key = name.replace("_", "-")
            yield Problem(
                (key, "quorum"),
                f"{key}={value}: with quorum=1.0 a round waits for all, and no update "
                "is late; set quorum below 1, or leave this out",
            )
