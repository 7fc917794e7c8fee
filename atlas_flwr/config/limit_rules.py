# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for all keys, by their options: limits, and who reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.options import Option, Problem

__all__ = ["describe_limits", "strategy_reads_it", "within_limits"]


def within_limits(config: RunConfig) -> Iterator[Problem]:
    """Want numbers in their limits, and finite."""
    for entry in fields(RunConfig):
        limits: Option = entry.metadata["option"]
        value = getattr(config, entry.name)
        if isinstance(value, str | bool):
            continue
        key = entry.name.replace("_", "-")
        if not math.isfinite(value):
            allowed = " and ".join(filter(None, ("finite", describe_limits(limits))))
            yield Problem((key,), f"{key}={value}: must be {allowed}")
        elif not _inside(value, limits):
            yield Problem((key,), f"{key}={value}: must be {describe_limits(limits)}")


def _inside(value: float, limits: Option) -> bool:
    return (
        (limits.minimum is None or value >= limits.minimum)
        and (limits.above is None or value > limits.above)
        and (limits.maximum is None or value <= limits.maximum)
    )


def describe_limits(limits: Option) -> str:
    """Say an option's limits in words; empty where it has none."""
    words = []
    if limits.minimum is not None:
        words.append(f"at least {limits.minimum}")
    if limits.above is not None:
        words.append(f"above {limits.above}")
    if limits.maximum is not None:
        words.append(f"at most {limits.maximum}")
    return " and ".join(words)


def strategy_reads_it(config: RunConfig) -> Iterator[Problem]:
    """Want no key set that the strategy would ignore."""
    for entry in fields(RunConfig):
        limits: Option = entry.metadata["option"]
        value = getattr(config, entry.name)
        ignored = limits.only and config.strategy not in limits.only
        if ignored and value != entry.default:
            key, owners = entry.name.replace("_", "-"), " and ".join(limits.only)
            do = "does" if len(limits.only) == 1 else "do"
            yield Problem(
                ("strategy", key),
                f"{key}={value!r}: strategy={config.strategy!r} does not read it, only "
                f"{owners} {do}; leave it at {entry.default!r}",
            )
