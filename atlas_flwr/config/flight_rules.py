# SPDX-License-Identifier: Apache-2.0
"""With what batches in flight go together."""

from __future__ import annotations

from collections.abc import Iterator

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Problem

__all__ = ["batches_can_overlap"]


def batches_can_overlap(config: RunConfig) -> Iterator[Problem]:
    """Want as many batches in a step, a trunk to wait for, and nobody who counts one.

    An optimiser step ends before the next begins, so that only its own batches can be
    on their way together.
    """
    count = config.in_flight
    if count == 1:
        return
    if count > config.accumulate:
        yield Problem(
            ("in-flight", "accumulate"),
            f"in-flight={count}: only batches of one optimiser step are on their way "
            f"together, and accumulate={config.accumulate} makes one of so many; set "
            f"accumulate={count} or more, or in-flight={config.accumulate}",
        )
    if config.split == "none":
        yield Problem(
            ("in-flight", "split"),
            f"in-flight={count}: with split='none' there is no trunk to wait for; set "
            "in-flight=1",
        )
    if config.device.startswith("cuda"):
        yield Problem(
            ("in-flight", "device"),
            f"in-flight={count}: a GPU's backward passes have one thread, which would "
            f"wait for the trunk, and device={config.device!r}; set in-flight=1",
        )
    uncounted = {
        "devices": config.devices,
        "trunk-session-memory": config.trunk_session_memory,
    }
    for key, value in uncounted.items():
        if value:
            yield Problem(
                ("in-flight", key),
                f"in-flight={count} with {key}={value!r}: the memory model counts one "
                f"batch at a time; set in-flight=1, or {key}=''",
            )
